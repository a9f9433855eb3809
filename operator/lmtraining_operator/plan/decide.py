"""The life of a job, as one decision: what to say and what to do now.

Promise: the answer depends on the arguments alone, so doing it twice, or again after a crash
between any two writes, comes to the same. Status is written before the actions: an attempt, or the
replacement of a pod, before its pods (P1), a failure before the delete that removes its evidence,
the end before anything is cleaned up (P2). Trap avoided: an `if` on what was done last; every
branch asks what is.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from lmtraining_api.exits import FailureClass
from lmtraining_api.status import (
    Accepted,
    Artifacts,
    ConditionType,
    DataReady,
    LastFailure,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan import (
    acceptance,
    attempts,
    conditions,
    deadlines,
    ending,
    events,
    evidence,
    figures,
    gang,
    groups,
    names,
    nodes,
    recovery,
    replacement,
    scheduling,
)
from lmtraining_operator.plan.ending import RELEASING_SECONDS
from lmtraining_operator.plan.failures import (
    Failure,
    after_its_save,
    all_failures,
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
from lmtraining_operator.plan.progress import with_last_checkpoint, with_report, without_speed
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict, with_conditions

RESYNC_SECONDS = 30.0
"""How long a job is left alone when nothing wakes us."""
STARTING_SECONDS = 3.0
"""The same for a placed pod: the kubelet complains about volumes by events, which wake nobody."""
STARTING_SHARE_OF_AGE = 0.1
"""The same, as a share of the pod's age."""
ROOT_CAUSE_SECONDS = 1.0
"""The same while only a consequence of a failure has been seen."""
LOOK_AGAIN_SECONDS_MIN = 0.05


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
        actions = tuple(groups.release(observed))
        return Plan(status=status, actions=actions, look_again_seconds=RESYNC_SECONDS)
    if acceptance.is_of_a_newer_operator(status):
        return acceptance.left_to_a_newer_operator(status)
    is_paused = acceptance.is_paused(job)
    if is_paused and status.is_terminal:
        return Plan(status=status, look_again_seconds=RESYNC_SECONDS, is_done=True)
    if status.is_terminal:
        decided = ending.after_the_end(job, status, observed, now)
        return replace(decided, actions=(*decided.actions, *groups.release(observed)))
    has_begun = attempts.caught_up(status, observed.pods).attempt > 0
    parsed = acceptance.PAUSED if is_paused else acceptance.parse(job, has_begun=has_begun)
    if isinstance(parsed, acceptance.NotAccepted):
        decided = _unwatched(job, status, observed, parsed, now)
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
    said = events.transitions(status, decided.status)
    left = groups.release(observed) if not is_paused else []
    return replace(decided, actions=(*decided.actions, *left, *said))


def _decide(situation: Situation) -> Plan:
    """The life of an accepted job, top to bottom."""
    situation = situation.having(attempts.caught_up(situation.status, situation.observed.pods))
    if situation.attempt == 0:
        refusal = acceptance.reason_not_to_start(situation)
        if refusal is not None:
            generation = situation.job.metadata.generation
            return _not_accepted(
                situation.status, refusal, generation=generation, now=situation.now
            )
    productive = conditions.was_productive(situation)
    situation = _accepted(situation)
    when = recovery.without_clock_jump(
        situation.status.next_attempt_time,
        failure=situation.status.last_failure,
        recovery=situation.spec.recovery,
        now=situation.now,
    )
    situation = situation.with_status(next_attempt_time=when)
    record = ending.finished(situation)
    if record is not None:
        return ending.completed(situation, record)
    if not situation.attempt_is_over:
        failure = first_failure(situation)
        if failure is not None:
            situation = _failed(situation, failure, productive=productive)
            if situation.status.is_terminal:
                left = situation.observed.training_pods
                stopped = gang.release(left, gang.grace_seconds(situation))
                return ending.ended(situation, stopped)
    return _going_on(situation)


def _going_on(situation: Situation) -> Plan:
    """What is wished of a job that has not come to its end."""
    if situation.spec.suspend:
        return _suspend(situation)
    late = deadlines.exceeded(situation)
    if late is not None:
        return deadlines.past(situation, late)
    decided = _between_attempts(situation) if situation.attempt_is_over else _run(situation)
    left = deadlines.seconds_left(situation)
    if left is None or left > decided.look_again_seconds:
        return decided
    return replace(decided, look_again_seconds=max(left, LOOK_AGAIN_SECONDS_MIN))


def _not_accepted(
    status: LMTrainingJobStatus,
    refusal: acceptance.NotAccepted,
    *,
    generation: int,
    now: datetime,
) -> Plan:
    """Say why. Pods that run already go on: an upgrade must not stop them (P10)."""
    verdicts = [Verdict("False", refusal.reason, refusal.message)]
    state = acceptance.state_without(status, refusal)
    if state is not None:
        verdicts.append(Verdict("Unknown", state, refusal.message))
    said = with_conditions(status, verdicts, generation=generation, now=now)
    return Plan(status=said, look_again_seconds=RESYNC_SECONDS)


def _unwatched(
    job: Object,
    status: LMTrainingJobStatus,
    observed: Observed,
    refusal: acceptance.NotAccepted,
    now: datetime,
) -> Plan:
    """A job that is paused, or whose spec this version cannot read. Nobody watches training then,
    which is said (P4); of the latter, the wish to suspend is honoured as it is written."""
    generation = job["metadata"]["generation"]
    decided = _not_accepted(status, refusal, generation=generation, now=now)
    if status.attempt == 0:
        return decided
    said = without_speed(decided.status)
    verdicts = [Verdict("Unknown", Progressing.UNKNOWN, refusal.message)]
    actions: list[Action] = []
    if job["spec"].get("suspend") is True and refusal is not acceptance.PAUSED:
        pods = attempts.in_the_way(observed.pods, status)
        verdicts = _suspended(pods)
        actions = gang.release(pods, None)
    said = with_conditions(said, verdicts, generation=generation, now=now)
    return replace(decided, status=said, actions=tuple(actions))


def _accepted(situation: Situation) -> Situation:
    """The job is taken up, and the newest report is read."""
    job = situation.job
    situation = situation.having(with_report(situation))
    situation = situation.having(with_last_checkpoint(situation))
    avoided = nodes.still_avoided(situation.status, situation.spec.recovery, situation.now)
    situation = situation.having(avoided)
    situation = _in_better_words(situation)
    if situation.attempt_is_over or situation.awaits_gang or situation.spec.suspend:
        situation = situation.having(without_speed(situation.status))
        forgotten = conditions.straggler_forgotten(situation)
        situation = situation.saying(forgotten) if forgotten else situation
    artifacts = Artifacts(
        claim=names.claim_name(job),
        uri=names.store_uri(job),
        run_directory=names.run_directory_in_volume(job),
        export=situation.status.artifacts.export,
    )
    situation = situation.with_status(
        start_time=situation.status.start_time or situation.now,
        first_placed_time=situation.status.first_placed_time or _first_placed_time(situation),
        first_run_time=situation.status.first_run_time or _first_run_time(situation),
        artifacts=artifacts,
    )
    return situation.saying(Verdict("True", Accepted.VALID))


def _in_better_words(situation: Situation) -> Situation:
    """A pod that was deleted and has saved first was no loss."""
    known, said = situation.status.last_failure, after_its_save(situation)
    if known is None or said is None:
        return situation
    return situation.having(
        recovery.renamed(situation.status, was=known, is_now=said, recovery=situation.spec.recovery)
    )


def _first_placed_time(situation: Situation) -> datetime | None:
    """Now, where all pods have a node for the first time. Of a job that ran under an older operator
    nobody knows."""
    has_run = situation.status.first_run_time is not None
    return situation.now if situation.gang_is_placed and not has_run else None


def _first_run_time(situation: Situation) -> datetime | None:
    """When all pods first ran, where they have. An older operator has said only since when the gang
    is complete."""
    scheduled = situation.condition(ConditionType.SCHEDULED)
    if scheduled is not None and scheduled.status == "True":
        return scheduled.last_transition_time
    return situation.now if situation.gang_runs or situation.gang_was_complete else None


def _failed(situation: Situation, failure: Failure, *, productive: bool) -> Situation:
    """Write down the failure, and whether and when another pod or the next attempt follows."""
    known = situation.replaced
    if known is not None and situation.is_replacing and failure.follows:
        return _answered(situation, known, failure)  # the same failure, charged once
    failure = evidence.with_evidence(failure, situation)
    said = failure.as_status(situation)
    answer = recovery.answer(
        said,
        status=situation.status,
        recovery=situation.spec.recovery,
        productive=productive,
        job_uid=situation.job.metadata.uid,
    )
    charged = recovery.charged(situation.status, said, answer)
    situation = situation.having(without_speed(charged)).with_status(last_failure=said)
    if said.failure_class is FailureClass.DATA:
        situation = situation.saying(Verdict("False", DataReady.FAILED, said.message))
    if answer.end is not None:
        return situation.saying(Verdict("False", answer.end.reason, answer.end.message))
    when = situation.now + timedelta(seconds=answer.wait_seconds)
    situation = situation.with_status(next_attempt_time=when if when > situation.now else None)
    return _answered(situation, said, failure)


def _answered(situation: Situation, said: LastFailure, lost: Failure) -> Situation:
    """Another pod in the place of the lost one where that can help, else the attempt is over."""
    if replacement.may_replace(situation, lost):
        return replacement.begun(situation, said, lost)
    return situation.with_status(last_failure=said.model_copy(update={"replaced_by": ""}))


def _suspend(situation: Situation) -> Plan:
    """Let the pods save and stop. The mark in Scheduled says that this attempt is over, so that
    the end of its pods is not taken for a failure."""
    pods = situation.in_the_way
    verdicts = _suspended(pods)
    situation = situation.saying(*verdicts).with_status(next_attempt_time=None)
    return Plan(
        status=situation.status,
        actions=tuple(gang.make_way(situation)),
        report_from=situation.report_from,
        look_again_seconds=RELEASING_SECONDS if pods else RESYNC_SECONDS,
    )


def _suspended(pods: tuple[ObservedPod, ...]) -> list[Verdict]:
    stopping = Verdict(
        "Unknown", Succeeded.SUSPENDING, f"{len(pods)} pods save a checkpoint and stop"
    )
    stopped = Verdict("Unknown", Succeeded.SUSPENDED, "set spec.suspend to false to go on")
    return [
        Verdict("False", Scheduled.SUSPENDED),
        Verdict("False", Progressing.NOT_STARTED, "spec.suspend is true"),
        stopping if pods else stopped,
    ]


def _between_attempts(situation: Situation) -> Plan:
    """No pod of an earlier attempt may be left when the next one begins (P1), but for those that
    have ended and stay for their logs."""
    if situation.in_the_way:
        waiting = scheduling.waiting_for_pods(situation, situation.in_the_way)
        situation = _say_waiting(situation, waiting)
        return Plan(
            status=situation.status,
            actions=tuple(gang.make_way(situation)),
            report_from=situation.report_from,
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
    elif situation.reason_is(ConditionType.SUCCEEDED, Succeeded.PAUSED):
        verdicts.append(Verdict("Unknown", Succeeded.PENDING, what))
    if not situation.attempt_was_suspended:
        verdicts.append(Verdict("False", Scheduled.PENDING, what))
    return situation.saying(*verdicts)


def _claim_is_missing(situation: Situation, claim: str) -> Plan:
    message = (
        f"PersistentVolumeClaim {claim} (checkpoint.storage.existingClaim) does not exist: "
        "create it"
    )
    situation = situation.saying(
        Verdict("False", Scheduled.VOLUME_NOT_READY, message),
        Verdict("Unknown", Succeeded.PENDING, message),
    )
    return Plan(status=situation.status, look_again_seconds=RELEASING_SECONDS)


def _begun(situation: Situation) -> Situation:
    """The next attempt, before any pod of it exists."""
    follows = situation.attempt_failed
    begun = situation.with_status(
        attempt=figures.count(situation.attempt + 1),
        round=0,
        replaced_pods={},
        next_attempt_time=None,
        trainer_image=situation.trainer_image,
    )
    return begun.saying(
        Verdict("False", Scheduled.PENDING),
        Verdict("False", Progressing.NOT_STARTED),
        Verdict("Unknown", Succeeded.RECOVERING if follows else Succeeded.PENDING),
    )


def _run(situation: Situation) -> Plan:
    """Bring the gang up, and say how it is."""
    when = situation.status.next_attempt_time
    if when is not None and when <= situation.now:
        situation = situation.with_status(next_attempt_time=None)
    actions = gang.children(situation)
    situation = situation.saying(*conditions.of_live_attempt(situation))
    return Plan(
        status=situation.status,
        actions=tuple(actions),
        report_from=situation.report_from,
        look_again_seconds=_look_again_seconds(situation),
    )


def _starting_seconds(pod: ObservedPod, now: datetime) -> float:
    """Often at first, then ever less: a pod that has not started for an hour can wait."""
    age_seconds = (now - pod.created_at).total_seconds() if pod.created_at else 0.0
    return max(STARTING_SECONDS, STARTING_SHARE_OF_AGE * age_seconds)


def _look_again_seconds(situation: Situation) -> float:
    waits = [RESYNC_SECONDS]
    for pod in situation.gang:
        if pod.node and not pod.has_started and not situation.gang_was_complete:
            waits.append(_starting_seconds(pod, situation.now))
        if pod.gates and not situation.observed.queue_message:
            waits.append(_starting_seconds(pod, situation.now))  # a queue's word wakes nobody
    if all_failures(situation):
        waits.append(ROOT_CAUSE_SECONDS)
    if situation.strays:
        waits.append(RELEASING_SECONDS)
    when = situation.status.next_attempt_time
    if when is not None:
        waits.append((when - situation.now).total_seconds())
    waits.extend(gang.refusal_waits_seconds(situation))
    return max(min(waits), LOOK_AGAIN_SECONDS_MIN)
