"""When is a status worth a write, and a report worth a question?

Promise: what changes in meaning is written at once, what merely advances at most once per
`Pace.write_seconds`, and what is equal not at all. A step is visible no later than that after it
was taken. Trap avoided: status is watched by many, and each write is an etcd revision and costs the
API server 11 to 18 ms of CPU, so the writes of all jobs share a budget; Prometheus, which asks the
pods itself, sees every step however many jobs there are.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from lmtraining_api.status import Goodput, LMTrainingJobStatus, Metrics, Progress

PROGRESS_SECONDS = 5.0
PROGRESS_SECONDS_MAX = 60.0
PROGRESS_WRITES_PER_SECOND = 20.0
"""Of all jobs together."""
REPORT_SECONDS_MIN = 2.0
REPORT_SECONDS_MAX = 5.0
REPORTS_PER_SECOND = 100.0
"""Of all jobs together, as long as REPORT_SECONDS_MAX allows."""
LOOK_SECONDS_MIN = 30.0
LOOK_SECONDS_MAX = 120.0
LOOKS_PER_SECOND = 10.0
"""At which nothing has changed, of all jobs together, as long as LOOK_SECONDS_MAX allows. Each is
two requests, and there for an event that was missed."""
REPORT_TIME_SECONDS = 10.0
"""The same where nothing is new but the time of the report: training stands, or waits."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often a job is asked, its progress is written, and it is looked at though nothing has
    woken it, in seconds."""

    write_seconds: float = PROGRESS_SECONDS
    report_seconds: float = REPORT_SECONDS_MIN
    look_seconds: float = LOOK_SECONDS_MIN

    @classmethod
    def of(cls, jobs: int, *, is_crowded: bool = False) -> "Pace":
        """That of so many unfinished jobs: slower the more there are, within limits. While it
        `is_crowded`, others wait to be looked at for the first time, and progress comes last."""
        write = min(max(jobs / PROGRESS_WRITES_PER_SECOND, PROGRESS_SECONDS), PROGRESS_SECONDS_MAX)
        write = PROGRESS_SECONDS_MAX if is_crowded else write
        report = min(max(jobs / REPORTS_PER_SECOND, REPORT_SECONDS_MIN), REPORT_SECONDS_MAX)
        report = REPORT_SECONDS_MAX if is_crowded else report
        look = min(max(jobs / LOOKS_PER_SECOND, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)
        return cls(write_seconds=write, report_seconds=report, look_seconds=look)


def write_time(
    old: LMTrainingJobStatus,
    new: LMTrainingJobStatus,
    *,
    last_write: datetime | None,
    now: datetime,
    pace: Pace,
) -> datetime | None:
    """When `new` should be written over `old`; None for never. A clock that was set back says
    nothing about how long ago the last write was."""
    if old == new:
        return None
    if last_write is None or last_write > now or _meaning(old) != _meaning(new):
        return now
    is_idle = _timeless(old) == _timeless(new)
    wait = max(pace.write_seconds, REPORT_TIME_SECONDS if is_idle else 0.0)
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
