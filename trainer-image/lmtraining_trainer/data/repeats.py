"""Which documents repeat an earlier one, word for word.

Promise: memory is bounded by one bucket of hashes, whatever the number of documents: the hashes lie
on disk, and so do the marks, one byte a document.
Trap avoided: a set of all hashes in memory takes a hundred bytes a document. Hashes of 8 bytes take
two documents for one with a probability of n² / 2^65: 3 % for one pair among 10^9 documents.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 64
CHUNK_DOCUMENTS = 64 * 1024

_ENTRY = np.dtype([("hash", "<u8"), ("number", "<u8")])


def find_repeats(texts: Iterator[str], directory: Path) -> NDArray[np.bool_]:
    """For each document whether an earlier one is equal, [documents], in a file in `directory`,
    which may be deleted while the answer is in use."""
    count = _write_buckets(texts, directory)
    if not count:
        return np.zeros(0, dtype=np.bool_)
    marks = np.memmap(directory / "repeats", dtype=np.bool_, mode="w+", shape=(count,))
    for bucket in range(BUCKETS):
        entries = np.fromfile(_path(directory, bucket), dtype=_ENTRY)
        _, firsts = np.unique(entries["hash"], return_index=True)
        marks[np.delete(entries["number"], firsts)] = True
    return marks


def _write_buckets(texts: Iterator[str], directory: Path) -> int:
    """Hash and number of each document, in the file of the hash's bucket, in order. Their count."""
    count = 0
    hashes = (_hash(text) for text in texts)
    with ExitStack() as stack:
        files: list[Any] = [
            stack.enter_context(_path(directory, bucket).open("wb")) for bucket in range(BUCKETS)
        ]
        while chunk := list(islice(hashes, CHUNK_DOCUMENTS)):
            entries = np.empty(len(chunk), dtype=_ENTRY)
            entries["hash"] = chunk
            entries["number"] = np.arange(count, count + len(chunk))
            buckets = entries["hash"] % np.uint64(BUCKETS)
            for bucket, file in enumerate(files):
                file.write(entries[buckets == bucket].tobytes())
            count += len(chunk)
    return count


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _path(directory: Path, bucket: int) -> Path:
    return directory / f"bucket-{bucket}"
