"""What follows a failure, and what it costs: a new attempt, when, or the end of the job.

`answer` alone decides that; `charged` and `renamed` write it down.
Promise: what must fail again is not tried again, unless a rule of the job says so; a disruption
neither spends the budget nor waits (the first time); the job ends with the reason and the evidence
of its last failure. A failure that turns out to be of another class has cost no more than if that
had been known at once: neither a budget, nor a budget of a rule, nor a node.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from lmtraining_api.exits import FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import LastFailure, LMTrainingJobStatus, Restarts, Succeeded
from lmtraining_operator.plan import figures, nodes
from lmtraining_operator.plan.backoff import backoff_seconds, jitter
from lmtraining_operator.plan.failures import UNCOUNTED
from lmtraining_operator.plan.model import GANG_INCOMPLETE
from lmtraining_operator.plan.rules import Found, rule_for

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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one failure costs the job, and what is done about it."""

    end: End | None
    """Why no further attempt is made; None when one is."""
    is_counted: bool
    """Whether the next attempt or pod spends recovery.restartsMax."""
    why_avoid_node: str
    """Why new pods keep away from its node; empty when they do not."""
    wait_seconds: float
    """Time until the next attempt or pod may start."""


def answer(
    failure: LastFailure,
    *,
    status: LMTrainingJobStatus,
    recovery: Recovery,
    productive: bool,
    job_uid: str,
) -> Answer:
    """The answer to a failure that `status` has not been charged with yet.

    `productive`: the failed attempt had made a step.
    """
    found = rule_for(failure, recovery)
    return Answer(
        end=_end_of_job(failure, found, restarts=status.restarts, recovery=recovery),
        is_counted=_is_counted(failure, found),
        why_avoid_node=nodes.why_to_avoid(status, failure, found),
        wait_seconds=_wait_seconds(
            failure,
            found,
            restarts=status.restarts,
            recovery=recovery,
            productive=productive,
            job_uid=job_uid,
        ),
    )


def charged(
    status: LMTrainingJobStatus, failure: LastFailure, answer: Answer
) -> LMTrainingJobStatus:
    """The status with what the failure costs; an end makes no restart that could be counted."""
    status = nodes.after_failure(status, failure, answer.why_avoid_node)
    if answer.end is not None:
        return status
    restarts = _with_restart(status.restarts, failure, is_counted=answer.is_counted)
    return status.model_copy(update={"restarts": restarts})


def renamed(
    status: LMTrainingJobStatus, *, was: LastFailure, is_now: LastFailure, recovery: Recovery
) -> LMTrainingJobStatus:
    """The status as if the newest failure, which it is charged with, had been known from the start
    for what it has turned out to be. What follows it stays: that has begun, so no end comes of it,
    and no other wait."""
    is_counted = _is_counted(was, rule_for(was, recovery))
    restarts = _without_restart(status.restarts, was, is_counted=is_counted)
    status = nodes.before_failure(status, was).model_copy(update={"restarts": restarts})
    found = answer(is_now, status=status, recovery=recovery, productive=True, job_uid="")
    status = charged(status, is_now, replace(found, end=None))
    return status.model_copy(update={"last_failure": is_now})


def _is_counted(failure: LastFailure, found: Found | None) -> bool:
    if found is None:
        return failure.failure_class not in UNCOUNTED
    return found[1].restarts_max is None


def _end_of_job(
    failure: LastFailure, found: Found | None, *, restarts: Restarts, recovery: Recovery
) -> End | None:
    failure_class = failure.failure_class
    why = _why_not(failure, found, restarts=restarts, recovery=recovery)
    if why is None:
        return None
    if failure_class is FailureClass.DIVERGED:
        return End(reason=Succeeded.DIVERGED, message=failure.message)
    message = figures.bounded(f"{failure.message} ({failure_class}{why})")
    return End(reason=Succeeded.FAILED, message=message)


def _why_not(
    failure: LastFailure, found: Found | None, *, restarts: Restarts, recovery: Recovery
) -> str | None:
    """Why it is not tried again, to stand behind the class."""
    if found is None and not failure.failure_class.may_retry:
        return ": trying again would fail the same way"
    if found is not None and found[1].action == "Fail":
        return f": recovery.rules[{found[0]}] says Fail"
    if found is not None and found[1].restarts_max is not None:
        limit, done = found[1].restarts_max, restarts.by_reason.get(failure.failure_class, 0)
        spent = f"; recovery.rules[{found[0]}].restartsMax {limit} is spent"
        return spent if done >= limit else None
    if not _is_counted(failure, found) or restarts.counted < recovery.restarts_max:
        return None
    return f"; recovery.restartsMax {recovery.restarts_max} is spent"


def _wait_seconds(
    failure: LastFailure,
    found: Found | None,
    *,
    restarts: Restarts,
    recovery: Recovery,
    productive: bool,
    job_uid: str,
) -> float:
    """A disruption of a productive attempt, or the first one ever, is answered at once; disruptions
    in a row are not, lest a node that refuses every pod make a hot loop. A gang that found no place
    always waits, and not as long as the next one, lest two of them block each other again.
    """
    is_counted = _is_counted(failure, found)
    if failure.reason != GANG_INCOMPLETE and (found or is_counted):
        of_class = restarts.by_reason.get(failure.failure_class, 0)
        return backoff_seconds(
            first=recovery.backoff_seconds,
            limit=recovery.backoff_seconds_max,
            earlier=restarts.counted if is_counted else of_class,
        )
    uncounted = restarts.total - restarts.counted
    if failure.reason == GANG_INCOMPLETE:
        wait = backoff_seconds(
            first=GANG_BACKOFF_SECONDS_MIN, limit=GANG_BACKOFF_SECONDS_MAX, earlier=uncounted
        )
        return wait * (1 + jitter(f"{job_uid}/{failure.attempt}"))
    if productive or uncounted == 0:
        return 0.0
    return backoff_seconds(
        first=max(recovery.backoff_seconds, DISRUPTION_BACKOFF_SECONDS_MIN),
        limit=max(recovery.backoff_seconds_max, DISRUPTION_BACKOFF_SECONDS_MIN),
        earlier=uncounted - 1,
    )


def without_clock_jump(
    when: datetime | None, *, failure: LastFailure | None, recovery: Recovery, now: datetime
) -> datetime | None:
    """The time of the next attempt, no later than the longest wait from now: it was written by a
    clock that may have been set back since."""
    longest = max(recovery.backoff_seconds_max, DISRUPTION_BACKOFF_SECONDS_MIN)
    if failure is not None and failure.reason == GANG_INCOMPLETE:
        longest = 2 * GANG_BACKOFF_SECONDS_MAX
    return None if when is None else min(when, now + timedelta(seconds=longest))


def _with_restart(restarts: Restarts, failure: LastFailure, *, is_counted: bool) -> Restarts:
    """The counts after one more attempt or pod that answers this failure."""
    by_reason = dict(restarts.by_reason)
    done = by_reason.get(failure.failure_class, 0)
    by_reason[failure.failure_class] = figures.count(done + 1)
    return Restarts(
        total=figures.count(restarts.total + 1),
        counted=figures.count(restarts.counted + is_counted),
        by_reason=by_reason,
    )


def _without_restart(restarts: Restarts, failure: LastFailure, *, is_counted: bool) -> Restarts:
    """The counts before it."""
    by_reason = dict(restarts.by_reason)
    left = by_reason.pop(failure.failure_class, 0) - 1
    if left > 0:
        by_reason[failure.failure_class] = left
    return Restarts(
        total=max(restarts.total - 1, 0),
        counted=max(restarts.counted - is_counted, 0),
        by_reason=by_reason,
    )
