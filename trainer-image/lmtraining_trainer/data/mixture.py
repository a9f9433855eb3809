"""Sources in the shares that a person asked for: arithmetic, not state.

Promise: which sequence of which source is sample `i` depends on (seed, i, size and weight of each
source) alone, so every world size reads the same samples and a resume is one integer (P7). Of each
SLOTS samples in a row every source has exactly its share; each goes through all its sequences once
before it repeats one.
Trap avoided: drawing a source at random, and counting how far each has come, is state that a resume
must restore.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmtraining_trainer.data.order import sample_order

SLOTS = 4096


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How many sequences each source has, and how often it is read."""

    sequences: tuple[int, ...]
    """Sequences of each source, at least one, [sources]."""
    slots: tuple[int, ...]
    """How many of SLOTS samples are of each source, at least one, [sources]."""

    @classmethod
    def of(cls, sequences: Sequence[int], weights: Sequence[float]) -> "Mixture":
        """Sources with so many `sequences` each, in shares of their `weights`."""
        return cls(sequences=tuple(sequences), slots=slots_of(weights))

    def sequences_of(self, seed: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequence that each global sample index stands for, counted through all sources; of
        the shape of `samples`."""
        blocks = samples // SLOTS
        places = sample_order(f"{seed}/mixture", samples, SLOTS)
        ends = np.cumsum(self.slots)
        of_source = np.searchsorted(ends, places, side="right")
        numbers = np.empty_like(samples)
        for source, slots in enumerate(self.slots):
            here = of_source == source
            if not here.any():
                continue
            read_before = blocks[here] * slots + places[here] - (ends[source] - slots)
            order = sample_order(f"{seed}/{source}", read_before, self.sequences[source])
            numbers[here] = sum(self.sequences[:source]) + order
        return numbers


def sequences_in(tokens: int, sequence_length: int) -> int:
    """Whole sequences of so many tokens, each with the token after it."""
    return max(0, tokens - 1) // sequence_length


def slots_of(weights: Sequence[float]) -> tuple[int, ...]:
    """SLOTS in shares of `weights`, by largest remainder, at least one each."""
    exact = np.array(weights) / sum(weights) * (SLOTS - len(weights))
    slots = np.floor(exact).astype(int) + 1
    largest = np.argsort(np.floor(exact) - exact, kind="stable")
    slots[largest[: SLOTS - slots.sum()]] += 1
    return tuple(slots.tolist())
