"""The order of the samples: arithmetic, not state.

Promise: which sequence is sample `i` depends on (seed, i, number of sequences) alone, so that a
resume is one integer, skipping a window is an addition, and every world size reads the same
samples. Each epoch visits each sequence once.
Trap avoided: a shuffled index array is memory that grows with the data and must be rebuilt, or
worse restored, before the first step.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

FEISTEL_ROUNDS = 6


def sample_order(seed: int | str, samples: NDArray[np.int64], sequences: int) -> NDArray[np.int64]:
    """The sequence that each global sample index stands for.

    `samples` has any shape, values >= 0; the answer has the same shape, values in [0, sequences).
    """
    epochs, positions = np.divmod(samples, sequences)
    order = np.empty_like(samples)
    for epoch in sorted(set(epochs.ravel().tolist())):
        of_epoch = epochs == epoch
        order[of_epoch] = _permuted(positions[of_epoch], sequences, _keys(seed, epoch))
    return order


def _permuted(positions: NDArray[np.int64], size: int, keys: list[np.uint64]) -> NDArray[np.int64]:
    """A keyed permutation of [0, size), evaluated at `positions`.

    A Feistel network permutes the next power of four; values that fall outside are sent through it
    again until they come back inside (cycle walking), which keeps it a permutation.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half_bits, keys)
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << bits) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014); wraps around by design."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(seed: int | str, epoch: int) -> list[np.uint64]:
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return [np.uint64(key) for key in np.frombuffer(digest, dtype="<u8")]
