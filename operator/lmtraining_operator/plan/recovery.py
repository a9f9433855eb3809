"""What follows a failure: a new attempt, when, or the end of the job.

Promise: what must fail again is not tried again; a disruption neither spends the budget nor waits
(the first time); the job ends with the reason and the evidence of its last failure.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from lmtraining_api.exits import FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import LastFailure, LMTrainingJobStatus, Restarts, Succeeded
from lmtraining_operator.plan import figures
from lmtraining_operator.plan.backoff import backoff_seconds, jitter
from lmtraining_operator.plan.failures import GANG_INCOMPLETE, UNCOUNTED

DISRUPTION_BACKOFF_SECONDS_MIN = 1.0
"""First wait between disruptions in a row, where recovery.backoffSeconds is 0."""
GANG_BACKOFF_SECONDS_MIN = 30.0
"""First wait of a gang that was released because some of its pods found no place."""
GANG_BACKOFF_SECONDS_MAX = 1800.0


@dataclass(frozen=True, kw_only=True)
class End:
    """The job is over."""

    reason: Succeeded
    message: str


def end_of_job(failure: LastFailure, *, restarts: Restarts, recovery: Recovery) -> End | None:
    """Why no further attempt is made, or None when one is."""
    failure_class = failure.failure_class
    if failure_class is FailureClass.DIVERGED:
        return End(reason=Succeeded.DIVERGED, message=failure.message)
    if not failure_class.may_retry:
        return End(
            reason=Succeeded.FAILED,
            message=figures.bounded(
                f"{failure.message} ({failure_class}: trying again would fail the same way)"
            ),
        )
    if failure_class in UNCOUNTED or restarts.counted < recovery.restarts_max:
        return None
    return End(
        reason=Succeeded.FAILED,
        message=figures.bounded(
            f"{failure.message} ({failure_class}; recovery.restartsMax {recovery.restarts_max} "
            "is spent)"
        ),
    )


def next_attempt_time(
    failure: LastFailure,
    *,
    status: LMTrainingJobStatus,
    recovery: Recovery,
    productive: bool,
    job_uid: str,
    now: datetime,
) -> datetime:
    """When the next attempt may start.

    `productive`: the failed attempt had made a step. A disruption of such an attempt, or the first
    one ever, is answered at once; disruptions in a row are not, lest a node that refuses every pod
    make a hot loop. A gang that found no place always waits, and not as long as the next one, lest
    two of them block each other again.
    """
    restarts = status.restarts
    if failure.failure_class not in UNCOUNTED:
        wait = backoff_seconds(
            first=recovery.backoff_seconds,
            limit=recovery.backoff_seconds_max,
            earlier=restarts.counted,
        )
        return now + timedelta(seconds=wait)
    uncounted = restarts.total - restarts.counted
    if failure.reason == GANG_INCOMPLETE:
        wait = backoff_seconds(
            first=GANG_BACKOFF_SECONDS_MIN, limit=GANG_BACKOFF_SECONDS_MAX, earlier=uncounted
        )
        return now + timedelta(seconds=wait * (1 + jitter(f"{job_uid}/{failure.attempt}")))
    if productive or uncounted == 0:
        return now
    wait = backoff_seconds(
        first=max(recovery.backoff_seconds, DISRUPTION_BACKOFF_SECONDS_MIN),
        limit=max(recovery.backoff_seconds_max, DISRUPTION_BACKOFF_SECONDS_MIN),
        earlier=uncounted - 1,
    )
    return now + timedelta(seconds=wait)


def without_clock_jump(
    when: datetime | None, *, failure: LastFailure | None, recovery: Recovery, now: datetime
) -> datetime | None:
    """The time of the next attempt, no later than the longest wait from now: it was written by a
    clock that may have been set back since."""
    longest = max(recovery.backoff_seconds_max, DISRUPTION_BACKOFF_SECONDS_MIN)
    if failure is not None and failure.reason == GANG_INCOMPLETE:
        longest = 2 * GANG_BACKOFF_SECONDS_MAX
    return None if when is None else min(when, now + timedelta(seconds=longest))


def with_restart(restarts: Restarts, failure_class: FailureClass) -> Restarts:
    """The counts after one more attempt that answers this failure."""
    by_reason = dict(restarts.by_reason)
    by_reason[failure_class] = by_reason.get(failure_class, 0) + 1
    return Restarts(
        total=restarts.total + 1,
        counted=restarts.counted + (failure_class not in UNCOUNTED),
        by_reason=by_reason,
    )
