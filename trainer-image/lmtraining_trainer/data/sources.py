"""Text from anywhere fsspec reaches, one document at a time.

Promise: what a person can mend about a source is an error that names the file, the line where there
is one, and the fix; never the text itself, nor a secret in a URI (P11). What may mend itself (a
server that does not answer) is a storage error, so that the operator tries again.
Trap avoided: a document is held in memory whole, so its size has a limit with a name.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import fsspec.core

from lmtraining_api import FailureClass
from lmtraining_api.job import DataSource
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import sha256_of

DOCUMENT_BYTES_MAX = 256 * 1024 * 1024
FILES_MAX = 1_000_000
HASH_CHUNK_BYTES = 8 * 1024 * 1024

_GLOB = re.compile(r"[*?\[]")
_USER = re.compile(r"(?<=://)[^/?#]*@")
#: What file systems call the thing that changes when the content does, best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source."""

    source: DataSource
    file_system: Any
    path: str
    name: str
    """The path with its protocol and without secrets: fit for a message."""
    size_bytes: int
    version: str
    """Changes when the content changes."""


def list_files(sources: Sequence[DataSource], credentials: Path) -> list[SourceFile]:
    """All files of the sources, each source's in order of path.

    `credentials` holds one directory per Secret, one file per key. Raises TrainerError(DATA) where
    a source matches nothing, TrainerError(STORAGE) where it does not answer.
    """
    files = [file for source in sources for file in _files_of(source, credentials)]
    if len(files) > FILES_MAX:
        raise _data_error(
            "TooManyFiles", f"data.train matches {len(files)} files, more than {FILES_MAX}: "
            "join them into fewer, larger files (format jsonl)"
        )  # fmt: skip
    return files


def documents(file: SourceFile) -> Iterator[str]:
    """The documents of a file in order, empty ones left out. Raises TrainerError."""
    with _opened(file) as stream:
        if file.source.format == "text":
            texts = iter([_whole(file, stream)])
        else:
            texts = _lines(file, stream)
        for text in texts:
            if text:
                yield text


def storage_options(source: DataSource, credentials: Path) -> dict[str, str]:
    """The options of fsspec in the source's Secret: a file per option, its name the option's."""
    if source.credentials is None:
        return {}
    directory = credentials / source.credentials.secret_ref.name
    try:
        # A mounted Secret also holds ..data and ..<date>, the kubelet's own links.
        keys = [key for key in sorted(directory.iterdir()) if not key.name.startswith(".")]
        return {key.name: key.read_text().strip() for key in keys}
    except OSError as error:
        raise _data_error(
            "CredentialsUnreadable",
            f"the Secret {directory.name} of {redacted(source.uri)} is not readable "
            f"({type(error).__name__}): make the Secret in the job's namespace",
        ) from error


def redacted(uri: str) -> str:
    """`uri` without what may be secret: users and passwords, and whatever follows a question mark.
    In the path of a plain local file that is a wildcard and stays."""
    uri = _USER.sub("", uri)
    is_local = uri.startswith("file://") and "::" not in uri
    return uri if is_local else uri.partition("?")[0]


def _files_of(source: DataSource, credentials: Path) -> list[SourceFile]:
    name = redacted(source.uri)
    options = storage_options(source, credentials)
    with _errors_of(name):
        file_system, path = fsspec.core.url_to_fs(source.uri, **options)  # type: ignore[no-untyped-call]
        found = _found(file_system, path)
        files = [
            _source_file(source, file_system, entry, info)
            for entry, info in sorted(found.items())
            if info.get("type") == "file"
        ]
    if not files:
        raise _data_error(
            "NoSuchFile", f"no file matches {name}: correct the uri, or put the files there"
        )
    return files


def _found(file_system: Any, path: str) -> dict[str, dict[str, Any]]:
    if _GLOB.search(path):
        return dict(file_system.glob(path, detail=True))
    info = file_system.info(path)
    if info.get("type") == "directory":
        return dict(file_system.find(path, detail=True))
    return {path: info}


def _source_file(
    source: DataSource, file_system: Any, path: str, info: dict[str, Any]
) -> SourceFile:
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None)
    return SourceFile(
        source=source,
        file_system=file_system,
        path=path,
        name=redacted(str(file_system.unstrip_protocol(path))),
        size_bytes=int(info.get("size") or 0),
        version=version or _content_hash(file_system, path),
    )


def _content_hash(file_system: Any, path: str) -> str:
    """For file systems that say nothing about versions (plain HTTP): read it all."""
    digests = []
    with file_system.open(path, "rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digests.append(sha256_of(chunk))
    return sha256_of("".join(digests).encode())


@contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    with (
        _errors_of(file.name),
        file.file_system.open(file.path, "rb", compression="infer") as stream,
    ):
        yield stream


def _whole(file: SourceFile, stream: Any) -> str:
    content = stream.read(DOCUMENT_BYTES_MAX + 1)
    if len(content) > DOCUMENT_BYTES_MAX:
        raise _data_error(
            "DocumentTooLarge",
            f"{file.name} has more than {DOCUMENT_BYTES_MAX // 2**20} MB, and with format text a "
            "file is one document: split it, or use format jsonl",
        )
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _not_utf8(file, line) from None


def _lines(file: SourceFile, stream: Any) -> Iterator[str]:
    number = 0
    while line := stream.readline(DOCUMENT_BYTES_MAX + 1):
        number += 1
        if len(line) > DOCUMENT_BYTES_MAX:
            raise _data_error(
                "DocumentTooLarge",
                f"{file.name} line {number} has more than {DOCUMENT_BYTES_MAX // 2**20} MB: "
                "split that document",
            )
        if line.strip():
            yield _field(file, line, number)


def _field(file: SourceFile, line: bytes, number: int) -> str:
    field = file.source.text_field
    try:
        record = json.loads(str(line, "utf-8"))
    except UnicodeDecodeError:
        raise _not_utf8(file, number) from None
    except (ValueError, RecursionError):
        raise _data_error(
            "NotJson", f"{file.name} line {number} is not JSON: mend that line, or use format text"
        ) from None
    if not isinstance(record, dict) or field not in record:
        raise _data_error(
            "MissingField",
            f'{file.name} line {number} has no field "{field}": mend that line, or set textField '
            "to the field that holds the text",
        )
    text = record[field]
    if not isinstance(text, str):
        raise _data_error(
            "NotText",
            f'{file.name} line {number}: field "{field}" is not a string: mend that line',
        )
    return _encodable(file, text, number)


def _encodable(file: SourceFile, text: str, number: int) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8(file, number) from None
    return text


def _not_utf8(file: SourceFile, line: int) -> TrainerError:
    return _data_error(
        "NotUtf8",
        f"{file.name} line {line} is not UTF-8: convert the file, or leave it out of the uri",
    )


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """What opening, listing and reading raise, as errors that name the file and the fix."""
    try:
        yield
    except (TrainerError, GeneratorExit):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _data_error(
            "NoSuchFile", f"{name} does not exist: correct the uri, or put the file there"
        ) from error
    except PermissionError as error:
        raise _data_error(
            "NotAllowed",
            f"reading {name} is not allowed: grant it, or set credentials.secretRef",
        ) from error
    except ImportError as error:
        raise _data_error(
            "NoSuchProtocol",
            f"{name} needs a package that this environment lacks "
            f"({getattr(error, 'name', None) or 'see the log'}): install it; in a cluster use an "
            "image that has it",
        ) from error
    except ValueError as error:
        raise _data_error(
            "BadUri", f"{name} is not a URI that fsspec understands: correct it"
        ) from error
    except Exception as error:  # botocore, aiohttp, zlib: each has a family of its own
        raise TrainerError(
            FailureClass.STORAGE,
            "SourceUnreadable",
            f"reading {name} failed ({type(error).__name__}): check the file and the server",
        ) from error


def _data_error(reason: str, message: str) -> TrainerError:
    return TrainerError(FailureClass.DATA, reason, message)
