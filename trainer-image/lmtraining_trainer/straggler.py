"""Which rank is slower than the others at what it does alone.

Promise: the score of a rank is the seconds of the fastest rank over its own, in (0, 1], 1 being the
fastest (as the straggler detection of NVIDIA's resiliency extension has it). A rank is called a
straggler when that is low, comparison after comparison, and mending it would matter to the step.
All ranks come to the same figures.
Trap avoided: all ranks take as long for a step as the slowest, and wait for it within the backward
pass, so neither tells them apart. Measured is what nobody else has a part in: reading the batch,
and the passes up to the last backward one, the only one with an all-reduce.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from lmtraining_api import RankScore

STEPS_MEASURED = 50
STEPS_MIN = 10
"""Fewer tell nothing."""
SCORE_MIN = 0.7
STEP_SHARE_MIN = 0.05
"""What a straggler would save is more than this share of a step: half of a millisecond is no
reason to look at a node."""
COMPARISONS_MIN = 3
"""So many in a row make a straggler, and one that is good ends it."""


class OwnWork:
    """How long the newest steps of this process took of what the rank does alone."""

    def __init__(self) -> None:
        self._newest: deque[tuple[float, Callable[[], float]]] = deque(maxlen=STEPS_MEASURED)
        self._is_warm = False

    def add(self, data_seconds: float, passes_seconds: Callable[[], float]) -> None:
        """Another step. The passes are asked for at the next comparison: a device has come to
        their end then. The first step takes several times as long as any other."""
        if self._is_warm:
            self._newest.append((data_seconds, passes_seconds))
        self._is_warm = True

    @property
    def median_seconds(self) -> float | None:
        """None before there are enough."""
        if len(self._newest) < STEPS_MIN:
            return None
        return median(data + passes() for data, passes in self._newest)


@dataclass(frozen=True, kw_only=True)
class RankPace:
    """What one rank tells the others."""

    seconds: float
    """Of a step, for what it does alone."""
    step_seconds: float
    """Of a whole step."""


@dataclass(frozen=True, kw_only=True)
class Stragglers:
    """How many comparisons in a row each rank has been far behind."""

    behind: Mapping[int, int] = field(default_factory=dict)

    def after(self, paces: Sequence[RankPace]) -> "Stragglers":
        """After another comparison."""
        fastest = min(pace.seconds for pace in paces)
        return Stragglers(
            behind={
                rank: self.behind.get(rank, 0) + 1
                for rank, pace in enumerate(paces)
                if _is_far_behind(pace, fastest)
            }
        )

    def scored(self, paces: Sequence[RankPace]) -> list[RankScore]:
        """Of every rank, in order."""
        fastest = min(pace.seconds for pace in paces)
        return [
            RankScore(
                rank=rank,
                score=round(score(pace.seconds, fastest), 3),
                seconds=pace.seconds,
                is_straggler=self.behind.get(rank, 0) >= COMPARISONS_MIN,
            )
            for rank, pace in enumerate(paces)
        ]


def score(seconds: float, fastest: float) -> float:
    """How fast, beside the fastest."""
    return fastest / seconds if seconds > 0.0 else 1.0


def _is_far_behind(pace: RankPace, fastest: float) -> bool:
    gain = pace.seconds - fastest
    is_slow = score(pace.seconds, fastest) < SCORE_MIN
    return is_slow and gain > STEP_SHARE_MIN * pace.step_seconds
