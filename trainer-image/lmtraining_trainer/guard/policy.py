"""What is done about a step: the least remedy that can help, within its budget.

Promise: skip one bad batch; rewind when several of the newest were bad or the loss has drifted
away, since the weights are then suspect too; lower the rate when a rewind alone did not help; stop
when the budget is spent. Each remedy says what was found and what is done.
Trap avoided: a remedy without a budget. Steps that are skipped for ever train nothing, and a rewind
without end looks like progress.
"""

from dataclasses import dataclass
from enum import StrEnum

from lmtraining_api.training import Stability
from lmtraining_trainer.guard.detectors import (
    Fault,
    Finding,
    Observation,
    bad_batch,
    clip_norm,
    divergence,
)
from lmtraining_trainer.guard.journal import Remedies
from lmtraining_trainer.guard.window import Window

DEVICE_FAULTS_MAX = 3
"""Faults of devices in one attempt after which the machines are not trusted any more."""
BAD_BATCHES_MAX = 3
"""So many bad batches among the newest are a bad stretch, no accident."""


class Remedy(StrEnum):
    """What is done with a batch."""

    ACCEPT = "Accept"
    SKIP = "Skip"
    REWIND = "Rewind"
    STOP = "Stop"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The decision about one batch, and the window after it."""

    remedy: Remedy
    window: Window
    finding: Finding | None = None
    clip_norm: float = 0.0
    """For a batch that is accepted."""


def judge(
    window: Window,
    seen: Observation,
    *,
    limits: Stability,
    fixed_clip_norm: float,
    remedies: Remedies,
) -> Judgement:
    """What to do with the batch that was just seen."""
    finding = bad_batch(window, seen, limits)
    if finding is None and seen.position in remedies.positions:
        finding = Finding(fault=Fault.KNOWN_BAD, message="the batch was skipped before")
    if finding is None:
        clip = clip_norm(window, limits, fixed_clip_norm)
        after = window.with_good(
            position=seen.position, loss=seen.loss, gradient_norm=min(seen.gradient_norm, clip)
        )
        drift = divergence(after, limits)
        if drift is None:
            return Judgement(remedy=Remedy.ACCEPT, window=after, clip_norm=clip)
        return Judgement(remedy=beyond_a_skip(remedies, limits), window=after, finding=drift)
    after = window.with_bad(seen.position)
    return Judgement(remedy=_for_bad_batch(after, remedies, limits), window=after, finding=finding)


def _for_bad_batch(window: Window, remedies: Remedies, limits: Stability) -> Remedy:
    position = window.bad_positions[-1]
    known = position in remedies.positions
    if not known and remedies.skips >= limits.skipped_steps_max:
        return beyond_a_skip(remedies, limits)
    if len(window.bad_positions) >= BAD_BATCHES_MAX and limits.rewinds_max > 0:
        return beyond_a_skip(remedies, limits)
    return Remedy.SKIP


def beyond_a_skip(remedies: Remedies, limits: Stability) -> Remedy:
    """The remedy where the weights are suspect."""
    return Remedy.REWIND if remedies.rewinds < limits.rewinds_max else Remedy.STOP
