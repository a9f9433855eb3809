"""A job and what is around it, at one moment.

Promise: everything that is shown or concluded is a function of one `Snapshot`; what the user's
rights do not let us see is absent, and `unseen` says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from lmtraining_api import ConditionType, LMTrainingJobStatus, TrainerReport, names

Object = dict[str, Any]
CONTAINER = "trainer"


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of the job, as the API server has it."""

    body: Object

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.body["metadata"].get("uid", ""))

    @property
    def node(self) -> str:
        return str(self.body.get("spec", {}).get("nodeName") or "")

    @property
    def phase(self) -> str:
        return str(self._status.get("phase") or "Pending")

    @property
    def replica(self) -> int:
        return self._label(names.LABEL_REPLICA)

    @property
    def attempt(self) -> int:
        return self._label(names.LABEL_ATTEMPT)

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.body["metadata"]

    @property
    def gates(self) -> list[str]:
        """What must let the pod go before the scheduler looks at it, such as a queue."""
        return [
            str(gate["name"]) for gate in self.body.get("spec", {}).get("schedulingGates") or ()
        ]

    @property
    def unschedulable(self) -> str:
        """The scheduler's words; empty where it has none."""
        found = self.condition("PodScheduled")
        if found.get("status") != "False" or found.get("reason") != "Unschedulable":
            return ""
        return str(found.get("message") or "unschedulable")

    @property
    def waiting(self) -> tuple[str, str]:
        """Reason and message of a container that cannot start."""
        found = self._state.get("waiting") or {}
        return str(found.get("reason", "")), str(found.get("message", ""))

    @property
    def ended(self) -> Object:
        """How the container ended; empty while it has not."""
        return dict(self._state.get("terminated") or {})

    @property
    def has_started(self) -> bool:
        return "running" in self._state or bool(self.ended)

    @property
    def created(self) -> datetime | None:
        return moment(self.body["metadata"].get("creationTimestamp"))

    def condition(self, kind: str) -> Object:
        """A condition of the pod; empty where it has none of that type."""
        found: list[Object] = self._status.get("conditions") or []
        return next((one for one in found if one.get("type") == kind), {})

    @property
    def _status(self) -> Object:
        return self.body.get("status") or {}

    @property
    def _state(self) -> Object:
        found: list[Object] = self._status.get("containerStatuses") or []
        ours = next((one for one in found if one.get("name") == CONTAINER), {})
        return ours.get("state") or {}

    def _label(self, name: str) -> int:
        value = (self.body["metadata"].get("labels") or {}).get(name, "")
        return int(value) if value.isdigit() else -1


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the cluster said about an object."""

    about: str
    """Kind and name: Pod/tiny-1-0-0."""
    type: str
    reason: str
    message: str
    time: datetime | None
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One job, and what is around it. None: this user may not see it."""

    job: Object
    now: datetime
    pods: Sequence[Pod] = ()
    """Of the newest attempt, by replica."""
    events: Sequence[Event] = ()
    """Newest first."""
    claim: Object | None = None
    claim_is_known: bool = False
    """Whether the claim was asked for; `claim` is None then where it does not exist."""
    nodes: Sequence[Object] | None = None
    quotas: Sequence[Object] | None = None
    report: TrainerReport | None = None
    reports: Sequence[TrainerReport] = field(default=())
    """Of all pods that answered, by replica."""
    unseen: Sequence[str] = ()
    """What this user may not see, one sentence each."""

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.job["metadata"]["namespace"])

    @property
    def spec(self) -> Object:
        return dict(self.job.get("spec") or {})

    @cached_property
    def status(self) -> LMTrainingJobStatus:
        return LMTrainingJobStatus.model_validate(self.job.get("status") or {})

    @property
    def state(self) -> str:
        """Reason of Succeeded."""
        return self.reason(ConditionType.SUCCEEDED) or "Pending"

    def reason(self, kind: ConditionType) -> str:
        """Reason of a condition; empty where it is not set."""
        found = self.status.condition(kind)
        return found.reason if found else ""

    def message(self, kind: ConditionType) -> str:
        """Message of a condition; empty where it is not set."""
        found = self.status.condition(kind)
        return found.message if found else ""

    def value(self, path: str) -> Any:
        """What the spec has at a dotted path; None where it has nothing."""
        place: Any = self.spec
        for part in path.split("."):
            place = place.get(part) if isinstance(place, dict) else None
        return place

    @property
    def age_seconds(self) -> float:
        made = moment(self.job["metadata"].get("creationTimestamp"))
        return (self.now - made).total_seconds() if made else 0.0

    @property
    def replicas(self) -> int:
        return int(self.value("workers.replicas") or 1)

    @property
    def claim_name(self) -> str:
        """Of the volume that holds the run; empty for an object store."""
        storage = self.value("checkpoint.storage") or {}
        if "uri" in storage:
            return ""
        return str(storage.get("existingClaim") or f"{self.name}-checkpoints")

    def events_about(self, about: str) -> list[Event]:
        """Newest first."""
        return [event for event in self.events if event.about == about]


def moment(text: object) -> datetime | None:
    """A time of the API server."""
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def event_of(body: Object) -> Event:
    """As the API server has it, old style or new."""
    involved = body.get("involvedObject") or {}
    series = body.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        body.get("lastTimestamp"),
        body.get("eventTime"),
        (body.get("metadata") or {}).get("creationTimestamp"),
    )
    return Event(
        about=f"{involved.get('kind', '')}/{involved.get('name', '')}",
        type=str(body.get("type") or "Normal"),
        reason=str(body.get("reason") or ""),
        message=" ".join(str(body.get("message") or "").split()),
        time=moment(next((time for time in times if time), None)),
        count=int(series.get("count") or body.get("count") or 1),
    )
