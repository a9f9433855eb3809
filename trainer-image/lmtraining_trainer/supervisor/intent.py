"""When may this pod's ranks start?

Promise (P1): only an intent for this job, this attempt and this very pod, with one peer per
replica, starts a gang. Anything else (absent, empty, half written, another life's) is waited out,
and the answer says what is missing. A pure function; the caller reads the file again and again.
Trap avoided: an intent that outlives its attempt. The annotation of a pod that was replaced under
the same name names another pod UID, and is not ours.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lmtraining_api import Intent, JobFile, Wishes
from lmtraining_api.records import gang_digest
from lmtraining_trainer.supervisor.identity import Identity

INTENT_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Gang:
    """The starting gun has gone: where the lead is."""

    lead_address: str
    other_addresses: tuple[str, ...]
    """Those of the other pods, without the lead."""
    digest: str
    """Names exactly these pods."""
    generation: int

    @property
    def leads(self) -> tuple[str, ...]:
        """The address of the lead, as the only one."""
        return (self.lead_address,)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Not yet, and why."""

    message: str


def read_intent_file(path: Path) -> str:
    """The text of the intent file, or nothing while it cannot be read.

    The downward API replaces the file by a symbolic link's swap, so one read sees one version.
    """
    try:
        with path.open("rb") as file:
            return file.read(INTENT_BYTES_MAX).decode("utf-8", errors="replace")
    except OSError:
        return ""


def gang_of(text: str, *, identity: Identity, job: JobFile) -> Gang | Waiting:
    """The gang that this intent starts, or what it is waiting for."""
    if not text.strip():
        return Waiting(message="waiting for the operator's intent")
    try:
        intent = Intent.model_validate_json(text)
    except ValidationError:
        return Waiting(message="waiting for an intent that can be read; the present one cannot")
    if intent.job_uid != job.job_uid:
        return Waiting(
            message=f"waiting for an intent for job UID {job.job_uid}; the present one is for "
            f"{intent.job_uid[:64]}"
        )
    if intent.attempt != identity.attempt:
        return Waiting(
            message=f"waiting for an intent for attempt {identity.attempt}; the present one is for "
            f"attempt {intent.attempt}"
        )
    return _gang_of_peers(intent, identity=identity, replicas=job.spec.workers.replicas)


def wishes_of(text: str, *, identity: Identity, job: JobFile) -> Wishes | None:
    """What an intent for this job and attempt wants beyond a gang; None where it does not say."""
    try:
        intent = Intent.model_validate_json(text)
    except ValidationError:
        return None
    is_ours = intent.job_uid == job.job_uid and intent.attempt == identity.attempt
    return intent.wishes if is_ours else None


def _gang_of_peers(intent: Intent, *, identity: Identity, replicas: int) -> Gang | Waiting:
    peers = {peer.replica: peer for peer in intent.peers if peer.address and peer.pod_uid}
    missing = [replica for replica in range(replicas) if replica not in peers]
    if missing:
        first = ", ".join(str(replica) for replica in missing[:8])
        return Waiting(
            message=f"waiting for {len(missing)} of {replicas} pods: replica {first}"
            + ("" if len(missing) <= 8 else " and more")
        )
    if len(intent.peers) != replicas:
        return Waiting(
            message=f"waiting for a peer table of {replicas} pods; the present one has "
            f"{len(intent.peers)}"
        )
    if peers[identity.replica].pod_uid != identity.pod_uid:
        return Waiting(
            message=f"waiting for a peer table with this pod as replica {identity.replica}; the "
            "present one names another pod"
        )
    others = tuple(peers[replica].address for replica in range(1, replicas))
    return Gang(
        lead_address=peers[0].address,
        other_addresses=others,
        digest=gang_digest(peer.pod_uid for peer in intent.peers),
        generation=intent.generation,
    )
