"""What the guard remembers of the steps behind it.

Promise: only good, finite steps enter it (P6), so that one bad value neither blinds the detectors
nor alarms them for the next hundred steps; it is part of the training state, so a resumed run
judges as an uninterrupted one would (P7).
Trap avoided: a window that holds the point under judgement. A single spike then raises its own
threshold, and one of 10 looks like one of 1,000.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import median
from typing import Any

from lmtraining_trainer.guard.trend import Trend

LOSSES_KEPT = 128
LEVEL_STEPS = 32
"""Steps whose median loss is the present level."""
UPDATES_KEPT = 32
"""Samples of the update's size."""
BATCHES_KEPT = 16
"""Batches, good and bad, among which bad ones are counted."""
#: A normal distribution's standard deviation is so many times its median absolute deviation.
_DEVIATION_OF_MAD = 1.4826
#: Weight of the newest step in the running mean and variance of the gradient norm.
_NORM_WEIGHT = 0.03


def deviation_of(values: Sequence[float]) -> float:
    """Their standard deviation, as their median absolute deviation tells it."""
    center = median(values)
    return _DEVIATION_OF_MAD * median(abs(value - center) for value in values)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The newest steps, as the detectors need them."""

    losses: tuple[float, ...] = ()
    """Losses of the newest good steps, nats per token, oldest first."""
    best_level: float | None = None
    """The lowest level that the loss ever had."""
    norm_mean: float = 0.0
    """Running mean of the logarithm of the gradient norm: norms are skewed, their logarithms are
    nearly symmetric."""
    norm_variance: float = 0.0
    norm_count: int = 0
    positions: tuple[int, ...] = ()
    """Where the newest batches began, good and bad, oldest first."""
    bad_positions: tuple[int, ...] = ()
    """Those of them that were bad."""
    good_steps: int = 0
    """Good steps since the newest bad one."""
    trend: Trend = field(default_factory=Trend)
    """Whether the loss still falls."""
    update_logs: tuple[float, ...] = ()
    """Logarithms of the sampled updates' size beside the weights', without the rate."""
    signal: float | None = None
    """Running mean of the squared norm of the true gradient, as sampled steps tell it."""
    noise: float | None = None
    """The same of the trace of the covariance of one sequence's gradient."""

    def json(self) -> dict[str, Any]:
        """As JSON keeps it; floats come back to the last bit."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Window":
        """From JSON; fields of a newer version are ignored."""
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        lists = {name: tuple(item) for name, item in known.items() if isinstance(item, list)}
        return cls(**known | lists | {"trend": Trend.of_json(value.get("trend", {}))})

    @property
    def center(self) -> float:
        """Median of the losses."""
        return median(self.losses)

    @property
    def deviation(self) -> float:
        """Standard deviation of the losses, as their median absolute deviation tells it."""
        return deviation_of(self.losses)

    @property
    def level(self) -> float | None:
        """Median of the newest losses; None until there are enough."""
        recent = self.losses[-LEVEL_STEPS:]
        return median(recent) if len(recent) == LEVEL_STEPS else None

    def with_good(self, *, position: int, loss: float, gradient_norm: float) -> "Window":
        """After a good step. `gradient_norm` is the norm after clipping, above 0."""
        seen = self._with_batch(position)
        grown = replace(seen, losses=(*self.losses, loss)[-LOSSES_KEPT:])
        level = grown.level
        if level is not None:
            grown = replace(grown, best_level=min(level, grown.best_level or math.inf))
        delta = math.log(gradient_norm) - self.norm_mean
        # A plain mean at first, so that the first steps weigh no more than the others.
        weight = max(_NORM_WEIGHT, 1.0 / (self.norm_count + 1))
        return replace(
            grown,
            norm_mean=self.norm_mean + weight * delta,
            norm_variance=(1.0 - weight) * (self.norm_variance + weight * delta * delta),
            norm_count=self.norm_count + 1,
            good_steps=self.good_steps + 1,
            trend=self.trend.with_loss(loss),
        )

    def with_update(self, log: float) -> "Window":
        """After a sampled update of usual size."""
        return replace(self, update_logs=(*self.update_logs, log)[-UPDATES_KEPT:])

    def with_bad(self, position: int) -> "Window":
        """After a batch whose gradients were dropped; its numbers are forgotten."""
        seen = self._with_batch(position)
        return replace(seen, bad_positions=(*seen.bad_positions, position), good_steps=0)

    def _with_batch(self, position: int) -> "Window":
        positions = (*self.positions, position)[-BATCHES_KEPT:]
        bad = tuple(bad for bad in self.bad_positions if bad in positions)
        return replace(self, positions=positions, bad_positions=bad)
