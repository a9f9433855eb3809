"""The bytes of a checkpoint's files, from the disk, hashed on the way.

Promise: what is hashed is what the caller then holds, and it comes from the disk and not from the
kernel's copy, where the filesystem can do that. Files are read beside each other, and parts of a
file beside its hash: one core hashes no faster than a good disk reads.
Trap avoided: not every filesystem reads past its cache, and one that lets us ask may still refuse a
read; it is read through the cache then. And a disk that hangs must not look alive: `alive` is
called only as parts come in, by the caller's own thread.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event

import torch

from lmtraining_trainer.files import forget_copy

FILES_AT_ONCE = 2
#: Parts of one file: some are read while the one before them is hashed.
PARTS_AT_ONCE = 2
PART_BYTES = 2 * 1024 * 1024
#: Of memory, offsets and lengths where the cache is passed by: no disk has larger sectors.
ALIGNMENT_BYTES = 4096
#: Between two looks at how far reading is.
LOOK_SECONDS = 0.1


def read_hashed(
    paths: Sequence[Path], alive: Callable[[], None]
) -> dict[Path, tuple[torch.Tensor, str]]:
    """The bytes of each file and their SHA-256. Raises OSError."""
    comes_on = Event()
    with ThreadPoolExecutor(FILES_AT_ONCE, "checkpoint-file") as files:
        reading = {path: files.submit(_read_hashed, path, comes_on.set) for path in paths}
        pending = set(reading.values())
        while pending:
            _, pending = wait(pending, timeout=LOOK_SECONDS)
            if comes_on.is_set():
                comes_on.clear()
                alive()
        return {path: read.result() for path, read in reading.items()}


def _read_hashed(path: Path, comes_on: Callable[[], object]) -> tuple[torch.Tensor, str]:
    digest = hashlib.sha256(usedforsecurity=False)
    with (
        path.open("rb", buffering=0) as file,
        ThreadPoolExecutor(PARTS_AT_ONCE, "checkpoint-part") as readers,
    ):
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        room = _room(size)
        view = memoryview(room.numpy())  # type: ignore[arg-type]
        _pass_cache_by(descriptor)
        fill = partial(_fill, descriptor, view, size)
        for part in readers.map(fill, range(0, size, PART_BYTES)):
            digest.update(part)
            comes_on()
    return room[:size], digest.hexdigest()


def _room(size: int) -> torch.Tensor:
    """Memory for a file, up to the next multiple of ALIGNMENT_BYTES: of shape (bytes,)."""
    rounded = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    memory = torch.empty(rounded + ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT_BYTES
    return memory[start : start + rounded]


def _pass_cache_by(descriptor: int) -> None:
    forget_copy(descriptor)
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT)


def _fill(descriptor: int, view: memoryview, size: int, start: int) -> memoryview:
    """Read the part of a file of `size` bytes that begins at `start` to its place in `view`, and
    return it; shorter where the file ends. Raises OSError."""
    at, end = start, start + PART_BYTES
    while at < min(end, size) and (length := _read(descriptor, view[at:end], at)):
        at += length
    return view[start:at]


def _read(descriptor: int, room: memoryview, at: int) -> int:
    try:
        return os.preadv(descriptor, [room], at)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
        return os.preadv(descriptor, [room], at)
