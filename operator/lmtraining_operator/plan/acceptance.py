"""Can this version run this spec, here?

Promise: a job that cannot be run says so in a sentence that names the field and the fix, and is
taken up when the cause is gone (P12). Traps avoided: two jobs in one run directory would overwrite
each other's checkpoints; a ReadWriteOnce volume lets the second pod of a gang wait for ever.
"""

from dataclasses import dataclass

from pydantic import ValidationError

from lmtraining_api.base import BEGUN
from lmtraining_api.explain import explain_validation_error
from lmtraining_api.fields import quantity_value
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.names import ANNOTATION_PAUSED
from lmtraining_api.status import (
    STATUS_VERSION,
    Accepted,
    ConditionType,
    LMTrainingJobStatus,
    Succeeded,
)
from lmtraining_operator.plan import figures, names, permission
from lmtraining_operator.plan.model import Object, ObservedClaim, Plan, PublishEvent
from lmtraining_operator.plan.situation import Situation

NEWER_SECONDS = 300.0
"""How long a job of a newer operator is left alone before it is looked at again."""
MANY_NODES_MODE = "ReadWriteMany"

_READ = ("apiVersion", "kind", "metadata", "spec")
_UNKNOWN_TO_US = frozenset({"literal_error", "extra_forbidden"})


@dataclass(frozen=True, kw_only=True)
class NotAccepted:
    """Why the job cannot be run as it is."""

    reason: Accepted
    message: str


def parse(job: Object, *, has_begun: bool) -> LMTrainingJob | NotAccepted:
    """The job as the contract reads it, or what is wrong with it. One that has begun goes on under
    the rules that it began with: a younger one would abandon it, and nobody could mend it (P10)."""
    read = {key: job[key] for key in _READ if key in job}
    try:
        return LMTrainingJob.model_validate(read, context=BEGUN if has_begun else None)
    except ValidationError as error:
        return _explain(error)


def is_paused(job: Object) -> bool:
    """Whether a person has told the operator to keep its hands off this job."""
    annotations = job["metadata"].get("annotations") or {}
    return str(annotations.get(ANNOTATION_PAUSED, "")).lower() == "true"


def is_of_a_newer_operator(status: LMTrainingJobStatus) -> bool:
    """Whether what stands in status was said by an operator that knows more."""
    return status.schema_version > STATUS_VERSION


def left_to_a_newer_operator(status: LMTrainingJobStatus) -> Plan:
    """Nothing of it is touched: what this version would write would leave out what it does not
    know. Its pods train on (P10)."""
    said = PublishEvent(
        type="Warning",
        reason="NewerOperator",
        message=f"the status of this job has schemaVersion {status.schema_version}, of a newer "
        f"operator; this one knows {STATUS_VERSION}, and leaves the job and its pods alone: "
        "upgrade the operator again",
        attempt=status.attempt,
    )
    return Plan(status=status, actions=(said,), look_again_seconds=NEWER_SECONDS)


PAUSED = NotAccepted(
    reason=Accepted.PAUSED,
    message=f"the annotation {ANNOTATION_PAUSED} is true: nothing is made, mended or ended, and "
    "the pods that run are left alone; remove it to go on",
)


def state_without(status: LMTrainingJobStatus, refusal: NotAccepted) -> Succeeded | None:
    """The state of a job that the operator keeps its hands off; None leaves what was said."""
    if refusal is PAUSED:
        return Succeeded.PAUSED
    if status.attempt == 0:
        return Succeeded.PENDING
    known = status.condition(ConditionType.SUCCEEDED)
    was_paused = known is not None and known.reason == Succeeded.PAUSED
    return Succeeded.UNREACHABLE if was_paused else None


def reason_not_to_start(situation: Situation) -> NotAccepted | None:
    """Why the first attempt must not begin, or None."""
    return (
        _is_not_allowed(situation) or _claim_is_unfit(situation) or _directory_is_taken(situation)
    )


def _explain(error: ValidationError) -> NotAccepted:
    unknown = any(one["type"] in _UNKNOWN_TO_US for one in error.errors(include_input=False))
    sentences = "; ".join(explain_validation_error(error))
    advice = "; or upgrade the operator, if the field is newer than it" if unknown else ""
    return NotAccepted(
        reason=Accepted.UNSUPPORTED if unknown else Accepted.INVALID,
        message=figures.bounded(sentences + advice),
    )


def _is_not_allowed(situation: Situation) -> NotAccepted | None:
    sentence = permission.outside(situation.spec, situation.settings.allowed)
    return NotAccepted(reason=Accepted.NOT_ALLOWED, message=sentence) if sentence else None


def _claim_is_unfit(situation: Situation) -> NotAccepted | None:
    claim = situation.observed.claim
    replicas = situation.spec.workers.replicas
    if claim is None:
        return None
    if replicas > 1 and claim.access_modes and MANY_NODES_MODE not in claim.access_modes:
        return NotAccepted(
            reason=Accepted.INVALID,
            message=f"PersistentVolumeClaim {claim.name} has access mode "
            f"{', '.join(claim.access_modes)}, but workers.replicas is {replicas} and all pods "
            f"write to it: use a claim with {MANY_NODES_MODE}, or set workers.replicas to 1",
        )
    return _claim_is_foreign(situation, claim) or _claim_is_small(situation, claim)


def _claim_is_foreign(situation: Situation, claim: ObservedClaim) -> NotAccepted | None:
    """A claim under the name that this job would give to its own, made by somebody else."""
    is_to_be_ours = situation.spec.checkpoint.storage.existing_claim is None
    if not is_to_be_ours or claim.made_for_job == situation.job.metadata.name:
        return None
    return NotAccepted(
        reason=Accepted.INVALID,
        message=f"PersistentVolumeClaim {claim.name} was not made for this job: name it in "
        "checkpoint.storage.existingClaim to use it, or give the job another name",
    )


def _claim_is_small(situation: Situation, claim: ObservedClaim) -> NotAccepted | None:
    """What an earlier job of this name left behind may not be what this one asks for."""
    wanted = situation.spec.checkpoint.storage.claim
    if wanted is None or not claim.size:
        return None
    if quantity_value(claim.size) >= quantity_value(wanted.size):
        return None
    return NotAccepted(
        reason=Accepted.INVALID,
        message=f"PersistentVolumeClaim {claim.name}, kept from an earlier job of this name, has "
        f"{claim.size}, but checkpoint.storage.claim.size is {wanted.size}: expand the claim, "
        "delete it if nobody needs its checkpoints, or make the job with that size",
    )


def may_have_rivals(job: Object, status: LMTrainingJobStatus) -> bool:
    """Whether the other jobs of the namespace must be known: one that names no path has a run
    directory of its own, and one that has begun goes on."""
    checkpoint = job.get("spec", {}).get("checkpoint") or {}
    return status.attempt == 0 and bool(checkpoint.get("path"))


def _directory_is_taken(situation: Situation) -> NotAccepted | None:
    job = situation.job
    if job.spec.checkpoint.path is None:
        return None
    ours = (names.claim_name(job), names.store_uri(job), names.run_path(job))
    rivals = [other for other in situation.observed.other_jobs if names.storage_of(other) == ours]
    winners = [other for other in rivals if _goes_first(other, situation)]
    if not winners:
        return None
    return NotAccepted(
        reason=Accepted.INVALID,
        message=f"LMTrainingJob {winners[0]['metadata']['name']} already uses checkpoint.path "
        f"{job.spec.checkpoint.path} on {names.place(*ours[:2])}: choose another path, or, "
        "to go on from that run once its job has ended, set checkpoint.existingRun to Resume",
    )


def _goes_first(other: Object, situation: Situation) -> bool:
    """Whether the other job holds the directory: it has begun, or else it is older.

    A job that has begun comes first even when it is younger: its pods may be writing.
    """
    status = LMTrainingJobStatus.model_validate(other.get("status") or {})
    if status.is_terminal:
        return False
    if status.attempt > 0:
        return True
    metadata = other["metadata"]
    age_of_other = (str(metadata.get("creationTimestamp", "")), str(metadata["name"]))
    return age_of_other < (situation.created_at, situation.job.metadata.name)
