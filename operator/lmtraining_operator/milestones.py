"""What one write of a job's status has told for the first time, for the operator's histograms.

Promise: each start, recovery and restart is counted once, by the operator that wrote it: a write
names the resourceVersion it is based on, so no other write told the same. A write whose answer was
lost is not counted. A failure that is called by a better name later is no other restart.
Trap avoided: durations measured by the process are lost with it; these are differences of times in
status, and right after a restart of the operator as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmtraining_api.conditions import Succeeded
from lmtraining_api.status import ConditionType, LMTrainingJobStatus

_ENDS = frozenset(str(state) for state in Succeeded if state.is_terminal)


@dataclass(frozen=True, kw_only=True)
class Milestones:
    """What is new; None or empty where nothing is."""

    queue_seconds: float | None = None
    """From acceptance until all pods had a node."""
    start_seconds: float | None = None
    """From there until all pods ran."""
    recovery_seconds: float | None = None
    """From a failure until the first step after it."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """New attempts and replaced pods, by the class of the failure."""
    end: str = ""
    """The state that the job ended in."""


def milestones(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> Milestones:
    """What `new` tells that `old` did not."""
    is_renamed = new.restarts.total == old.restarts.total
    return Milestones(
        queue_seconds=_queue_seconds(old, new),
        start_seconds=_start_seconds(old, new),
        recovery_seconds=_recovery_seconds(old, new),
        restarts={
            str(failure_class): count - old.restarts.by_reason.get(failure_class, 0)
            for failure_class, count in new.restarts.by_reason.items()
            if not is_renamed and count > old.restarts.by_reason.get(failure_class, 0)
        },
        end=_end(new) if not _end(old) else "",
    )


def _end(status: LMTrainingJobStatus) -> str:
    condition = status.condition(ConditionType.SUCCEEDED)
    return condition.reason if condition and condition.reason in _ENDS else ""


def _queue_seconds(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> float | None:
    if old.first_placed_time or not new.first_placed_time or not new.start_time:
        return None
    return max((new.first_placed_time - new.start_time).total_seconds(), 0.0)


def _start_seconds(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> float | None:
    if old.first_run_time or not new.first_run_time or not new.first_placed_time:
        return None
    return max((new.first_run_time - new.first_placed_time).total_seconds(), 0.0)


def _recovery_seconds(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> float | None:
    mended = new.last_recovery
    if mended is None:
        return None
    if old.last_recovery and old.last_recovery.fault_time == mended.fault_time:
        return None
    return max((mended.first_step_time - mended.fault_time).total_seconds(), 0.0)
