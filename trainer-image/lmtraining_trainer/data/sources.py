"""Files of text from anywhere fsspec reaches.

Promise: what a person can mend about a source is an error that names the file and the fix, never a
secret in a URI (P11). What may mend itself (a server that does not answer) is a storage error, so
that the operator tries again.
Trap avoided: a job whose text is nowhere waits for a torch that it never needs; listing needs none.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
import fsspec.utils

from lmtraining_api.job import Data, DataSource
from lmtraining_trainer.data.source_errors import data_error, explained
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import sha256_of
from lmtraining_trainer.mounted_secret import options_in
from lmtraining_trainer.remote_errors import redacted

FILES_MAX = 1_000_000
HASH_CHUNK_BYTES = 8 * 1024 * 1024

_SUFFIXES_OF_RECORDS = (".jsonl", ".csv", ".parquet")
_GLOB = re.compile(r"[*?\[]")
_GLOB_OF_URL = re.compile(r"[*\[]")
#: What file systems call the thing that changes when the content does, best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source."""

    field: str
    """Where the source stands in the job, as data.train[0].uri."""
    source: DataSource
    file_system: Any
    path: str
    name: str
    """The path with its protocol and without secrets: fit for a message."""
    size_bytes: int | None
    """None where the file system does not say."""
    version: str | None
    """Changes when the content changes; None where the file system does not say."""

    @property
    def format(self) -> str:
        """text, jsonl, csv or parquet; by the suffix where the source leaves it to that."""
        if self.source.format != "auto":
            return self.source.format
        path = PurePosixPath(self.path.partition("?")[0] if "://" in self.path else self.path)
        is_compressed = fsspec.utils.infer_compression(str(path)) is not None
        suffix = PurePosixPath(path.stem).suffix if is_compressed else path.suffix
        return suffix[1:] if suffix in _SUFFIXES_OF_RECORDS else "text"

    @property
    def identity(self) -> tuple[str, int | None, str | None]:
        """The same for the same file, also where two sources match it."""
        return _location(self.file_system, self.path), self.size_bytes, self.version


def list_sources(data: Data, credentials: Path) -> tuple[list[SourceFile], list[SourceFile]]:
    """All files of data.train and of data.validation.

    `credentials` holds one directory per Secret, one file per key. Raises TrainerError(DATA) where
    a source matches nothing, all files of a field are empty, or a file is in both; and
    TrainerError(STORAGE) where a source does not answer.
    """
    train = list_files(data.train, credentials, field="data.train")
    validation = list_files(data.validation, credentials, field="data.validation")
    training = {file.identity for file in train}
    for file in validation:
        if file.identity in training:
            raise data_error(
                "ValidationInTraining",
                f"{file.name} is matched by data.train and by {file.field}, so the validation loss "
                "would measure memory: take it out of one of them",
            )
    return train, validation


def list_files(sources: Sequence[DataSource], credentials: Path, *, field: str) -> list[SourceFile]:
    """All files of the sources of `field`, each source's in order of path."""
    files = [
        file
        for number, source in enumerate(sources)
        for file in files_of(source, credentials, field=f"{field}[{number}].uri")
    ]
    if len(files) > FILES_MAX:
        raise data_error(
            "TooManyFiles",
            f"{field} matches {len(files)} files, more than {FILES_MAX}: join them into fewer, "
            "larger files (format jsonl)",
        )
    if files and all(file.size_bytes == 0 for file in files):
        raise no_text(field, files)
    return files


def no_text(field: str, files: Sequence[SourceFile]) -> TrainerError:
    """The sources of `field` are there, and empty."""
    return data_error(
        "NoText",
        f"all {len(files)} files of {field} are empty (the first is {files[0].name}): correct the "
        "uri, or put text there",
    )


def storage_options(source: DataSource, credentials: Path) -> dict[str, str]:
    """The options of fsspec in the source's Secret: a file per option, its name the option's."""
    if source.credentials is None:
        return {}
    name = source.credentials.secret_ref.name
    try:
        return options_in(credentials / name)
    except OSError as error:
        raise data_error(
            "CredentialsUnreadable",
            f"the Secret {name} of {redacted(source.uri)} is not readable "
            f"({type(error).__name__}): make the Secret in the job's namespace",
        ) from error


def version_of(file: SourceFile) -> str:
    """The file's version; where its file system has none (plain HTTP), it is read whole."""
    if file.version is not None:
        return file.version
    digests = []
    with (
        _errors_of(file.name, file.field),
        file.file_system.open(file.path, "rb") as stream,
    ):
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digests.append(sha256_of(chunk))
    return sha256_of("".join(digests).encode())


def files_of(source: DataSource, credentials: Path, *, field: str) -> list[SourceFile]:
    """All files of a source, in order of path; at least one. `field` is for messages. Raises
    TrainerError."""
    name = redacted(source.uri)
    options = storage_options(source, credentials)
    with _errors_of(name, field):
        file_system, path = fsspec.core.url_to_fs(source.uri, **options)  # type: ignore[no-untyped-call]
        found = _found(file_system, path)
    files = [
        SourceFile(
            field=field,
            source=source,
            file_system=file_system,
            path=entry,
            name=redacted(_location(file_system, entry)),
            size_bytes=info.get("size"),
            version=next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None),
        )
        for entry, info in sorted(found.items())
        if info.get("type") == "file"
    ]
    if not files:
        raise data_error(
            "NoSuchFile",
            f"no file matches {field} {name}: correct the uri, or put the files there",
        )
    return files


def _found(file_system: Any, path: str) -> dict[str, dict[str, Any]]:
    glob = (_GLOB_OF_URL if "://" in path else _GLOB).search(path)
    if glob:
        found = dict(file_system.glob(path, detail=True))
        if not found:  # a glob also takes a server that does not answer for an empty one
            file_system.ls(path[: glob.start()].rpartition("/")[0])
        return found
    info = file_system.info(path)
    if info.get("type") == "directory":
        return dict(file_system.find(path, detail=True))
    return {path: info}


def _location(file_system: Any, path: str) -> str:
    return str(file_system.unstrip_protocol(path))


@contextmanager
def opened(file: SourceFile) -> Iterator[Any]:
    """Its bytes, decompressed by the suffix. Raises TrainerError, also for what reading raises."""
    with (
        _errors_of(file.name, file.field),
        file.file_system.open(file.path, "rb", compression="infer") as stream,
    ):
        yield stream


@contextmanager
def _errors_of(name: str, field: str) -> Iterator[None]:
    """What opening, listing and reading raise, as errors that name the file and the fix."""
    try:
        yield
    except (TrainerError, GeneratorExit):
        raise
    except Exception as error:  # botocore, aiohttp, zlib: each has a family of its own
        raise explained(error, name=name, field=field) from error
