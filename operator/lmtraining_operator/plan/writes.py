"""When is a status worth a write?

Promise: what changes in meaning is written at once, what merely advances at most once per
PROGRESS_SECONDS, and what is equal not at all. A step is visible no later than that after it was
taken. Trap avoided: status is watched by many, and each write is an etcd revision.
"""

from datetime import datetime, timedelta

from lmtraining_api.status import Goodput, LMTrainingJobStatus, Metrics, Progress

PROGRESS_SECONDS = 5.0
REPORT_TIME_SECONDS = 10.0
"""The same where nothing is new but the time of the report: training stands, or waits."""


def write_time(
    old: LMTrainingJobStatus,
    new: LMTrainingJobStatus,
    *,
    last_write: datetime | None,
    now: datetime,
) -> datetime | None:
    """When `new` should be written over `old`; None for never. A clock that was set back says
    nothing about how long ago the last write was."""
    if old == new:
        return None
    if last_write is None or last_write > now or _meaning(old) != _meaning(new):
        return now
    wait = REPORT_TIME_SECONDS if _timeless(old) == _timeless(new) else PROGRESS_SECONDS
    return max(now, last_write + timedelta(seconds=wait))


def _timeless(status: LMTrainingJobStatus) -> LMTrainingJobStatus:
    progress = status.progress.model_copy(update={"report_time": None})
    return status.model_copy(update={"progress": progress})


def _meaning(status: LMTrainingJobStatus) -> LMTrainingJobStatus:
    """The status without what changes all the time: figures, and the wording of conditions."""
    conditions = [c.model_copy(update={"message": ""}) for c in status.conditions]
    recovery = status.last_recovery
    return status.model_copy(
        update={
            "progress": Progress(),
            "metrics": Metrics(),
            "goodput": Goodput(),
            "conditions": conditions,
            "stability": status.stability.model_copy(update={"clipped_steps": 0}),
            "last_recovery": recovery.model_copy(update={"replayed_steps": 0})
            if recovery
            else None,
        }
    )
