"""The journal: what must survive a rewind, one synced line per event.

Promise: an entry is on disk before the act it describes, entries are never changed, and the torn
last line that a crash leaves is dropped (its act cannot have happened).
Two threads may append, one after the other.
Trap avoided: appending after a torn line would join two entries into one that nobody can read; and
what a buffer could not write to a full disk, it writes again when the file is closed.
"""

import errno
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lmtraining_api import FailureClass, JournalEntry
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import sync, sync_directory
from lmtraining_trainer.run.fence import Fence

JOURNAL = "journal.jsonl"

Detail = dict[str, str | int | float | bool | None]


class Journal:
    """The journal of one run, opened by the lead of the gang that holds the fence."""

    def __init__(self, fence: Fence, send: Callable[[bytes], None] | None = None) -> None:
        """Read what there is and drop a torn end. `send` is given all that this gang has written,
        before each act, where the run lives elsewhere. Raises OSError, TrainerError(STORAGE)."""
        self._fence = fence
        self._path = fence.directory / JOURNAL
        self._lock = threading.Lock()
        self.entries: list[JournalEntry] = _read(self._path)
        self._send = send
        self._sent = b""

    def append(self, kind: str, step: int, **detail: str | int | float | bool | None) -> None:
        """Write and sync one entry. Raises TrainerError("Fenced") or OSError."""
        with self._lock:
            self._fence.check()
            entry = JournalEntry.model_validate(
                {
                    "sequence": len(self.entries),
                    "time": datetime.now(UTC),
                    "attempt": self._fence.attempt,
                    "round": self._fence.round,
                    "kind": kind,
                    "step": step,
                    "detail": detail,
                }
            )
            is_new = not self._path.exists()
            line = entry.model_dump_json(by_alias=True).encode() + b"\n"
            _append(self._path, line, lambda: self._share(line))
            if is_new:
                sync_directory(self._path.parent)
            self.entries.append(entry)

    def _share(self, line: bytes) -> None:
        if self._send is not None:
            self._send(self._sent + line)
            self._sent += line

    def details(self, kind: str) -> list[Detail]:
        """The details of all entries of a kind, oldest first."""
        return [entry.detail for entry in self.entries if entry.kind == kind]


def _append(path: Path, line: bytes, share: Callable[[], None]) -> None:
    """Write, sync and share a whole line, or nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        length, written = os.fstat(file.fileno()).st_size, 0
        try:
            written = file.write(line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file.fileno())
            share()
        except OSError:
            if os.fstat(file.fileno()).st_size == length + written:  # nobody wrote after us
                file.truncate(length)
            raise


def _read(path: Path) -> list[JournalEntry]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole, newline, torn = content.rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + len(newline))
    return [_entry(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]


def _entry(path: Path, number: int, line: bytes) -> JournalEntry:
    try:
        return JournalEntry.model_validate_json(line)
    except ValidationError as error:
        raise TrainerError(
            FailureClass.STORAGE,
            "JournalDamaged",
            f"{path} line {number} is damaged: restore the file, or start a new run with another "
            "checkpoint.path",
        ) from error
