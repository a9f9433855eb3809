"""A run in an object store: the copy of it in this pod, and what counts, which is in the store.

Promise: the store has the same names as a run directory on a volume. A checkpoint exists there once
its manifest does, which is put last, after every file was read back from the store; its files are
never overwritten by a gang that was replaced, where the store knows a conditional put (S3 and GCS
do). A gang writes its part of the journal as an object of its own, and an entry counts only if the
next gang saw it when it began: so an entry that an older gang writes too late counts for nobody.
What no object store can promise: the look at the fence and the put that follows it are two acts.
Between them an older gang may still publish a checkpoint of its own, which is one of the same run
and whole, or put its copy of run.json, of the finished marker or of the export.
Trap avoided: there is no rename. A name that appears in the middle of an upload would be loaded.
"""

import fcntl
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import (
    nothing,
    remove_directory,
    sha256_of,
    sha256_of_file,
    write_atomically,
)
from lmtraining_trainer.mounted_secret import options_in
from lmtraining_trainer.remote_errors import redacted
from lmtraining_trainer.run.directory import CHECKPOINTS, FINISHED, RUN
from lmtraining_trainer.run.fence import FENCE, Mark
from lmtraining_trainer.run.journal import JOURNAL
from lmtraining_trainer.run.remote import FIELD, Remote, RemoteError

MANIFEST = "manifest.json"
INTACT = "intact.json"
HEALTHY = "healthy.json"
JOURNALS = "journal"
REJECTED_PREFIX = "rejected-"
LOCK = "fetch.lock"
LOCK_POLL_SECONDS = 0.1

_SUFFIX = ".jsonl"
_SMALL = (MANIFEST, INTACT, HEALTHY)
"""What of a checkpoint is brought before anyone asks for it."""
_CHECKPOINT = re.compile(rf"{CHECKPOINTS}/(step-\d+)/(.+)")


@dataclass(frozen=True, kw_only=True)
class RemoteNames:
    """The names of the fence, as objects without content."""

    remote: Remote

    def all(self) -> list[str]:
        return self.remote.names()

    def add(self, name: str) -> None:
        self.remote.write(name, b"")

    def drop(self, name: str) -> None:
        self.remote.remove([name])


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A run directory of this pod and the place in the object store where the run lives. Only the
    lead writes there. All methods raise RemoteError and OSError."""

    directory: Path
    run: Remote
    cache: Remote
    """The prepared data, shared by all jobs of the same storage."""
    alive: Callable[[], None] = nothing

    @classmethod
    def of(
        cls, job: JobFile, credentials: Path, alive: Callable[[], None] = nothing
    ) -> Self | None:
        """The mirror of a job, None where its run lives on a volume. Raises TrainerError."""
        if not job.run_uri:
            return None
        options = _options(job, credentials)
        try:
            return cls(
                directory=Path(job.run_directory),
                run=Remote.at(job.run_uri, options, alive),
                cache=Remote.at(job.data_cache_uri, options, alive),
                alive=alive,
            )
        except RemoteError as error:
            raise error.failure() from error

    @property
    def fence_names(self) -> RemoteNames:
        return RemoteNames(remote=self.run.child(FENCE))

    def bring(self) -> None:
        """Make the small files here what they are in the store, and forget checkpoints that it does
        not have; their large files are fetched when they are asked for."""
        sizes = self.run.sizes()
        contents = self.run.read_all(name for name in sizes if _is_small(name))
        for name in (RUN, FINISHED):
            _replace(self.directory / name, contents.get(name))
        _replace(self.directory / JOURNAL, _journal_in(contents) or None)
        present = {match[1] for name in sizes if (match := _CHECKPOINT.fullmatch(name))}
        for name in {path.name for path in self._checkpoints()} | present:
            small = {one: contents.get(f"{CHECKPOINTS}/{name}/{one}") for one in _SMALL}
            self._bring_checkpoint(name, small, exists=name in present)

    def journal_of(self, mark: Mark) -> Callable[[bytes], None]:
        """Where the gang of `mark` puts its part of the journal, each time the whole of it."""
        return lambda content: self.run.write(f"{JOURNALS}/{mark.name}{_SUFFIX}", content)

    def keep(self, path: Path) -> None:
        """Put a small file that was written here."""
        self.run.write(self._name(path), path.read_bytes())

    def keep_directory(self, directory: Path) -> None:
        """Put every file of a directory."""
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            self.run.upload(file, self._name(file))

    def checkpoint(self, name: str) -> Path:
        """Where a checkpoint is in this pod."""
        return self.directory / CHECKPOINTS / name

    def publish_checkpoint(
        self, directory: Path, check: Callable[[], None], on_part: Callable[[], None] = nothing
    ) -> None:
        """Put a checkpoint; `check` is called directly before its manifest is and may raise."""
        remote = replace(self.run.child(self._name(directory)), on_part=on_part)
        _publish(directory, remote, check)

    def publish_data(self, directory: Path, check: Callable[[], None]) -> None:
        """Put prepared data, unless the store has it."""
        remote = self.cache.child(directory.name)
        if remote.read(MANIFEST) is None:
            _publish(directory, remote, check)

    def fetch_checkpoint(self, directory: Path, names: Iterable[str] | None = None) -> None:
        """Have the files of a checkpoint here, as the store has them; those of others give way."""
        with self._alone():
            self.thin(directory)
            _fetch(self.run.child(self._name(directory)), directory, names, self.alive)

    def fetch_data(self, directory: Path) -> None:
        """Have prepared data here, where the store has it."""
        with self._alone():
            remote = self.cache.child(directory.name)
            damaged = _fetch(remote, directory, None, self.alive)
            if damaged:  # nobody looks at the hash of the tokens again
                remove_directory(directory)
                raise _differs(remote, damaged[0])

    def thin(self, keep: Path) -> None:
        """Delete the large files of the other checkpoints here: the store has them."""
        for directory in self._checkpoints():
            if directory.name != keep.name:
                for file in directory.iterdir():
                    if file.name not in _SMALL:
                        file.unlink(missing_ok=True)

    def remove(self, directory: Path) -> None:
        """Delete a checkpoint from the store, its manifest first: then it is none."""
        self._remove(self._name(directory))

    def reject(self, directory: Path) -> None:
        """Move a broken checkpoint aside, in the store; a half one is deleted. Only the newest
        broken one stays as evidence."""
        name = self._name(directory)
        aside = f"{CHECKPOINTS}/{REJECTED_PREFIX}{directory.name}"
        files = self.run.sizes(name)
        if MANIFEST in files:
            for file in files:
                self.run.copy(f"{name}/{file}", f"{aside}/{file}")
        self._remove(name)
        found = [one for one in self.run.names(CHECKPOINTS) if one.startswith(REJECTED_PREFIX)]
        for older in sorted(found)[:-1]:
            self._remove(f"{CHECKPOINTS}/{older}")

    def halves(self) -> list[Path]:
        """The checkpoints in the store that have no manifest."""
        files = [match for name in self.run.sizes() if (match := _CHECKPOINT.fullmatch(name))]
        whole = {match[1] for match in files if match[2] == MANIFEST}
        return [self.checkpoint(name) for name in sorted({match[1] for match in files} - whole)]

    def _checkpoints(self) -> list[Path]:
        found = (self.directory / CHECKPOINTS).glob("step-*")
        return [path for path in found if path.is_dir()]

    def _bring_checkpoint(
        self, name: str, small: Mapping[str, bytes | None], *, exists: bool
    ) -> None:
        directory = self.checkpoint(name)
        manifest = directory / MANIFEST
        is_same = manifest.exists() and manifest.read_bytes() == small[MANIFEST]
        if not is_same:
            remove_directory(directory)
        if exists:
            directory.mkdir(parents=True, exist_ok=True)
            for one, content in small.items():
                _replace(directory / one, content)

    def _remove(self, name: str) -> None:
        files = self.run.sizes(name)
        if MANIFEST in files:
            self.run.remove([f"{name}/{MANIFEST}"])
        self.run.remove(f"{name}/{file}" for file in files if file != MANIFEST)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two ranks of a pod do not fetch the same thing: the second finds it there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / LOCK).open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self.alive()
                    time.sleep(LOCK_POLL_SECONDS)
            yield


def _options(job: JobFile, credentials: Path) -> dict[str, str]:
    secret = job.spec.checkpoint.storage.credentials
    if secret is None:
        return {}
    name = secret.secret_ref.name
    try:
        return options_in(credentials / name)
    except OSError as error:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "CredentialsUnreadable",
            f"the Secret {name} of checkpoint.storage.uri {redacted(job.run_uri)} is not readable "
            f"({type(error).__name__}): make the Secret in the job's namespace",
        ) from error


def _is_small(name: str) -> bool:
    found = _CHECKPOINT.fullmatch(name)
    if found is not None:
        return found[2] in _SMALL
    return name in {RUN, FINISHED} or name.startswith(f"{JOURNALS}/")


def _replace(path: Path, content: bytes | None) -> None:
    """Let a small file be this, or absent."""
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)


def _journal_in(contents: Mapping[str, bytes]) -> bytes:
    """One journal from those of all gangs: of each, the entries that the next one saw."""
    parts = {
        Mark.of(name.removeprefix(f"{JOURNALS}/").removesuffix(_SUFFIX)): content
        for name, content in contents.items()
        if name.startswith(f"{JOURNALS}/")
    }
    lines: list[bytes] = []
    for mark in sorted(parts):
        ours = parts[mark].splitlines(keepends=True)
        if ours:
            lines[_sequence(ours[0]) :] = ours
    return b"".join(lines)


def _sequence(line: bytes) -> int:
    """How many entries its gang found. A line that nobody can read is left for whoever opens the
    journal to complain of."""
    try:
        return int(json.loads(line)["sequence"])
    except (ValueError, KeyError, TypeError):
        return 1 << 60


def _entries(manifest: bytes | None) -> dict[str, tuple[int, str]]:
    """Size and hash of each file: what a manifest says, or nothing where it makes no sense."""
    try:
        files = json.loads(manifest or b"{}")["files"]
        return {name: (int(one["size"]), str(one["sha256"])) for name, one in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _publish(directory: Path, remote: Remote, check: Callable[[], None]) -> None:
    manifest = (directory / MANIFEST).read_bytes()
    for name, (_, sha256) in _entries(manifest).items():
        _put(directory / name, remote, sha256, check)
    check()
    _put(directory / MANIFEST, remote, sha256_of(manifest), check)


def _put(file: Path, remote: Remote, sha256: str, check: Callable[[], None]) -> None:
    """Put a file and read it back. What is there already is the same (a put whose answer was lost,
    another job with the same data), or an older gang's, or we are the older gang ourselves."""
    is_new = remote.upload(file, file.name, only_new=True)
    if not is_new and remote.sha256(file.name) != sha256:
        check()
        remote.upload(file, file.name)
    elif not is_new:
        return
    if remote.sha256(file.name) != sha256:
        raise _differs(remote, file.name)


def _differs(remote: Remote, name: str) -> RemoteError:
    return RemoteError(
        FailureClass.STORAGE,
        "StorageFailing",
        what=f"{FIELD} {remote.name}/{name} reads back otherwise than it was written",
        advice=f"check the store, and delete {remote.name} there",
    )


def _fetch(
    remote: Remote, to: Path, names: Iterable[str] | None, alive: Callable[[], None]
) -> list[str]:
    """Bring files, and last the manifest, without which the directory is not what it will be. The
    names of those that are not what it says."""
    manifest = remote.read(MANIFEST)
    entries = _entries(manifest)
    if manifest is None:
        return []
    damaged = []
    to.mkdir(parents=True, exist_ok=True)
    for name in entries if names is None else names:
        if name not in entries or _is_good(to / name, entries[name], alive):
            continue
        if remote.download(name, to / name) != entries[name][1]:
            damaged.append(name)
    _replace(to / MANIFEST, manifest)
    return damaged


def _is_good(path: Path, entry: tuple[int, str], alive: Callable[[], None]) -> bool:
    size, sha256 = entry
    try:
        return path.stat().st_size == size and sha256_of_file(path, alive) == sha256
    except FileNotFoundError:
        return False
