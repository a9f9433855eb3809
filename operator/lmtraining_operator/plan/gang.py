"""Which pods should exist, and what are they told?

Promise: pods of an attempt are made only while no pod of another attempt, and none that was
replaced, is left that could still write (P1), and the peer table, the starting gun, is given only
when every pod of the attempt runs. While one is replaced, the others are told who is left, and so
wait.
Trap avoided: a pod that is absent is made again only if the gang was never complete; later its
absence is a failure.
"""

from datetime import timedelta
from functools import partial
from itertools import takewhile

from pydantic import ValidationError

from lmtraining_api.job import LMTrainingJob
from lmtraining_api.records import Intent, Peer
from lmtraining_api.wishes import RollbackWish, Wishes
from lmtraining_operator.plan import attempts, manifests, names, nodes
from lmtraining_operator.plan.backoff import refusal_wait_seconds
from lmtraining_operator.plan.model import (
    Action,
    Create,
    DeletePod,
    ObservedPod,
    Refusal,
    SetIntent,
)
from lmtraining_operator.plan.situation import Situation

BROKEN_GANG_GRACE_SECONDS = 5
"""Time to stop for pods whose gang is broken: they make no progress and have nothing to save."""
STUCK_SECONDS = 90.0
"""How long after its grace a pod that has not ended is taken for cut off, and forgotten. Its ranks
stop 60 s after they have lost the lead; a lead that is cut off itself writes nothing once a newer
gang has left its name in the run's fence (P1)."""
ENDING_SECONDS_MAX = 5.0
"""Time for the kubelet to call a pod ended whose trainer has failed. A sidecar keeps it running."""


def children(situation: Situation) -> list[Action]:
    """What must be done for the attempt to run. An object that was refused holds up all that come
    after it, until it has waited long enough."""
    strays = situation.strays
    if strays:
        return [*intents(situation), *_release(situation, strays, BROKEN_GANG_GRACE_SECONDS)]
    if situation.kept and any(refusal.counts_ended_pods for refusal in refusals(situation)):
        return release(situation.kept, BROKEN_GANG_GRACE_SECONDS)
    if situation.gang_was_complete or not situation.missing:
        return intents(situation)
    creations = takewhile(partial(may_create, situation), wanted(situation))
    return [*intents(situation), *creations]


def wanted(situation: Situation) -> list[Create]:
    """What is still to be made, in order."""
    if situation.strays or situation.gang_was_complete or not situation.missing:
        return []
    when = situation.status.next_attempt_time
    if when is not None and situation.now < when:
        return []
    pods = [
        Create(
            body=manifests.pod(
                situation.job,
                name,
                attempt=situation.attempt,
                replica=situation.expected[name],
                intent=_intent(situation, ()),
                image=situation.trainer_image,
                avoided_nodes=nodes.names(situation.status),
            )
        )
        for name in situation.missing
    ]
    return [*_prerequisites(situation), *pods]


def refusals(situation: Situation) -> list[Refusal]:
    """The refusals that still matter: of what is still to be made. One may have been made after
    all, by a request whose answer was lost."""
    found = situation.observed.refusals
    return [found[one.key] for one in wanted(situation) if one.key in found] if found else []


def refusal_waits_seconds(situation: Situation) -> list[float]:
    """Until when an object holds up what comes after it."""
    return [left for one in refusals(situation) if (left := _wait_seconds(situation, one)) > 0][:1]


def _prerequisites(situation: Situation) -> list[Create]:
    job, observed = situation.job, situation.observed
    bodies = []
    if not observed.config_map:
        bodies.append(manifests.config_map(job))
    if observed.claim is None and job.spec.checkpoint.storage.claim is not None:
        bodies.append(manifests.claim(job))
    if not observed.network_policy:
        readers = situation.settings.metrics_readers
        bodies.append(manifests.network_policy(job, readers=readers))
    return [Create(body=body) for body in bodies]


def may_create(situation: Situation, create: Create) -> bool:
    """False while an object that was refused has not waited long enough."""
    refusal = situation.observed.refusals.get(create.key)
    return refusal is None or _wait_seconds(situation, refusal) <= 0


def _wait_seconds(situation: Situation, refusal: Refusal) -> float:
    waited = (situation.now - refusal.time).total_seconds()
    if waited < 0:
        return 0.0  # the clock was set back, so nobody knows how long it was
    return refusal_wait_seconds(refusal.count, is_leaving=refusal.is_leaving) - waited


def intents(situation: Situation) -> list[Action]:
    """The peer table, for each pod that has another one: of all pods once all run and no other is
    left that may write (P1, also where an old list hid it when the pods were made); while one is
    replaced, of those that are left, which thereby wait for it."""
    if situation.gang_runs and not situation.strays:
        told = situation.gang
    elif situation.is_replacing:
        told = tuple(pod for pod in situation.gang if pod.has_started and is_armed(pod))
    else:
        return []
    wanted = _intent(situation, told)
    return [
        SetIntent(name=pod.name, uid=pod.uid, intent=wanted) for pod in told if pod.intent != wanted
    ]


def is_armed(pod: ObservedPod) -> bool:
    """True when the pod was told its peers, and so has trained with them."""
    try:
        return bool(Intent.model_validate_json(pod.intent).peers)
    except ValidationError:
        return False


def _intent(situation: Situation, pods: tuple[ObservedPod, ...]) -> str:
    """These are your peers; go, once they are all."""
    intent = Intent(
        job_uid=situation.job.metadata.uid,
        attempt=situation.attempt,
        generation=situation.job.metadata.generation,
        peers=[Peer(replica=pod.replica, pod_uid=pod.uid, address=pod.address) for pod in pods],
        wishes=_wishes(situation.job),
    )
    return intent.model_dump_json(by_alias=True)


def _wishes(job: LMTrainingJob) -> Wishes:
    """What may change while the pods run."""
    spec = job.spec
    rollback = spec.requests.rollback
    return Wishes(
        generation=job.metadata.generation,
        budget_steps=spec.training.planned_steps or 1,
        checkpoint_every_steps=spec.checkpoint.every_steps,
        checkpoint=spec.requests.checkpoint or "",
        rollback=RollbackWish(name=rollback.name, to_step=rollback.to_step) if rollback else None,
    )


def grace_seconds(situation: Situation) -> int | None:
    """Time to stop for the pods of an attempt that is over: their own grace where they may save, so
    when they were told to suspend, or while the pod that was taken away is still stopping."""
    failure = situation.status.last_failure
    is_stopping = failure is not None and any(
        pod.name == failure.pod and pod.is_deleting and not pod.is_terminal
        for pod in situation.gang
    )
    if situation.attempt_was_suspended or is_stopping:
        return None
    return BROKEN_GANG_GRACE_SECONDS


def make_way(situation: Situation) -> list[Action]:
    """Delete what is in the way of the next attempt, but for pods that are about to end."""
    return _release(situation, situation.in_the_way, grace_seconds(situation))


def _release(
    situation: Situation, pods: tuple[ObservedPod, ...], seconds: int | None
) -> list[Action]:
    return release(
        tuple(p for p in pods if not (_is_ending(situation, p) or _is_newer(situation, p))),
        seconds,
    )


def _is_newer(situation: Situation, pod: ObservedPod) -> bool:
    """Whether the pod was made after the status that was read: the list of pods is younger than
    the job. Another look shows what the pod is for."""
    if attempts.is_older_than_any_read(pod):
        return False
    if pod.attempt != situation.attempt:
        return pod.attempt > situation.attempt
    number = names.pod_number(pod.name)
    return number > situation.status.replaced_pods.get(str(pod.replica), 0)


def _is_ending(situation: Situation, pod: ObservedPod) -> bool:
    """Whether the pod will stay for its log, once the kubelet calls it ended. A clock that was set
    back says nothing about how long ago it failed."""
    failure = situation.status.last_failure
    if failure is None or failure.attempt != pod.attempt or pod.exit is None or pod.is_terminal:
        return False
    return abs(situation.now - failure.time) < timedelta(seconds=ENDING_SECONDS_MAX)


def release(pods: tuple[ObservedPod, ...], grace_seconds: int | None) -> list[Action]:
    """Delete every pod that nobody has told to go yet, and for good those that do not go, or that
    nobody can tell."""
    told = [
        DeletePod(
            name=pod.name, uid=pod.uid, grace_seconds=0 if pod.is_on_dead_node else grace_seconds
        )
        for pod in pods
        if not pod.is_deleting
    ]
    stuck = [DeletePod(name=p.name, uid=p.uid, grace_seconds=0) for p in pods if _is_stuck(p)]
    return [*told, *stuck]


def _is_stuck(pod: ObservedPod) -> bool:
    """Whether it should long be gone: nobody on its node hears that it is to go. One that was
    forced already has another reason to stay, such as a finalizer."""
    is_late = pod.deleting_seconds > pod.grace_seconds + STUCK_SECONDS
    is_late = is_late or (pod.is_on_dead_node and pod.is_deleting)
    return is_late and pod.grace_seconds > 0 and not pod.is_terminal
