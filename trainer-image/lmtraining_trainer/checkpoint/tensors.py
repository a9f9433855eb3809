"""Named tensors to and from a safetensors file.

Promise: the hash that goes into the manifest is that of the memory, taken while it is written, so
that reading it back proves something; and writing needs no second copy of the tensors. While one
part is hashed the one before it is written and synced, so a writer without a pause is as fast as
the disk.
Trap avoided: the library's writer returns neither hash nor sign of life, and its `save` builds the
whole file in memory; what its reader gives is the file itself, mapped, and goes with it. One sync
of a large file at its end can take minutes without a sign of life.
"""

import errno
import hashlib
import json
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.files import HASH_CHUNK_BYTES, sync
from lmtraining_trainer.run.layout import FileEntry

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_OF = {name: dtype for dtype, name in _DTYPES.items()}

#: Bytes that one sync has to bring to disk at most: about a second of a slow one.
SYNC_BYTES = 64 * 1024 * 1024
#: One copies to the kernel while the other waits for the disk.
DISK_THREADS = 2


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], pace: Pace) -> FileEntry:
    """Write and sync `tensors`; `pace` is asked between chunks and syncs. Raises OSError."""
    digest = hashlib.sha256(usedforsecurity=False)
    header = _header(tensors)
    with path.open("wb", buffering=0) as file, _Disk(file.fileno()) as disk:
        for part in chain([header], (_bytes_of(tensor) for tensor in tensors.values())):
            for start in range(0, len(part), HASH_CHUNK_BYTES):
                chunk = part[start : start + HASH_CHUNK_BYTES]
                disk.put(chunk, here=pace.is_throttled)  # where its time counts
                digest.update(chunk)
                pace.turn()
        disk.sync()
        disk.drain()
        pace.turn()
    return FileEntry(size=disk.size, sha256=digest.hexdigest())


class _Disk:
    """A file that is written and synced beside its caller."""

    def __init__(self, descriptor: int) -> None:
        self.size = 0
        """Bytes that were put."""
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(DISK_THREADS, "checkpoint-disk")
        self._pending: deque[Future[None]] = deque()
        self._unsynced = 0

    def put(self, chunk: memoryview, *, here: bool) -> None:
        """Write `chunk` at the end, in the caller's own time where it is to be done `here`. Raises
        the OSError of an earlier one."""
        if here:
            self.drain()
            _write(self._descriptor, chunk, self.size)
        else:
            writing = self._pool.submit(_write, self._descriptor, chunk, self.size)
            self._pending.append(writing)
        self.size += len(chunk)
        self._unsynced += len(chunk)
        if self._unsynced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Bring to disk what is written, while the next part is put. Raises OSError."""
        self.drain()
        self._unsynced = 0
        self._pending.append(self._pool.submit(sync, self._descriptor))

    def drain(self) -> None:
        """Until all is done. Raises OSError."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def write_bytes(path: Path, content: bytes) -> FileEntry:
    """Write and sync `content`. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        _sync(file)
    sha256 = hashlib.sha256(content, usedforsecurity=False).hexdigest()
    return FileEntry(size=len(content), sha256=sha256)


def _write(descriptor: int, chunk: memoryview, offset: int) -> None:
    while len(chunk):
        written = os.pwrite(descriptor, chunk, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        chunk, offset = chunk[written:], offset + written


def _sync(file: BinaryIO) -> None:
    file.flush()
    sync(file.fileno())


def tensors_in(content: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a file that holds `content`, of which they are parts."""
    begin = 8 + int.from_bytes(content[:8].numpy().tobytes(), "little")
    header = json.loads(content[8:begin].numpy().tobytes())
    return {name: _part(content[begin:], entry) for name, entry in header.items()}


def _part(data: torch.Tensor, entry: dict[str, Any]) -> torch.Tensor:
    dtype = _DTYPE_OF[entry["dtype"]]
    start, end = entry["data_offsets"]
    part = data[start:end]
    is_aligned = part.storage_offset() % dtype.itemsize == 0
    return (part if is_aligned else part.clone()).view(dtype).reshape(entry["shape"])


def _header(tensors: dict[str, torch.Tensor]) -> memoryview:
    """Length and JSON that begin a file (github.com/huggingface/safetensors, "Format")."""
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    content = json.dumps(entries).encode()
    content += b" " * (-len(content) % 8)
    return memoryview(len(content).to_bytes(8, "little") + content)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
