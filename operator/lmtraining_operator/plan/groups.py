"""Groups of a queue that nobody will fill any more.

Promise (P5): what a job leaves in a queue is taken out of it, and its quota with it. Trap avoided:
Kueue holds each pod of a group by a finalizer until all have ended, or another comes in its place.
A pod that is deleted before it ran never ends: it stays, and its group waits for ever in the queue,
unless the group's Workload is deleted.
"""

from collections import defaultdict
from collections.abc import Iterable

from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator.plan import attempts
from lmtraining_operator.plan.model import Action, Delete, Object, Observed, ObservedPod


def abandoned(pods: Iterable[ObservedPod]) -> list[str]:
    """Names of the groups, among pods of attempts that are over, that Kueue cannot call finished.
    Where a pod still runs, it can yet."""
    unfinished: dict[str, list[ObservedPod]] = defaultdict(list)
    for pod in pods:
        if pod.group and not pod.is_terminal:
            unfinished[pod.group].append(pod)
    return sorted(group for group, left in unfinished.items() if all(p.is_gone for p in left))


def of_the_past(
    job: Object, status: LMTrainingJobStatus, pods: Iterable[ObservedPod]
) -> list[ObservedPod]:
    """The pods of attempts that are over."""
    is_deleting = "deletionTimestamp" in job["metadata"]
    is_over = is_deleting or status.is_terminal or attempts.is_over(status)
    return [pod for pod in pods if is_over or pod.attempt < status.attempt]


def release(observed: Observed) -> list[Action]:
    """Delete the Workloads of groups that are abandoned."""
    return [Delete(kind=one.kind, name=one.name, uid=one.uid) for one in observed.abandoned]
