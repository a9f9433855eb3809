"""The end of a job: finished, or given up.

Promise (P2): the end is said once and stays, whatever happens to the children afterwards.
Trap avoided: an exit code of 0 alone proves nothing; any image may end with it.
"""

from datetime import datetime, timedelta

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
from lmtraining_operator.plan.model import Action, Observed, Plan
from lmtraining_operator.plan.progress import with_exit_record
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict

RELEASING_SECONDS = 5.0
"""How long a job is left alone while pods stop."""
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
        is_done=not situation.observed.live_pods,
    )


def after_the_end(status: LMTrainingJobStatus, observed: Observed, now: datetime) -> Plan:
    """Nothing is said any more (P2); what still runs is stopped."""
    live = observed.live_pods
    ended_at = status.completion_time or now
    linger_until = ended_at + timedelta(seconds=FINISH_LINGER_SECONDS)
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
