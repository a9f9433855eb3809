"""Is a time over by which the job had to come somewhere?

Promise: a job that has kept its time goes on, also while a new operator has not heard of it yet
(P4); one whose run time is over saves and stops before it ends; a deadline that is moved while the
pods still stop is kept as it is now (P12).
Trap avoided: a pod that never goes, on a node that is lost, would keep the job from ending.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from lmtraining_api.status import ConditionType, Progressing, Scheduled, Succeeded
from lmtraining_operator.plan import ending, gang
from lmtraining_operator.plan.conditions import FIRST_REPORT_SECONDS
from lmtraining_operator.plan.model import Plan
from lmtraining_operator.plan.moments import later
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict

SAVING_SECONDS = 60.0
"""Beyond the grace of its pods, a job does not wait longer than this for them before it ends."""


@dataclass(frozen=True, kw_only=True)
class Exceeded:
    """A deadline that is over."""

    at: datetime
    has_run: bool
    """Whether there may be something to save."""
    message: str


def exceeded(situation: Situation) -> Exceeded | None:
    """The deadline that ends the job, or None while none does."""
    limits, until, by = situation.spec.deadlines, _run_until(situation), _start_by(situation)
    if until is not None and situation.now >= until:
        since = situation.status.first_run_time
        message = f"deadlines.runSeconds {limits.run_seconds} is over, counted from {since:%FT%TZ}"
        return Exceeded(at=until, has_run=True, message=message)
    if by is None or situation.now < by or not _is_heard(situation):
        return None
    summary = situation.condition(ConditionType.SUCCEEDED)
    why = f": {summary.message}" if summary is not None and summary.message else ""
    message = f"no optimizer step within deadlines.startSeconds {limits.start_seconds}{why}"
    return Exceeded(at=by, has_run=False, message=message)


def seconds_left(situation: Situation) -> float | None:
    """Until the next deadline; None where there is none ahead."""
    times = [_run_until(situation), _start_by(situation)]
    ahead = [time for time in times if time is not None and time > situation.now]
    return (min(ahead) - situation.now).total_seconds() if ahead else None


def past(situation: Situation, late: Exceeded) -> Plan:
    """Let the pods save and stop, then say that it is over."""
    pods = situation.in_the_way
    if late.has_run and pods and situation.now < _saved_by(situation, late):
        stopping = f"{late.message}: {len(pods)} pods save a checkpoint and stop"
        situation = situation.saying(
            Verdict("False", Scheduled.STOPPING, late.message),
            Verdict("False", Progressing.NOT_STARTED, late.message),
            Verdict("Unknown", Succeeded.DEADLINE_EXCEEDED, stopping),
        ).with_status(next_attempt_time=None)
        return Plan(
            status=situation.status,
            actions=tuple(gang.make_way(situation)),
            report_from=situation.report_from,
            look_again_seconds=ending.RELEASING_SECONDS,
        )
    newest = situation.status.checkpoint
    kept = (
        f"the newest checkpoint is of step {newest.last_step}"
        if newest
        else "no checkpoint is known of"
    )
    situation = situation.saying(
        Verdict("False", Succeeded.DEADLINE_EXCEEDED, f"{late.message}; {kept}")
    )
    left = situation.observed.training_pods
    return ending.ended(situation, gang.release(left, gang.BROKEN_GANG_GRACE_SECONDS))


def _run_until(situation: Situation) -> datetime | None:
    since, seconds = situation.status.first_run_time, situation.spec.deadlines.run_seconds
    return None if since is None or seconds is None else later(since, seconds)


def _start_by(situation: Situation) -> datetime | None:
    since, seconds = situation.status.start_time, situation.spec.deadlines.start_seconds
    if since is None or seconds is None or _has_ever_stepped(situation):
        return None
    return later(since, seconds)


def _has_ever_stepped(situation: Situation) -> bool:
    """Whether any attempt has made a step: the figures of it are in status."""
    report = situation.report
    fault = report.last_fault if report is not None else None
    is_told = fault is not None and fault.has_stepped
    return is_told or situation.status.progress.step_time is not None


def _is_heard(situation: Situation) -> bool:
    """False while the lead runs and might still tell of a step that nobody has heard of."""
    lead, observed = situation.lead, situation.observed.report
    if lead is None or not lead.has_started or situation.report is not None:
        return True
    if observed.failing_since is None:
        return False
    return situation.now - observed.failing_since > timedelta(seconds=FIRST_REPORT_SECONDS)


def _saved_by(situation: Situation, late: Exceeded) -> datetime:
    """When the pods that were told to stop have had their time."""
    scheduled = situation.condition(ConditionType.SCHEDULED)
    told = late.at
    if scheduled is not None and scheduled.status == "False":
        told = max(told, scheduled.last_transition_time)
    elif scheduled is not None:
        told = situation.now
    return later(told, situation.spec.recovery.grace_seconds + SAVING_SECONDS)
