"""Which documents repeat an earlier one, word for word.

Promise: memory is one bucket of hashes and one bit a document (125 MB for 10^9); the hashes lie on
disk.
Traps avoided: a set of all hashes in memory takes a hundred bytes a document. Marks in a mapped
file would keep its directory on NFS, where what is deleted in use only gets another name. Hashes of
8 bytes take two documents for one with a probability of n² / 2^65: 3 % for one pair among 10^9
documents.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 64
CHUNK_DOCUMENTS = 64 * 1024

_ENTRY = np.dtype([("hash", "<u8"), ("number", "<u8")])


@dataclass(frozen=True)
class Repeats:
    """For each document whether an earlier one is equal."""

    documents: int
    bits: NDArray[np.uint8]
    """[documents / 8], the first document in the lowest bit of the first."""

    def __contains__(self, number: int) -> bool:
        return bool(self.bits[number // 8] >> (number % 8) & 1)

    @property
    def count(self) -> int:
        """Documents that repeat one."""
        return int(np.bitwise_count(self.bits).sum())


def find_repeats(texts: Iterator[str], directory: Path) -> Repeats:
    """The repeats among `texts`; what is written into `directory` is not needed afterwards."""
    documents = _write_buckets(texts, directory)
    bits = np.zeros(-(-documents // 8), dtype=np.uint8)
    for bucket in range(BUCKETS):
        entries = np.fromfile(_path(directory, bucket), dtype=_ENTRY)
        _, firsts = np.unique(entries["hash"], return_index=True)
        numbers = np.delete(entries["number"], firsts)
        np.bitwise_or.at(bits, numbers // 8, np.left_shift(1, numbers % 8).astype(np.uint8))
    return Repeats(documents, bits)


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
