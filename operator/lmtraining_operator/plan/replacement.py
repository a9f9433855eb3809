"""A lost pod is replaced alone, while the others of its attempt wait in place.

Promise (P1): the new pod has a name of its own, is in status before it exists, and is made only
when the old one is gone or has ended; at least one pod that has trained stays, for it knows the
rounds that were. What the others do because a pod is missing is neither charged nor told apart.
Trap avoided: pods that hold their devices for one that does not come. A long backoff, or a
replacement that does not start in time, gives the attempt up.
"""

from datetime import timedelta

from lmtraining_api.status import LastFailure, Scheduled
from lmtraining_operator.plan import figures, gang, placement
from lmtraining_operator.plan.failures import (
    Failure,
    all_failures,
    has_finished,
)
from lmtraining_operator.plan.model import GANG_INCOMPLETE, ObservedPod
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict

WAIT_SECONDS_MAX = 60.0
"""Pods do not hold their places for one that must wait longer than this before it may start."""


def may_replace(situation: Situation, failure: Failure) -> bool:
    """Whether the attempt goes on with another pod."""
    if failure.reason == GANG_INCOMPLETE or situation.spec.stability.rounds_max == 0:
        return False
    when = situation.status.next_attempt_time or situation.now
    if when - situation.now > timedelta(seconds=WAIT_SECONDS_MAX):
        return False
    if not situation.status.waits_in_place or _has_no_place_in_its_queue(situation):
        return False
    if any(pod.disruption is not None and pod.disruption.takes_all for pod in situation.gang):
        return False
    if any(has_finished(pod, situation.job.metadata.uid) for pod in situation.gang):
        return False  # it cannot meet another pod; the ranks of a new attempt find all steps done
    return bool(_survivors(situation, failure))


def _has_no_place_in_its_queue(situation: Situation) -> bool:
    """An older operator gave its pods no role, so the queue made one up for them, of which another
    pod is none: it would wait there while the others hold their places."""
    return any(pod.group and pod.role != placement.ROLE_NAME for pod in situation.gang)


def begun(situation: Situation, failure: LastFailure, lost: Failure) -> Situation:
    """The same attempt with other pods in the place of those that are lost."""
    replaced = dict(situation.status.replaced_pods)
    for replica in sorted(_lost_replicas(situation, lost)):
        replaced[str(replica)] = figures.count(replaced.get(str(replica), 0) + 1)
    situation = situation.with_status(replaced_pods=replaced)
    name = situation.name_of(lost.replica)
    return situation.with_status(
        last_failure=failure.model_copy(update={"replaced_by": failure.replaced_by or name})
    ).saying(Verdict("False", Scheduled.PENDING, f"pod {name} takes the place of {lost.pod}"))


def _lost_replicas(situation: Situation, failure: Failure) -> set[int]:
    return {failure.replica, *(one.replica for one in all_failures(situation))}


def _survivors(situation: Situation, failure: Failure) -> list[ObservedPod]:
    """The pods that have trained in this attempt and still run."""
    lost = _lost_replicas(situation, failure)
    return [
        pod
        for pod in situation.gang
        if pod.replica not in lost and pod.has_started and gang.is_armed(pod)
    ]
