"""Is the attempt over, and which pods may stay when the next one begins?

Promise: of the newest failed attempt the pods that have ended stay, for their logs, and so does the
newest pod that was replaced alone; all other pods of an attempt that is over are in the way of the
next one (P1). Asked of status and pods alone, so that it can be answered of a job whose spec cannot
be read. A status that somebody has wiped or put back learns from the pods where it was, so that
they train on (P10, P12).
"""

from collections.abc import Iterable

from lmtraining_api.status import ConditionType, LMTrainingJobStatus, Scheduled
from lmtraining_operator.plan import figures, names
from lmtraining_operator.plan.model import Object, ObservedPod

OLD_READ_SECONDS_MAX = 60.0
"""No read of the API server is older than this, so a pod that has been watched for longer is not
newer than the status that was read."""
_TOLD_TO_STOP = frozenset({Scheduled.SUSPENDED, Scheduled.STOPPING})


def has_failed(status: LMTrainingJobStatus) -> bool:
    failure = status.last_failure
    return failure is not None and failure.attempt == status.attempt and not failure.replaced_by


def was_suspended(status: LMTrainingJobStatus) -> bool:
    """True when its pods were told to save and stop, by suspend or by a deadline."""
    scheduled = status.condition(ConditionType.SCHEDULED)
    return scheduled is not None and scheduled.reason in _TOLD_TO_STOP


def is_over(status: LMTrainingJobStatus) -> bool:
    """True when no pod of the attempt may be made any more. Attempt 0 is over from birth."""
    return status.attempt == 0 or has_failed(status) or was_suspended(status)


def gang_was_complete(status: LMTrainingJobStatus) -> bool:
    """True once every pod of the attempt has been seen running, and until one of them is to be
    replaced; kept in status, so that a pod that is absent can be told from one that was never
    made."""
    scheduled = status.condition(ConditionType.SCHEDULED)
    return scheduled is not None and scheduled.status == "True"


def is_older_than_any_read(pod: ObservedPod) -> bool:
    """Whether every status that is read was written after the pod was made, unless by a hand that
    has put it back."""
    return pod.watched_seconds > OLD_READ_SECONDS_MAX


def caught_up(status: LMTrainingJobStatus, pods: Iterable[ObservedPod]) -> LMTrainingJobStatus:
    """The status with the attempt and the replacements that its pods' names tell of: it is written
    before they are made, so one that does not know them was lost. What it says of an older
    attempt's pods, also that they were told to stop, is not about them."""
    known = [names.parts_of_pod_name(pod.name) for pod in pods if is_older_than_any_read(pod)]
    newest = max((part.attempt for part in known if part is not None), default=0)
    if newest < status.attempt or newest == 0:
        return status
    replaced = dict(status.replaced_pods) if newest == status.attempt else {}
    for part in known:
        replica = str(part.replica) if part is not None and part.attempt == newest else ""
        if part is not None and replica and part.number > replaced.get(replica, 0):
            replaced[replica] = figures.count(part.number)
    changes = {"attempt": figures.count(newest), "replaced_pods": replaced}
    if newest > status.attempt:
        about_others = status.condition(ConditionType.SCHEDULED)
        changes["conditions"] = [one for one in status.conditions if one is not about_others]
    return status.model_copy(update=changes)


def is_kept(pod: ObservedPod, status: LMTrainingJobStatus) -> bool:
    """Whether the pod stays for its log while later attempts or pods run, until one of them
    fails."""
    failure = status.last_failure
    if failure is None or pod.attempt != failure.attempt or not pod.has_log:
        return False
    return not failure.replaced_by or pod.name == failure.pod


def in_the_way(pods: Iterable[ObservedPod], status: LMTrainingJobStatus) -> tuple[ObservedPod, ...]:
    """The pods that must be gone before the next attempt begins."""
    return tuple(pod for pod in pods if not (pod.is_gone or is_kept(pod, status)))


def may_make(job: Object, status: LMTrainingJobStatus, pods: tuple[ObservedPod, ...]) -> bool:
    """Whether the plan may make something, and so must know what is there. A thousand suspended
    jobs, or running ones, are two requests each."""
    if status.is_terminal or job.get("spec", {}).get("suspend"):
        return False
    return not in_the_way(pods, status) if is_over(status) else not gang_was_complete(status)


def has_all_pods(job: Object, status: LMTrainingJobStatus, pods: tuple[ObservedPod, ...]) -> bool:
    """Whether each replica of the attempt has a pod that has not ended and is to stay."""
    live = (pod for pod in pods if not (pod.is_terminal or pod.is_deleting))
    replicas = {pod.replica for pod in live if pod.attempt == status.attempt}
    workers = job.get("spec", {}).get("workers") or {}
    return len(replicas) == int(workers.get("replicas", 1))
