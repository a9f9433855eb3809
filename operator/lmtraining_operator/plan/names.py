"""Names of the children, made from the job alone.

Promise: doing a thing twice makes one object. Trap avoided: generated names, which make a second
child after a crash between two writes.
"""

import re
from typing import NamedTuple

from lmtraining_api import names
from lmtraining_api.job import LMTrainingJob
from lmtraining_operator.plan.model import Object

_POD_NAME = re.compile(r"-([0-9]+)-([0-9]+)-([0-9]+)$")


def pod_name(job: LMTrainingJob, attempt: int, replica: int, replaced: int = 0) -> str:
    """`replaced`: how often the pod of the replica was replaced alone within the attempt."""
    return f"{job.metadata.name}-{attempt}-{replica}-{replaced}"


class PodNameParts(NamedTuple):
    """What the name of a pod says."""

    attempt: int
    replica: int
    number: int
    """How often the pod of its replica was replaced before."""


def parts_of_pod_name(name: str) -> PodNameParts | None:
    """The parts of a name that `pod_name` has made; None for any other."""
    found = _POD_NAME.search(name)
    return PodNameParts(*(int(number) for number in found.groups())) if found else None


def pod_number(name: str) -> int:
    """How often the replica of a pod of that name was replaced before."""
    parts = parts_of_pod_name(name)
    return parts.number if parts else 0


def config_map_name(job_name: str) -> str:
    """One for all attempts: all that is in it is immutable."""
    return f"{job_name}-job-file"


def network_policy_name(job: LMTrainingJob) -> str:
    return job.metadata.name


def own_claim_name(job_name: str) -> str:
    return f"{job_name}-checkpoints"


def claim_name(job: LMTrainingJob) -> str:
    """The claim that holds the run directory; "" where an object store does."""
    storage = job.spec.checkpoint.storage
    if storage.uri is not None:
        return ""
    return storage.existing_claim or own_claim_name(job.metadata.name)


def store_uri(job: LMTrainingJob) -> str:
    """The object store that holds the run directory; "" where a claim does."""
    return (job.spec.checkpoint.storage.uri or "").rstrip("/")


def place(claim: str, uri: str) -> str:
    """Where a run directory is, for a message."""
    return uri or f"PersistentVolumeClaim {claim}"


def uri_of(job: LMTrainingJob, path: str) -> str:
    """A path below the root of the storage, in the object store; "" where there is none."""
    uri = store_uri(job)
    return f"{uri}/{path}" if uri else ""


def default_path(job_name: str, uid: str) -> str:
    return f"{job_name}-{uid[:8]}"


def run_path(job: LMTrainingJob) -> str:
    """Run directory below the runs directory of the volume."""
    return job.spec.checkpoint.path or default_path(job.metadata.name, job.metadata.uid)


def run_directory(job: LMTrainingJob) -> str:
    """Run directory as the pods see it."""
    return f"{names.RUNS_DIRECTORY}/{run_path(job)}"


def run_directory_in_volume(job: LMTrainingJob) -> str:
    """Run directory from the root of the volume."""
    return run_directory(job).removeprefix(f"{names.STORAGE_DIRECTORY}/")


def storage_of(job: Object) -> tuple[str, str, str]:
    """Claim, or object store, and run directory of a job whose spec may not even parse."""
    metadata = job["metadata"]
    checkpoint = job.get("spec", {}).get("checkpoint") or {}
    storage = checkpoint.get("storage") or {}
    uri = str(storage.get("uri") or "").rstrip("/")
    claim = "" if uri else storage.get("existingClaim") or own_claim_name(metadata["name"])
    path = checkpoint.get("path") or default_path(metadata["name"], metadata.get("uid", ""))
    return claim, uri, path
