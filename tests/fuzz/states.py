"""How a job stands, by what the API server holds.

Trap avoided: a job that is under way and one that was looked at before the newest wish both look
handled.
"""

import json
import re
from collections.abc import Sequence

from pydantic import ValidationError

from lmtraining_api import names as api
from lmtraining_api.records import Intent
from lmtraining_api.status import Accepted, ConditionType, LMTrainingJobStatus, Scheduled, Succeeded
from tests.contract_cases import Document

PODS_MAX = 8
"""A larger gang is asked for by a dry run alone: each pod costs the server what a job does."""
RUNNING = "Running"
WAITS = {
    # Another job writes to the same run directory; the host's network.
    ConditionType.ACCEPTED: {Accepted.INVALID, Accepted.NOT_ALLOWED},
    ConditionType.SCHEDULED: {Scheduled.VOLUME_NOT_READY},  # no such claim
}
"""What an accepted job may wait for here. Its children are never refused by the API server, but
for a class that is not there."""
NO_CLASS = re.compile(r'no PriorityClass with name|RuntimeClass "[^"]*" not found')
GOOD_STATES = {RUNNING, Succeeded.SUSPENDED, Succeeded.DEADLINE_EXCEEDED}


def is_only_asked(document: Document) -> bool:
    """Whether a dry run must do: the name may be taken, or there would be too many pods."""
    name, spec = document["metadata"].get("name"), document.get("spec")
    workers = spec.get("workers") if isinstance(spec, dict) else None
    replicas = workers.get("replicas") if isinstance(workers, dict) else None
    is_large = isinstance(replicas, int) and replicas > PODS_MAX
    return is_large or not (isinstance(name, str) and name.startswith("fuzz-"))


def state_of(job: Document, pods: Sequence[Document]) -> str:
    """What the job has come to; empty while it is under way."""
    status = LMTrainingJobStatus.model_validate(job.get("status") or {})
    summary = status.condition(ConditionType.SUCCEEDED)
    if summary is None or (status.is_terminal and pods):
        return ""
    if status.is_terminal:
        return summary.reason
    if status.observed_generation != job["metadata"]["generation"]:
        return ""
    if job["spec"].get("suspend"):
        return summary.reason if summary.reason == Succeeded.SUSPENDED and not pods else ""
    scheduled = status.condition(ConditionType.SCHEDULED)
    if scheduled and scheduled.status == "True" and _are_told(pods, job):
        return RUNNING
    return _waits_for(status)


def _are_told(pods: Sequence[Document], job: Document) -> bool:
    """Whether all pods are there, know each other, and know of the newest wish."""
    replicas, generation = job["spec"]["workers"]["replicas"], job["metadata"]["generation"]
    told = [intent(pod) for pod in pods]
    return len(told) == replicas and all(
        one and len(one.peers) == replicas and one.wishes and one.wishes.generation == generation
        for one in told
    )


def intent(pod: Document) -> Intent | None:
    """What the pod is told; None where nobody can read it."""
    text = pod["metadata"].get("annotations", {}).get(api.ANNOTATION_INTENT, "")
    try:
        return Intent.model_validate_json(text)
    except ValidationError:
        return None


def _waits_for(status: LMTrainingJobStatus) -> str:
    for kind, reasons in WAITS.items():
        condition = status.condition(kind)
        is_known = condition and condition.reason in reasons and condition.message
        if condition and (is_known or NO_CLASS.search(condition.message)):
            return f"{kind}: {condition.reason}"
    return ""


def is_seen(job: Document) -> bool:
    """Whether the operator has looked at the newest wish, or has nothing to say any more."""
    status = LMTrainingJobStatus.model_validate(job.get("status") or {})
    return status.is_terminal or status.observed_generation == job["metadata"]["generation"]


def troubles(log: Sequence[str]) -> list[str]:
    """Lines of the operator's log that tell of an error, or are no lines of its own at all."""
    return [f"the operator says: {line:.300}" for line in log if _is_trouble(line)]


def _is_trouble(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return True
    return entry["level"] in ("error", "critical") or "exception" in entry
