"""The end of a job: finished, or given up.

Promise (P2): the end is said once and stays, whatever happens to the children afterwards.
Trap avoided: an exit code of 0 alone proves nothing; any image may end with it.
"""

from dataclasses import replace
from datetime import datetime

from lmtraining_api.exits import ExitCode
from lmtraining_api.records import ExitRecord
from lmtraining_api.status import (
    ConditionType,
    DataReady,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan import gang, names
from lmtraining_operator.plan.failures import lead_exit_record
from lmtraining_operator.plan.model import Action, Delete, Object, Observed, Plan
from lmtraining_operator.plan.moments import later
from lmtraining_operator.plan.progress import with_exit_record
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict

RELEASING_SECONDS = 5.0
"""How long a job is left alone while pods stop."""
LOOK_SECONDS_MIN = 1.0
"""What is to go with the pods need not go in the very moment."""
FINISH_LINGER_SECONDS = 10
"""Time for the other pods of a finished gang to end by themselves."""


def finished(situation: Situation) -> ExitRecord | None:
    """The lead's record of a finished run: it alone knows that the export is written."""
    record = lead_exit_record(situation)
    return record if record is not None and record.exit_code == ExitCode.FINISHED else None


def completed(situation: Situation, record: ExitRecord) -> Plan:
    """Say what the run has come to."""
    status = with_exit_record(situation, record)
    where = status.artifacts
    place = names.place(where.claim, where.uri)
    message = f"the exported model is in {where.export} of {place}"
    wanted = situation.spec.training.planned_steps or 0
    if status.progress.total_steps < wanted:
        message += (
            f"; training.budget was raised to {wanted} steps after its last step, "
            f"{status.progress.step}: to go on, make a new job with checkpoint.existingRun Resume"
        )
    return ended(
        situation.having(status).saying(
            Verdict("True", Succeeded.COMPLETED, message),
            Verdict("True", DataReady.READY),
        ),
        [],
    )


def ended(situation: Situation, actions: list[Action]) -> Plan:
    """Say that it is over. Pods that have ended stay, for their logs, also those of the newest
    failed attempt: status still names one."""
    situation = situation.saying(
        Verdict("False", Scheduled.FINISHED),
        Verdict("False", Progressing.FINISHED),
    ).with_status(completion_time=situation.now, next_attempt_time=None)
    return Plan(
        status=situation.status,
        actions=tuple(actions),
        look_again_seconds=FINISH_LINGER_SECONDS,
        is_done=not situation.observed.live_pods and situation.spec.keep_pods_seconds is None,
    )


def has_kept_long_enough(job: Object, status: LMTrainingJobStatus, now: datetime) -> bool:
    """Whether nothing of an ended job is kept any longer, but for its record."""
    until = _kept_until(job, status)
    return until is not None and now >= until


def _kept_until(job: Object, status: LMTrainingJobStatus) -> datetime | None:
    """When what is left of the job is to go; None where it stays. Asked of a spec as it is written:
    one that cannot be read keeps all."""
    seconds = job.get("spec", {}).get("keepPodsSeconds")
    if not status.is_terminal or status.completion_time is None or not isinstance(seconds, int):
        return None
    return later(status.completion_time, seconds)


def after_the_end(
    job: Object, status: LMTrainingJobStatus, observed: Observed, now: datetime
) -> Plan:
    """Nothing is said any more (P2); what still runs is stopped, and what is left goes when its
    time is over."""
    until = _kept_until(job, status)
    stopping = _stopping(status, observed, now)
    if until is None:
        return stopping
    if observed.live_pods or now < until:
        left = max((until - now).total_seconds(), 0.0)
        look = min(left, stopping.look_again_seconds) if observed.live_pods else left
        return replace(stopping, is_done=False, look_again_seconds=max(look, LOOK_SECONDS_MIN))
    pods = gang.release(observed.pods, gang.BROKEN_GANG_GRACE_SECONDS)
    rest = [Delete(kind=one.kind, name=one.name, uid=one.uid) for one in observed.leftovers]
    return replace(
        stopping,
        actions=(*pods, *rest),
        look_again_seconds=RELEASING_SECONDS,
        is_done=not observed.pods and not rest,
    )


def _stopping(status: LMTrainingJobStatus, observed: Observed, now: datetime) -> Plan:
    live = observed.live_pods
    ended_at = status.completion_time or now
    linger_until = later(ended_at, FINISH_LINGER_SECONDS)
    summary = status.condition(ConditionType.SUCCEEDED)
    is_completed = summary is not None and summary.reason == Succeeded.COMPLETED
    wait = (linger_until - now).total_seconds()
    unwanted_at_once = () if is_completed else observed.training_pods
    unwanted = live if wait <= 0 else unwanted_at_once
    return Plan(
        status=status,
        actions=tuple(gang.release(unwanted, gang.BROKEN_GANG_GRACE_SECONDS)),
        look_again_seconds=max(wait, RELEASING_SECONDS),
        is_done=not live,
    )
