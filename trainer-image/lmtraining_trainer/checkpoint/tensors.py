"""Named tensors to and from a safetensors file.

Promise: the hash that goes into the manifest is that of the memory, taken while it is written, so
that reading it back proves something; and writing needs no second copy of the tensors.
Trap avoided: the library's writer returns neither hash nor sign of life, and its `save` builds the
whole file in memory. One sync of a large file at its end can take minutes without a sign of life.
Reading is the library's.
"""

import hashlib
import json
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch

from lmtraining_trainer.checkpoint.layout import FileEntry
from lmtraining_trainer.files import HASH_CHUNK_BYTES, sync

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


#: Bytes that one sync has to bring to disk at most: about a second of a slow one.
SYNC_BYTES = 64 * 1024 * 1024


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], alive: Callable[[], None]
) -> FileEntry:
    """Write and sync `tensors`; `alive` is called between chunks and syncs. Raises OSError."""
    digest = hashlib.sha256(usedforsecurity=False)
    header = _header(tensors)
    size = synced = 0
    with path.open("wb") as file:
        for part in chain([header], (_bytes_of(tensor) for tensor in tensors.values())):
            for start in range(0, len(part), HASH_CHUNK_BYTES):
                chunk = part[start : start + HASH_CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
                if size - synced >= SYNC_BYTES:
                    _sync(file)
                    synced = size
                alive()
        _sync(file)
        alive()
    return FileEntry(size=size, sha256=digest.hexdigest())


def write_bytes(path: Path, content: bytes) -> FileEntry:
    """Write and sync `content`. Raises OSError."""
    with path.open("wb") as file:
        file.write(content)
        _sync(file)
    sha256 = hashlib.sha256(content, usedforsecurity=False).hexdigest()
    return FileEntry(size=len(content), sha256=sha256)


def _sync(file: BinaryIO) -> None:
    file.flush()
    sync(file.fileno())


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU. Raises OSError, SafetensorError."""
    tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(os.fspath(path))
    return tensors


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
