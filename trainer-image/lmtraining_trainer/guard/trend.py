"""Does the loss still fall?

Promise: a handful of numbers tell it for a run of any length: the means of up to eight stretches of
equal length, which is doubled whenever they are full. So "still" is measured against the age of the
run, and a power law, which falls ever slower, is no plateau.
Trap avoided: a fixed number of steps without a new lowest loss. Late in a run noise alone takes
longer than that between two of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from typing import Any

BLOCK_STEPS_MIN = 128
BLOCKS_MAX = 8
FLAT_BLOCKS = 3
"""So many of the newest stretches must be level."""
FLAT_NATS = 0.005
"""A fall below this is none."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """The mean losses of the good steps, oldest first."""

    block_steps: int = BLOCK_STEPS_MIN
    means: tuple[float, ...] = ()
    filling_sum: float = 0.0
    """Of the stretch that is not full yet."""
    filling_steps: int = 0

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Trend":
        """From JSON; fields of a newer version are ignored."""
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        return cls(**known | {"means": tuple(value.get("means", ()))})

    @property
    def flat_steps(self) -> int:
        """Good steps since the loss last fell; 0 while it falls, and before enough is known."""
        level = takewhile(lambda mean: mean - self.means[-1] < FLAT_NATS, reversed(self.means))
        blocks = sum(1 for _ in level)
        return blocks * self.block_steps + self.filling_steps if blocks >= FLAT_BLOCKS else 0

    def with_loss(self, loss: float) -> "Trend":
        """After one more good step."""
        total, steps = self.filling_sum + loss, self.filling_steps + 1
        if steps < self.block_steps:
            return replace(self, filling_sum=total, filling_steps=steps)
        if len(self.means) < BLOCKS_MAX:
            means = (*self.means, total / steps)
            return replace(self, means=means, filling_sum=0.0, filling_steps=0)
        pairs = zip(self.means[::2], self.means[1::2], strict=True)
        return Trend(
            block_steps=2 * self.block_steps,
            means=tuple((one + other) / 2 for one, other in pairs),
            filling_sum=total,
            filling_steps=steps,
        )
