"""Files that are either whole or absent.

Promise: whatever appears under a final name was written completely and synced first, together with
the directory entry that names it.
Trap avoided: a rename without the two fsyncs survives a crash of the process but not of the node.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_PREFIX = ".writing-"
#: Bytes read at a time when a file is hashed; between two of them the rank says that it lives.
HASH_CHUNK_BYTES = 8 * 1024 * 1024


def nothing() -> None:
    """The heartbeat of whoever has none."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` by one rename. Raises OSError, leaving the old file as it was."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: object) -> None:
    """Put `value` at `path` as JSON, by one rename. Raises OSError."""
    write_atomically(path, json_bytes(value))


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object at `path`, or None where there is no readable one."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def json_bytes(value: object) -> bytes:
    """`value` as JSON that is the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def temporary_beside(final: Path) -> Path:
    """A name for what will become `final`. Each call gives another, so that of two gangs that write
    the same thing neither meets the other's half."""
    return final.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{final.name}")


def publish_directory(
    temporary: Path,
    final: Path,
    check: Callable[[], None] = nothing,
    *,
    alive: Callable[[], None] = nothing,
) -> None:
    """Give a finished directory its final name. Raises OSError where that name is taken.

    `check` is called at the last moment, when all is synced, and may raise to prevent it; `alive`
    after each file.
    """
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            _sync_path(file)
            alive()
    sync_directory(temporary)
    check()
    temporary.rename(final)
    sync_directory(final.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory so that no half of it ever has its old name."""
    doomed = path.with_name(f".removing-{uuid.uuid4().hex}-{path.name}")
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def sha256_of_file(path: Path, alive: Callable[[], None] = nothing) -> str:
    """SHA-256 of the bytes on disk, in hexadecimal; `alive` is called between chunks."""
    digest = hashlib.sha256(usedforsecurity=False)
    with path.open("rb") as file:
        forget_copy(file.fileno())
        for chunk in _chunks(file):
            digest.update(chunk)
            alive()
    return digest.hexdigest()


def forget_copy(descriptor: int) -> None:
    """Ask the kernel to forget its copy of a file: reading that proves only that memory is
    intact."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sha256_of(content: bytes) -> str:
    """SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content, usedforsecurity=False).hexdigest()


def sync(descriptor: int) -> None:
    """fsync; a name of its own, so that a test can count and refuse it."""
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable."""
    _sync_path(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """One after the other, the kernel reading ahead meanwhile."""
    end = 0
    while chunk := file.read(HASH_CHUNK_BYTES):
        end += len(chunk)
        os.posix_fadvise(file.fileno(), end, 2 * HASH_CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
        yield chunk
