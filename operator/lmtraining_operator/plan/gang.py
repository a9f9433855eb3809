"""Which pods should exist, and what are they told?

Promise: pods of an attempt are made only while no pod of another attempt is left (P1), and the peer
table, the starting gun, is given only when every pod of the attempt runs. Trap avoided: a pod that
is absent is made again only if the gang was never complete; later its absence is a failure.
"""

from lmtraining_api.records import Intent, Peer
from lmtraining_operator.plan import manifests, names
from lmtraining_operator.plan.backoff import refusal_wait_seconds
from lmtraining_operator.plan.model import Action, Create, DeletePod, ObservedPod, SetIntent
from lmtraining_operator.plan.situation import Situation

BROKEN_GANG_GRACE_SECONDS = 5
"""Time to stop for pods whose gang is broken: they make no progress and have nothing to save."""


def children(situation: Situation) -> list[Action]:
    """What must be made for the attempt to run."""
    if situation.strays:
        return release(situation.strays, BROKEN_GANG_GRACE_SECONDS)
    if situation.gang_was_complete or not situation.missing:
        return intents(situation)
    pods = [
        Create(
            body=manifests.pod(
                situation.job,
                attempt=situation.attempt,
                replica=situation.expected[name],
                intent=waiting_intent(situation),
                settings=situation.settings,
            )
        )
        for name in situation.missing
    ]
    return [one for one in (*_prerequisites(situation), *pods) if may_create(situation, one)]


def _prerequisites(situation: Situation) -> list[Create]:
    job, observed = situation.job, situation.observed
    wanted = []
    if observed.config_map != names.config_map_name(job, situation.attempt):
        wanted.append(Create(body=manifests.config_map(job, situation.attempt)))
    if observed.claim is None and job.spec.checkpoint.storage.claim is not None:
        wanted.append(Create(body=manifests.claim(job)))
    if not observed.network_policy:
        wanted.append(Create(body=manifests.network_policy(job)))
    return wanted


def may_create(situation: Situation, create: Create) -> bool:
    """False while an object that was refused has not waited long enough."""
    refusal = situation.observed.refusals.get(create.key)
    if refusal is None:
        return True
    waited = (situation.now - refusal.time).total_seconds()
    return waited >= refusal_wait_seconds(refusal.count)


def intents(situation: Situation) -> list[Action]:
    """The peer table, for each pod that has another one, once all pods run."""
    if not situation.gang_runs:
        return []
    wanted = running_intent(situation)
    return [
        SetIntent(name=pod.name, uid=pod.uid, intent=wanted)
        for pod in situation.gang
        if pod.intent != wanted
    ]


def waiting_intent(situation: Situation) -> str:
    """Wait for your peers."""
    return _intent(situation, [])


def running_intent(situation: Situation) -> str:
    """These are your peers: go."""
    return _intent(
        situation,
        [Peer(replica=pod.replica, pod_uid=pod.uid, address=pod.address) for pod in situation.gang],
    )


def _intent(situation: Situation, peers: list[Peer]) -> str:
    intent = Intent(
        job_uid=situation.job.metadata.uid,
        attempt=situation.attempt,
        generation=situation.job.metadata.generation,
        peers=peers,
    )
    return intent.model_dump_json(by_alias=True)


def release(pods: tuple[ObservedPod, ...], grace_seconds: int) -> list[Action]:
    """Delete every pod that nobody has told to go yet."""
    return [
        DeletePod(name=pod.name, uid=pod.uid, grace_seconds=grace_seconds)
        for pod in pods
        if not pod.is_deleting
    ]
