"""Does the operator know what is wanted, and is anything wanted at all?"""

from datetime import datetime

from lmtraining_api import ConditionType
from lmtraining_api.names import ANNOTATION_PAUSED
from lmtraining_api.status import Accepted, Succeeded
from lmtraining_cli.snapshot import Object, Snapshot, moment
from lmtraining_cli.why.finding import Finding, lasting

NOTICE_SECONDS = 10.0
"""An operator that runs has looked at a job by then."""
_OPERATOR = (
    "check that the operator runs and watches this namespace (its chart value watchNamespaces): "
    "kubectl get pods --all-namespaces --selector lmtraining.dev/component=operator"
)


def being_deleted(snapshot: Snapshot) -> Finding | None:
    """The job is on its way out."""
    deleted = moment(snapshot.job["metadata"].get("deletionTimestamp"))
    if deleted is None:
        return None
    holders = snapshot.job["metadata"].get("finalizers") or []
    held = f", held by finalizer {holders[0]}" if holders else ""
    return Finding(
        cause="BeingDeleted",
        sentence=f"the job is being deleted{held}",
        evidence=[f"metadata.deletionTimestamp {deleted.isoformat()}"],
        fix=f"see to what {holders[0]} waits for" if holders else "nothing: it is gone soon",
    )


def not_seen(snapshot: Snapshot) -> Finding | None:
    """No operator has ever said a word about it."""
    if snapshot.status.conditions or snapshot.age_seconds < NOTICE_SECONDS:
        return None
    return Finding(
        cause="NoOperator",
        sentence=f"no operator has looked at this job {lasting(snapshot.age_seconds)}",
        evidence=["the job has no status"],
        fix=_OPERATOR,
    )


def paused(snapshot: Snapshot) -> Finding | None:
    """Somebody keeps the operator's hands off it."""
    if snapshot.reason(ConditionType.ACCEPTED) != Accepted.PAUSED:
        return None
    return Finding(
        cause="Paused",
        sentence=f"nobody watches this job: {snapshot.message(ConditionType.ACCEPTED)}",
        evidence=["condition Accepted is False (Paused)"],
        fix=f"kubectl annotate lmtj {snapshot.name} {ANNOTATION_PAUSED}-",
    )


def not_accepted(snapshot: Snapshot) -> Finding | None:
    """The spec contradicts itself or the cluster."""
    found = snapshot.status.condition(ConditionType.ACCEPTED)
    if found is None or found.status != "False" or found.reason == Accepted.PAUSED:
        return None
    is_old = found.reason == Accepted.UNSUPPORTED
    return Finding(
        cause=found.reason,
        sentence=f"the operator does not run this spec: {found.message}",
        evidence=[f"condition Accepted is False ({found.reason})"],
        fix="upgrade the operator, or remove the field that it names"
        if is_old
        else "change what the sentence names; most of the spec needs a new job",
    )


def suspended(snapshot: Snapshot) -> Finding | None:
    """Somebody has asked it to wait."""
    if not snapshot.value("suspend") or snapshot.state == Succeeded.SUSPENDING:
        return None
    who = _last_writer(snapshot.job, "f:suspend")
    return Finding(
        cause="Suspended",
        sentence="the job waits because spec.suspend is true",
        evidence=[f"set by {who}"] if who else [],
        fix=f"kubectl lmtrain resume {snapshot.name}",
    )


def not_followed(snapshot: Snapshot) -> Finding | None:
    """The newest edit of the spec has not been looked at."""
    wanted = int(snapshot.job["metadata"].get("generation") or 0)
    seen = snapshot.status.observed_generation
    edited = _last_edit(snapshot.job)
    since = (snapshot.now - edited).total_seconds() if edited else NOTICE_SECONDS
    if seen >= wanted or since < NOTICE_SECONDS:
        return None
    return Finding(
        cause="OperatorBehind",
        sentence=f"the operator has not looked at the newest change of the spec {lasting(since)}",
        evidence=[f"metadata.generation {wanted}, status.observedGeneration {seen}"],
        fix=_OPERATOR,
    )


def _writers(job: Object, field: str) -> list[Object]:
    found = job["metadata"].get("managedFields") or []
    return [
        one
        for one in found
        if not one.get("subresource") and _has(one.get("fieldsV1") or {}, field)
    ]


def _has(fields: Object, name: str) -> bool:
    return any(
        key == name or (isinstance(below, dict) and _has(below, name))
        for key, below in fields.items()
    )


def _last_writer(job: Object, field: str) -> str:
    writers = _writers(job, field)
    return f"{writers[-1].get('manager')} at {writers[-1].get('time')}" if writers else ""


def _last_edit(job: Object) -> datetime | None:
    times = [moment(one.get("time")) for one in _writers(job, "f:spec")]
    return max((time for time in times if time), default=None)
