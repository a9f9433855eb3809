"""What follows a failure: a new attempt, when, or the end of the job.

Promise: what must fail again is not tried again, unless a rule of the job says so; a disruption
neither spends the budget nor waits (the first time); the job ends with the reason and the evidence
of its last failure.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from lmtraining_api.exits import FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import LastFailure, LMTrainingJobStatus, Restarts, Succeeded
from lmtraining_operator.plan import figures
from lmtraining_operator.plan.backoff import backoff_seconds, jitter
from lmtraining_operator.plan.failures import UNCOUNTED
from lmtraining_operator.plan.model import GANG_INCOMPLETE
from lmtraining_operator.plan.rules import rule_for

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


def is_counted(failure: LastFailure, recovery: Recovery) -> bool:
    """Whether another attempt or pod after this failure spends recovery.restartsMax."""
    found = rule_for(failure, recovery)
    if found is None:
        return failure.failure_class not in UNCOUNTED
    return found[1].restarts_max is None


def end_of_job(failure: LastFailure, *, restarts: Restarts, recovery: Recovery) -> End | None:
    """Why no further attempt is made, or None when one is."""
    failure_class = failure.failure_class
    why = _why_not(failure, restarts, recovery)
    if why is None:
        return None
    if failure_class is FailureClass.DIVERGED:
        return End(reason=Succeeded.DIVERGED, message=failure.message)
    message = figures.bounded(f"{failure.message} ({failure_class}{why})")
    return End(reason=Succeeded.FAILED, message=message)


def _why_not(failure: LastFailure, restarts: Restarts, recovery: Recovery) -> str | None:
    """Why it is not tried again, to stand behind the class."""
    found = rule_for(failure, recovery)
    if found is None and not failure.failure_class.may_retry:
        return ": trying again would fail the same way"
    if found is not None and found[1].action == "Fail":
        return f": recovery.rules[{found[0]}] says Fail"
    if found is not None and found[1].restarts_max is not None:
        limit, done = found[1].restarts_max, restarts.by_reason.get(failure.failure_class, 0)
        spent = f"; recovery.rules[{found[0]}].restartsMax {limit} is spent"
        return spent if done >= limit else None
    if not is_counted(failure, recovery) or restarts.counted < recovery.restarts_max:
        return None
    return f"; recovery.restartsMax {recovery.restarts_max} is spent"


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
    restarts, is_own = status.restarts, rule_for(failure, recovery) is not None
    if failure.reason != GANG_INCOMPLETE and (is_own or is_counted(failure, recovery)):
        of_class = restarts.by_reason.get(failure.failure_class, 0)
        wait = backoff_seconds(
            first=recovery.backoff_seconds,
            limit=recovery.backoff_seconds_max,
            earlier=restarts.counted if is_counted(failure, recovery) else of_class,
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


def with_restart(restarts: Restarts, failure: LastFailure, recovery: Recovery) -> Restarts:
    """The counts after one more attempt that answers this failure."""
    failure_class = failure.failure_class
    by_reason = dict(restarts.by_reason)
    by_reason[failure_class] = figures.count(by_reason.get(failure_class, 0) + 1)
    return Restarts(
        total=figures.count(restarts.total + 1),
        counted=figures.count(restarts.counted + is_counted(failure, recovery)),
        by_reason=by_reason,
    )


def renamed(restarts: Restarts, *, was: FailureClass, is_now: FailureClass) -> Restarts:
    """The counts after the newest failure has turned out to be of another class, of those that
    spend nothing either."""
    by_reason = dict(restarts.by_reason)
    left = by_reason.pop(was, 0) - 1
    if left > 0:
        by_reason[was] = left
    by_reason[is_now] = figures.count(by_reason.get(is_now, 0) + 1)
    return restarts.model_copy(update={"by_reason": by_reason})
