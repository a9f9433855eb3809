"""The life of a job, as one decision: what to say and what to do now.

Promise: the answer depends on the arguments alone, so doing it twice, or again after a crash
between any two writes, comes to the same. Status is written before the actions: an attempt before
its pods (P1), a failure before the delete that removes its evidence, the end before anything is
cleaned up (P2). Trap avoided: an `if` on what was done last; every branch asks what is.
"""

from datetime import datetime, timedelta

from lmtraining_api.exits import ExitCode, FailureClass
from lmtraining_api.status import (
    Accepted,
    Artifacts,
    ConditionType,
    DataReady,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan import acceptance, conditions, events, gang, names, recovery
from lmtraining_operator.plan.backoff import refusal_wait_seconds
from lmtraining_operator.plan.failures import (
    Failure,
    all_failures,
    exit_record_of,
    first_failure,
)
from lmtraining_operator.plan.model import (
    Action,
    Object,
    Observed,
    ObservedPod,
    Plan,
    Settings,
)
from lmtraining_operator.plan.progress import with_exit_record, with_report
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict, with_conditions

RESYNC_SECONDS = 30.0
"""How long a job is left alone when nothing wakes us."""
STARTING_SECONDS = 3.0
"""The same for a placed pod: the kubelet complains about volumes by events, which wake nobody."""
STARTING_SHARE_OF_AGE = 0.1
"""The same, as a share of the pod's age."""
RELEASING_SECONDS = 5.0
"""The same while pods stop."""
ROOT_CAUSE_SECONDS = 1.0
"""The same while only a consequence of a failure has been seen."""
LOOK_AGAIN_SECONDS_MIN = 0.05
FINISH_LINGER_SECONDS = 10
"""Time for the other pods of a finished gang to end by themselves."""
STUCK_POD_SECONDS = 60.0
"""A pod that is still there so long after its grace is probably on a lost node."""


def plan(
    job: Object,
    status: LMTrainingJobStatus,
    observed: Observed,
    now: datetime,
    settings: Settings,
) -> Plan:
    """What to say about the job and what to do, given what is seen of it now."""
    metadata = job["metadata"]
    if metadata.get("deletionTimestamp"):
        return Plan(status=status, look_again_seconds=RESYNC_SECONDS)
    if status.is_terminal:
        return _after_the_end(status, observed, now)
    parsed = acceptance.parse(job)
    if isinstance(parsed, acceptance.NotAccepted):
        decided = _not_accepted(status, parsed, generation=metadata["generation"], now=now)
    else:
        decided = _decide(
            Situation(
                job=parsed,
                created_at=str(metadata.get("creationTimestamp", "")),
                status=status,
                observed=observed,
                now=now,
                settings=settings,
            )
        )
    return Plan(
        status=decided.status,
        actions=(*decided.actions, *events.transitions(status, decided.status)),
        report_from=decided.report_from,
        look_again_seconds=decided.look_again_seconds,
        is_done=decided.is_done,
    )


def _decide(situation: Situation) -> Plan:
    """The life of an accepted job, top to bottom."""
    if situation.attempt == 0:
        refusal = acceptance.reason_not_to_start(situation)
        if refusal is not None:
            generation = situation.job.metadata.generation
            return _not_accepted(
                situation.status, refusal, generation=generation, now=situation.now
            )
    productive = conditions.has_stepped(situation)
    situation = _accepted(situation)
    if _lead_has_finished(situation):
        return _completed(situation)
    grace_seconds = gang.BROKEN_GANG_GRACE_SECONDS
    if not situation.attempt_is_over:
        failure = first_failure(situation)
        if failure is not None:
            if failure.is_graceful:
                grace_seconds = situation.spec.recovery.grace_seconds
            situation = _failed(situation, failure, productive=productive)
            if situation.status.is_terminal:
                return _ended(situation, gang.release(situation.observed.live_pods, grace_seconds))
    if situation.spec.suspend:
        return _suspend(situation)
    if situation.attempt_is_over:
        return _between_attempts(situation, grace_seconds)
    return _run(situation)


def _say(situation: Situation, *verdicts: Verdict) -> Situation:
    return situation.having(
        with_conditions(
            situation.status,
            verdicts,
            generation=situation.job.metadata.generation,
            now=situation.now,
        )
    )


def _not_accepted(
    status: LMTrainingJobStatus,
    refusal: acceptance.NotAccepted,
    *,
    generation: int,
    now: datetime,
) -> Plan:
    """Say why. Pods that run already go on: an upgrade must not stop them (P10)."""
    verdicts = [Verdict("False", refusal.reason, refusal.message)]
    if status.attempt == 0:
        verdicts.append(Verdict("Unknown", Succeeded.PENDING, refusal.message))
    said = with_conditions(status, verdicts, generation=generation, now=now)
    return Plan(status=said, look_again_seconds=RESYNC_SECONDS)


def _accepted(situation: Situation) -> Situation:
    """The job is taken up, and the newest report is read."""
    job = situation.job
    situation = situation.having(with_report(situation))
    artifacts = Artifacts(
        claim=names.claim_name(job),
        run_directory=names.run_directory_in_volume(job),
        export=situation.status.artifacts.export,
    )
    start_time = situation.status.start_time or situation.now
    return _say(
        situation.with_status(start_time=start_time, artifacts=artifacts),
        Verdict("True", Accepted.VALID),
    )


def _lead_has_finished(situation: Situation) -> bool:
    """The lead pod alone knows that the run is finished and the export written."""
    lead = situation.lead
    return lead is not None and lead.exit is not None and lead.exit.code == ExitCode.FINISHED


def _completed(situation: Situation) -> Plan:
    lead = situation.lead
    assert lead is not None
    assert lead.exit is not None
    record = exit_record_of(lead, lead.exit, situation.job.metadata.uid)
    status = with_exit_record(situation, record)
    where = status.artifacts
    message = f"the exported model is in {where.export} of PersistentVolumeClaim {where.claim}"
    return _ended(
        _say(
            situation.having(status),
            Verdict("True", Succeeded.COMPLETED, message),
            Verdict("True", DataReady.READY),
        ),
        [],
    )


def _ended(situation: Situation, actions: list[Action]) -> Plan:
    """Say that it is over. Pods that have ended stay, for their logs."""
    situation = _say(
        situation,
        Verdict("False", Scheduled.FINISHED),
        Verdict("False", Progressing.FINISHED),
    ).with_status(completion_time=situation.now, next_attempt_time=None)
    return Plan(
        status=situation.status,
        actions=tuple(actions),
        look_again_seconds=FINISH_LINGER_SECONDS,
        is_done=not situation.observed.live_pods,
    )


def _after_the_end(status: LMTrainingJobStatus, observed: Observed, now: datetime) -> Plan:
    """Nothing is said any more (P2); what still runs is stopped."""
    live = observed.live_pods
    ended = status.completion_time or now
    linger_until = ended + timedelta(seconds=FINISH_LINGER_SECONDS)
    may_linger = status.condition(ConditionType.SUCCEEDED)
    is_completed = may_linger is not None and may_linger.reason == Succeeded.COMPLETED
    wait = (linger_until - now).total_seconds() if is_completed else 0.0
    actions = gang.release(live, gang.BROKEN_GANG_GRACE_SECONDS) if wait <= 0 else []
    return Plan(
        status=status,
        actions=tuple(actions),
        look_again_seconds=max(wait, RELEASING_SECONDS),
        is_done=not live,
    )


def _failed(situation: Situation, failure: Failure, *, productive: bool) -> Situation:
    """Write down the failure, and whether and when the next attempt follows."""
    said = failure.as_status(situation.attempt)
    end = recovery.end_of_job(
        said, restarts=situation.status.restarts, recovery=situation.spec.recovery
    )
    situation = situation.with_status(last_failure=said)
    if said.failure_class is FailureClass.DATA:
        situation = _say(situation, Verdict("False", DataReady.FAILED, said.message))
    if end is not None:
        return _say(situation, Verdict("False", end.reason, end.message))
    when = recovery.next_attempt_time(
        said,
        status=situation.status,
        recovery=situation.spec.recovery,
        productive=productive,
        now=situation.now,
    )
    return situation.with_status(next_attempt_time=when if when > situation.now else None)


def _suspend(situation: Situation) -> Plan:
    """Let the pods save and stop. The mark in Scheduled says that this attempt is over, so that
    the end of its pods is not taken for a failure."""
    pods = situation.observed.pods
    grace_seconds = situation.spec.recovery.grace_seconds
    verdicts = [
        Verdict("False", Scheduled.SUSPENDED),
        Verdict("False", Progressing.NOT_STARTED, "spec.suspend is true"),
    ]
    if not pods:
        verdicts.append(
            Verdict("Unknown", Succeeded.SUSPENDED, "set spec.suspend to false to go on")
        )
    situation = _say(situation, *verdicts).with_status(next_attempt_time=None)
    return Plan(
        status=situation.status,
        actions=tuple(gang.release(pods, grace_seconds)),
        report_from=_report_from(situation),
        look_again_seconds=RELEASING_SECONDS if pods else RESYNC_SECONDS,
    )


def _between_attempts(situation: Situation, grace_seconds: int) -> Plan:
    """No pod of an earlier attempt may be left when the next one begins (P1)."""
    pods = situation.observed.pods
    if pods:
        if situation.attempt_was_suspended:
            grace_seconds = situation.spec.recovery.grace_seconds
        situation = _say_waiting(situation, _waiting_for_pods(situation))
        return Plan(
            status=situation.status,
            actions=tuple(gang.release(pods, grace_seconds)),
            report_from=_report_from(situation),
            look_again_seconds=RELEASING_SECONDS,
        )
    when = situation.status.next_attempt_time
    if when is not None and situation.now < when:
        situation = _say_waiting(situation, f"attempt {situation.attempt + 1} waits (backoff)")
        left = (when - situation.now).total_seconds()
        look_again_seconds = min(max(left, LOOK_AGAIN_SECONDS_MIN), RESYNC_SECONDS)
        return Plan(status=situation.status, look_again_seconds=look_again_seconds)
    if situation.attempt == 0 and situation.observed.claim is None:
        missing = situation.spec.checkpoint.storage.existing_claim
        if missing is not None:
            return _claim_is_missing(situation, missing)
    return _run(_begun(situation))


def _say_waiting(situation: Situation, what: str) -> Situation:
    """Say what the next attempt waits for; the mark of a suspended attempt stays."""
    failure = situation.status.last_failure
    verdicts = [Verdict("False", Progressing.NOT_STARTED, what)]
    if situation.attempt_failed and failure is not None:
        why = f"{failure.failure_class}: {failure.message}"
        verdicts.append(Verdict("Unknown", Succeeded.RECOVERING, f"{what}; {why}"))
    if not situation.attempt_was_suspended:
        verdicts.append(Verdict("False", Scheduled.PENDING, what))
    return _say(situation, *verdicts)


def _waiting_for_pods(situation: Situation) -> str:
    pods = situation.observed.pods
    first = pods[0]
    place = f" on node {first.node}" if first.node else ""
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    text = f"waiting until pod {first.name}{place}{more} is gone"
    failure = situation.status.last_failure
    patience = timedelta(seconds=STUCK_POD_SECONDS + situation.spec.recovery.grace_seconds)
    if failure is None or situation.now - failure.time < patience:
        return text
    return (
        f"{text}: it may still write checkpoints, so nothing starts beside it; if its node is "
        "down, delete the Node or taint it with node.kubernetes.io/out-of-service"
    )


def _claim_is_missing(situation: Situation, claim: str) -> Plan:
    message = (
        f"PersistentVolumeClaim {claim} (checkpoint.storage.existingClaim) does not exist: "
        "create it"
    )
    situation = _say(
        situation,
        Verdict("False", Scheduled.VOLUME_NOT_READY, message),
        Verdict("Unknown", Succeeded.PENDING, message),
    )
    return Plan(status=situation.status, look_again_seconds=RELEASING_SECONDS)


def _begun(situation: Situation) -> Situation:
    """The next attempt, before any pod of it exists."""
    failure = situation.status.last_failure
    restarts = situation.status.restarts
    follows = situation.attempt_failed and failure is not None
    if follows and failure is not None:
        restarts = recovery.with_restart(restarts, failure.failure_class)
    begun = situation.with_status(
        attempt=situation.attempt + 1, round=0, next_attempt_time=None, restarts=restarts
    )
    return _say(
        begun,
        Verdict("False", Scheduled.PENDING),
        Verdict("False", Progressing.NOT_STARTED),
        Verdict("Unknown", Succeeded.RECOVERING if follows else Succeeded.PENDING),
    )


def _run(situation: Situation) -> Plan:
    """Bring the gang up, and say how it is."""
    actions = gang.children(situation)
    situation = _say(situation, *conditions.of_live_attempt(situation))
    return Plan(
        status=situation.status,
        actions=tuple(actions),
        report_from=_report_from(situation),
        look_again_seconds=_look_again_seconds(situation),
    )


def _report_from(situation: Situation) -> str:
    lead = situation.lead
    return lead.address if lead is not None and lead.phase == "Running" else ""


def _starting_seconds(pod: ObservedPod, now: datetime) -> float:
    """Often at first, then ever less: a pod that has not started for an hour can wait."""
    age_seconds = (now - pod.created_at).total_seconds() if pod.created_at else 0.0
    return max(STARTING_SECONDS, STARTING_SHARE_OF_AGE * age_seconds)


def _look_again_seconds(situation: Situation) -> float:
    waits = [RESYNC_SECONDS]
    for pod in situation.gang:
        if pod.node and not pod.has_started and not situation.gang_was_complete:
            waits.append(_starting_seconds(pod, situation.now))
    if all_failures(situation):
        waits.append(ROOT_CAUSE_SECONDS)
    for refusal in situation.observed.refusals.values():
        waited = (situation.now - refusal.time).total_seconds()
        waits.append(refusal_wait_seconds(refusal.count) - waited)
    return max(min(waits), LOOK_AGAIN_SECONDS_MIN)
