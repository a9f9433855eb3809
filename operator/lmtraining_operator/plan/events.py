"""What happened, for `kubectl describe`: one event per transition, attempt and subject.

Promise: only transitions make events, so their number is bounded by those of attempts, of pods and
rounds in them, and of requests. The reasons, and nothing else: NotAccepted, Paused, AttemptStarted,
TrainingStarted, AttemptFailed, PodReplaced, Suspended, Completed, Failed, Diverged,
DeadlineExceeded, Stalled, Skip, Rewind, Rerun, RanksRestarted, CheckpointPassedOver,
CheckpointSaved, RollbackRefused, NodeAvoided, and the reasons of Scheduled that a person must act
on; and, from outside, ReconcileFailed and NewerOperator.
"""

from dataclasses import replace

from lmtraining_api.names import POD_REPLACED
from lmtraining_api.status import (
    Accepted,
    AppliedStatus,
    Condition,
    ConditionType,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan.conditions import WHILE_TRAINING
from lmtraining_operator.plan.model import PublishEvent

_OBSTACLES = frozenset(
    {
        Scheduled.UNSCHEDULABLE,
        Scheduled.QUOTA_EXCEEDED,
        Scheduled.IMAGE_PULL_FAILED,
        Scheduled.VOLUME_NOT_READY,
        Scheduled.CONTAINER_NOT_CREATED,
        Scheduled.CREATE_REFUSED,
        Scheduled.NAME_TAKEN,
    }
)
_SUMMARIES = frozenset(
    {
        Succeeded.TRAINING,
        Succeeded.SUSPENDED,
        Succeeded.COMPLETED,
        Succeeded.FAILED,
        Succeeded.DIVERGED,
        Succeeded.DEADLINE_EXCEEDED,
    }
)
_WARNINGS = frozenset({Succeeded.FAILED, Succeeded.DIVERGED, Succeeded.DEADLINE_EXCEEDED})


def transitions(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> list[PublishEvent]:
    """The events of going from one status to the next."""
    events = [
        _not_accepted(old, new),
        _attempt_failed(old, new),
        _attempt_started(old, new),
        _obstacle(old, new),
        _stalled(old, new),
        _remedied(old, new),
        _ranks_restarted(old, new),
        _checkpoint_passed_over(old, new),
        _requested(old, new),
        _avoided(old, new),
        _summary(old, new),
    ]
    return [event for event in events if event is not None]


def _entered(
    old: LMTrainingJobStatus, new: LMTrainingJobStatus, kind: ConditionType
) -> Condition | None:
    """The condition, if its reason is new."""
    before, after = old.condition(kind), new.condition(kind)
    if after is None or (before is not None and before.reason == after.reason):
        return None
    return after


def _not_accepted(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    condition = _entered(old, new, ConditionType.ACCEPTED)
    if condition is None or condition.reason == Accepted.VALID:
        return None
    if condition.reason == Accepted.PAUSED:
        return _normal("Paused", condition.message, new)
    return _warning("NotAccepted", condition.message, new)


def _attempt_failed(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    failure = new.last_failure
    if failure is None or failure == old.last_failure:
        return None
    what = f"{failure.failure_class}: {failure.message}"
    if failure.replaced_by:
        message = f"{failure.replaced_by} replaces a pod: {what}"
        return _warning(POD_REPLACED, message, new, subject=failure.replaced_by)
    return _warning("AttemptFailed", what, new)


def _attempt_started(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    if new.attempt == old.attempt:
        return None
    return _normal("AttemptStarted", f"Attempt {new.attempt} starts", new)


def _obstacle(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    condition = _entered(old, new, ConditionType.SCHEDULED)
    if condition is None or condition.reason not in _OBSTACLES:
        return None
    return _warning(condition.reason, condition.message, new)


def _stalled(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    condition = _entered(old, new, ConditionType.PROGRESSING)
    if condition is None or condition.reason != Progressing.STALLED:
        return None
    return _warning("Stalled", condition.message, new)


def _ranks_restarted(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    before, after = old.last_recovery, new.last_recovery
    if after is None or not after.fault or after == before or new.attempt != old.attempt:
        return None
    message = f"round {new.round} of the ranks after {after.fault}"
    return _warning("RanksRestarted", message, new, subject=str(new.round))


def _checkpoint_passed_over(
    old: LMTrainingJobStatus, new: LMTrainingJobStatus
) -> PublishEvent | None:
    before, after = old.last_recovery, new.last_recovery
    if after is None or not after.passed_over or after == before:
        return None
    return _warning("CheckpointPassedOver", after.passed_over, new)


def _avoided(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    """A node that new pods keep away from."""
    known = {one.name for one in old.avoided_nodes}
    added = [one for one in new.avoided_nodes if one.name not in known]
    if not added:
        return None
    node = added[0]
    return _warning("NodeAvoided", f"node {node.name}: {node.reason}", new, subject=node.name)


def _requested(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    """What became of a request; a rollback that was made is a remedy, and told as one."""
    before, after = old.applied or AppliedStatus(), new.applied or AppliedStatus()
    if after.refusal and after.refusal != before.refusal:
        return _warning("RollbackRefused", after.refusal, new, subject=after.rollback)
    if after.checkpoint and after.checkpoint != before.checkpoint:
        what = f"step {after.checkpoint_step} was saved (requests.checkpoint {after.checkpoint})"
        return _normal("CheckpointSaved", what, new, subject=after.checkpoint)
    return None


def _remedied(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    done = new.stability.last_remedy
    if done is None or done == old.stability.last_remedy:
        return None
    where = "" if done.to_step is None else f", back to step {done.to_step}"
    return _warning(done.remedy, f"{done.fault} at step {done.step}{where}: {done.message}", new)


def _summary(old: LMTrainingJobStatus, new: LMTrainingJobStatus) -> PublishEvent | None:
    condition = _entered(old, new, ConditionType.SUCCEEDED)
    if condition is None or condition.reason not in _SUMMARIES:
        return None
    before = old.condition(ConditionType.SUCCEEDED)
    if condition.reason == Succeeded.TRAINING and before and before.reason in WHILE_TRAINING:
        return None
    if condition.reason == Succeeded.TRAINING:
        return _normal("TrainingStarted", f"Attempt {new.attempt} has made its first step", new)
    make = _warning if condition.reason in _WARNINGS else _normal
    return make(condition.reason, condition.message, new)


def _normal(
    reason: str, message: str, status: LMTrainingJobStatus, subject: str = ""
) -> PublishEvent:
    attempt = status.attempt
    return PublishEvent(
        type="Normal", reason=reason, message=message, attempt=attempt, subject=subject
    )


def _warning(
    reason: str, message: str, status: LMTrainingJobStatus, subject: str = ""
) -> PublishEvent:
    return replace(_normal(reason, message, status, subject), type="Warning")
