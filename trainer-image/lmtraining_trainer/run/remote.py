"""A directory of an object store, through any file system of fsspec.

Promise: what is read is what the store holds now, never a listing that a library has kept, and an
object is whole or absent. Whatever goes wrong is a `RemoteError`: an OSError, as of a disk, with
a sentence that names the field, the place and the fix.
Trap avoided: a server that does not answer keeps a call for a minute; the rank says meanwhile that
it lives. Trying again is the libraries' part (s3fs and gcsfs do so several times).
"""

import errno
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import fsspec
import fsspec.core
from fsspec.callbacks import Callback

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import HASH_CHUNK_BYTES, nothing
from lmtraining_trainer.heartbeat import while_alive
from lmtraining_trainer.remote_errors import Kind, host_in, redacted, trouble_of

FIELD = "checkpoint.storage.uri"
FREE_SPACE = "free space there, or make it writable"

Result = TypeVar("Result")


class RemoteError(OSError):
    """The object store did not do what it was asked for."""

    def __init__(self, failure_class: FailureClass, reason: str, *, what: str, advice: str) -> None:
        super().__init__(errno.EREMOTEIO, what)
        self.failure_class = failure_class
        self.reason = reason
        self.what = what
        self.advice = advice

    def failure(self) -> TrainerError:
        """The same, as the end of a rank."""
        return TrainerError(self.failure_class, self.reason, f"{self.what}: {self.advice}")


def advice_for(error: OSError, otherwise: str = FREE_SPACE) -> str:
    """What to do about storage that failed; a disk is full or not writable."""
    return error.advice if isinstance(error, RemoteError) else otherwise


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One directory; paths are relative to it. All methods raise RemoteError."""

    file_system: Any
    path: str
    name: str
    """Its URI without secrets: fit for a message."""
    alive: Callable[[], None] = nothing
    """The sign of life of the main thread; other threads are not the rank's voice."""
    on_part: Callable[[], None] = nothing
    """Called, in any thread, when a part of a large object has come or gone."""

    @classmethod
    def at(cls, uri: str, options: Mapping[str, str], alive: Callable[[], None] = nothing) -> Self:
        """The directory at `uri`; the server is not asked yet."""
        try:
            file_system, path = fsspec.core.url_to_fs(  # type: ignore[no-untyped-call]
                uri, skip_instance_cache=True, **options
            )
        except Exception as error:  # each library has a family of its own
            raise explained(error, redacted(uri)) from error
        return cls(file_system=file_system, path=path.rstrip("/"), name=redacted(uri), alive=alive)

    def child(self, name: str) -> "Remote":
        """A directory below this one."""
        return replace(self, path=self._path(name), name=f"{self.name.rstrip('/')}/{name}")

    def names(self, below: str = "") -> list[str]:
        """The names directly below; none where there is no such directory."""
        path = self._path(below)

        def work() -> list[str]:
            self.file_system.invalidate_cache()
            try:
                found = self.file_system.ls(path, detail=False)
            except FileNotFoundError:
                return []
            return [name for one in found if (name := _relative(one, path))]

        return self._do(work)

    def sizes(self, below: str = "") -> dict[str, int]:
        """The bytes of every object at any depth below, by its path."""
        path = self._path(below)

        def work() -> dict[str, int]:
            self.file_system.invalidate_cache()
            try:
                found = self.file_system.find(path, detail=True)
            except FileNotFoundError:
                return {}
            return {
                name: int(info["size"] or 0)
                for one, info in found.items()
                if (name := _relative(one, path))
            }

        return self._do(work)

    def read(self, path: str) -> bytes | None:
        """The content of a small object, or None where there is none."""
        return self.read_all([path]).get(path)

    def read_all(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The contents of small objects; those that are absent are left out."""
        wanted = {self._path(path): path for path in paths}
        if not wanted:
            return {}
        found = self._do(lambda: self.file_system.cat([*wanted], on_error="return"))
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise explained(content, self.name) from content
        return {
            path: bytes(found[full])
            for full, path in wanted.items()
            if isinstance(found.get(full), bytes)
        }

    def write(self, path: str, content: bytes) -> None:
        """Put a small object in place of what is there."""
        self._do(lambda: self.file_system.pipe_file(self._path(path), content))

    def upload(self, file: Path, path: str, *, only_new: bool = False) -> bool:
        """Put a file; False where `only_new` and the store says that one is there. A store that
        knows no conditional put replaces it."""
        mode = {"mode": "create"} if only_new else {}

        def work() -> bool:
            try:
                self.file_system.put_file(
                    str(file), self._path(path), callback=_Parts(self.on_part), **mode
                )
            except FileExistsError:
                return False
            return True

        return self._do(work)

    def sha256(self, path: str) -> str | None:
        """SHA-256 of what the store gives back, or None where it has no such object."""
        digest = hashlib.sha256(usedforsecurity=False)
        is_there = self._stream(path, digest.update)
        return digest.hexdigest() if is_there else None

    def download(self, path: str, to: Path) -> str | None:
        """The object as a file, by one rename; its SHA-256. No file where there is no object."""
        digest = hashlib.sha256(usedforsecurity=False)
        temporary = to.with_name(f".{to.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:

                def take(chunk: bytes) -> None:
                    digest.update(chunk)
                    file.write(chunk)

                is_there = self._stream(path, take)
            if is_there:
                temporary.replace(to)
                return digest.hexdigest()
            to.unlink(missing_ok=True)
            return None
        finally:
            temporary.unlink(missing_ok=True)

    def copy(self, path: str, to: str) -> None:
        """Copy one object within the store."""
        self._do(lambda: self.file_system.cp_file(self._path(path), self._path(to)))

    def remove(self, paths: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""

        def work() -> None:
            for path in [self._path(path) for path in paths]:
                try:
                    self.file_system.rm_file(path)
                except FileNotFoundError:
                    continue

        self._do(work)

    def check(self) -> None:
        """Write and delete a small object, to see that both are allowed."""
        name = f"write-check-{uuid.uuid4().hex}"
        self.write(name, b"")
        self.remove([name])

    def _stream(self, path: str, sink: Callable[[bytes], Any]) -> bool:
        def work() -> bool:
            try:
                with self.file_system.open(self._path(path), "rb") as stream:
                    while chunk := stream.read(HASH_CHUNK_BYTES):
                        sink(chunk)
                        self.on_part()
            except FileNotFoundError:
                return False
            return True

        return self._do(work)

    def _path(self, below: str) -> str:
        return f"{self.path}/{below}" if below else self.path

    def _do(self, work: Callable[[], Result]) -> Result:
        try:
            if threading.current_thread() is threading.main_thread():
                return while_alive("object store", work, self.alive)
            return work()
        except Exception as error:  # botocore, aiohttp, google: each has a family of its own
            raise explained(error, self.name) from error


class _Parts(Callback):
    """What fsspec calls while it puts an object."""

    def __init__(self, on_part: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_part = on_part

    def relative_update(self, inc: int = 1) -> None:
        self._on_part()


def explained(error: Exception, name: str) -> RemoteError:
    """`error` in our words; `name` is the place without its secrets."""
    trouble, place = trouble_of(error), f"{FIELD} {name}"
    final, passing = FailureClass.CONFIGURATION, FailureClass.STORAGE
    match trouble.kind:
        case Kind.FORBIDDEN:
            return RemoteError(
                final,
                "StorageNotAllowed",
                what=f"{place} may not be read and written ({trouble.detail})",
                advice="allow it to list, read, write and delete there, or correct the Secret in "
                "checkpoint.storage.credentials.secretRef",
            )
        case Kind.ABSENT:
            return RemoteError(
                final,
                "NoSuchStorage",
                what=f"{place} does not exist",
                advice="make the bucket, or correct the uri",
            )
        case Kind.NO_PACKAGE:
            return RemoteError(
                final,
                "NoSuchProtocol",
                what=f"{place} needs a package that this environment lacks ({trouble.detail})",
                advice="install it; in a cluster use an image that has it",
            )
        case Kind.BAD_URI:
            return RemoteError(
                final,
                "BadUri",
                what=f"{place} cannot be opened by fsspec",
                advice="correct the uri, and the options in checkpoint.storage.credentials",
            )
        case Kind.OUT_OF_REACH:
            return RemoteError(
                passing,
                "StorageUnreachable",
                what=f"{place} is out of reach ({host_in(name)}: {trouble.detail})",
                advice="check the host's name, and that DNS, egress (NetworkPolicy) and any proxy "
                "let the trainer reach it",
            )
        case _:
            return RemoteError(
                passing,
                "StorageFailing",
                what=f"{place} does not do what it was asked for ({trouble.detail})",
                advice="check the server",
            )


def _relative(full: str, path: str) -> str:
    return full.rstrip("/").removeprefix(path).lstrip("/")
