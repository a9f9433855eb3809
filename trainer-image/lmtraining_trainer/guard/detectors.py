"""What can be wrong with a step: one pure function per question.

Promise: each answers from the window and the step's numbers alone, knows what it needs before it
may speak, and its finding carries the numbers that a person would ask for.
Trap avoided: comparing with NaN is always false, so a detector that is asked about a value that is
not finite says that all is well. `non_finite` is asked first, and ends the questions.

Formulas: median and median absolute deviation (Leys et al., J. Exp. Soc. Psych. 49, 2013); z-score
of the logarithm of the norm, after ZClip (arXiv 2504.02507), which takes it of the norm itself.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from lmtraining_api.training import Stability
from lmtraining_trainer.guard.window import Window

SPIKE_LOSSES_MIN = 16
"""Losses that must be known before one can be called a spike."""
SPIKE_NATS_MIN = 0.5
"""A rise below this is no spike, however quiet the loss was."""
SPIKE_OF_HIGHEST = 1.5
"""Nor is one below so many times the highest rise among the good steps: data of two kinds have two
medians, of which the deviation knows only one."""
CLIP_NORMS_MIN = 25
"""Norms that must be known before the clipping follows them."""
CLIP_DEVIATIONS = 2.5
CLIP_DEVIATION_MIN = 0.1
"""Least standard deviation assumed of the logarithm of the norm."""


class Fault(StrEnum):
    """What was found."""

    NON_FINITE = "NonFinite"
    LOSS_SPIKE = "LossSpike"
    ZERO_GRADIENT = "ZeroGradient"
    DIVERGENCE = "Divergence"
    EXPLODING_UPDATE = "ExplodingUpdate"
    REPLICA_DIVERGENCE = "ReplicaDivergence"
    SILENT_CORRUPTION = "SilentCorruption"
    REQUESTED = "Requested"
    """Nothing: a person asked for the rewind."""
    KNOWN_BAD = "KnownBad"
    """The journal says that this batch was found bad before."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault, in words that need no other context."""

    fault: Fault
    message: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One batch after its backward pass, as all ranks have agreed on it."""

    step: int
    """Optimizer steps done before it."""
    position: int
    """Global sample index at which the batch begins."""
    loss: float
    gradient_norm: float
    """Global norm before clipping."""
    is_finite: bool
    """On every rank."""


def bad_batch(window: Window, seen: Observation, limits: Stability) -> Finding | None:
    """Why the gradients of this batch must not be used, or None."""
    return non_finite(seen) or zero_gradient(seen) or loss_spike(window, seen, limits)


def non_finite(seen: Observation) -> Finding | None:
    if seen.is_finite:
        return None
    return Finding(
        fault=Fault.NON_FINITE,
        message=f"loss {seen.loss:.4g} or gradient norm {seen.gradient_norm:.4g} is not finite on "
        "some rank",
    )


def zero_gradient(seen: Observation) -> Finding | None:
    """A language model's gradient is never exactly zero, unless something was cut off."""
    if seen.gradient_norm > 0.0:
        return None
    return Finding(fault=Fault.ZERO_GRADIENT, message="every gradient is exactly zero")


def loss_rise_max(window: Window, limits: Stability) -> tuple[float, float]:
    """The median of the losses, and how far above it a loss is no spike."""
    if len(window.losses) < SPIKE_LOSSES_MIN:
        return 0.0, math.inf
    center = window.center
    highest = max(window.losses) - center
    return center, max(
        limits.loss_spike_deviations * window.deviation, SPIKE_OF_HIGHEST * highest, SPIKE_NATS_MIN
    )


def loss_spike(window: Window, seen: Observation, limits: Stability) -> Finding | None:
    center, limit = loss_rise_max(window, limits)
    rise = seen.loss - center
    if rise <= limit:
        return None
    return Finding(
        fault=Fault.LOSS_SPIKE,
        message=f"loss {seen.loss:.3f} is {rise:.3f} above the median {center:.3f} of the "
        f"last {len(window.losses)} good steps; the limit is {limit:.3f}",
    )


def divergence(window: Window, limits: Stability) -> Finding | None:
    """A loss that rises slowly enough to pass for no spike."""
    level, best = window.level, window.best_level
    if level is None or best is None or level - best <= limits.divergence_nats:
        return None
    return Finding(
        fault=Fault.DIVERGENCE,
        message=f"the loss has risen to {level:.3f} from its best level {best:.3f}, by more than "
        f"stability.divergenceNats {limits.divergence_nats:g}",
    )


def clip_norm(window: Window, limits: Stability, fixed: float) -> float:
    """The norm to clip to: the fixed one, or a lower one where this gradient is out of the
    usual."""
    if not limits.adaptive_clip or window.norm_count < CLIP_NORMS_MIN:
        return fixed
    deviation = max(math.sqrt(window.norm_variance), CLIP_DEVIATION_MIN)
    return min(fixed, math.exp(window.norm_mean + CLIP_DEVIATIONS * deviation))
