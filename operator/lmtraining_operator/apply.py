"""Carry out the actions of a plan.

Promise: doing an action that has been done already changes nothing. An object that exists counts as
made only if it is this job's; one that the API server refuses is remembered, and what would be made
after it is left for the next pass. Trap avoided: a gang half made by hundreds of requests that a
full quota refuses one by one.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from lmtraining_api import names as api
from lmtraining_operator.gateway import CONFLICT, FORBIDDEN, ApiError, Gateway, Object
from lmtraining_operator.observe import owned_by
from lmtraining_operator.plan import (
    Action,
    Create,
    Delete,
    DeletePod,
    PublishEvent,
    Refusal,
    SetIntent,
)

ACTIONS_AT_ONCE_MAX = 16
REFUSALS = frozenset({400, 403, 404, 422})
"""Codes that mean "not this object, not now"; any other error ends the pass."""
EVENT_MESSAGE_LENGTH_MAX = 1024
COMPONENT = "lm-training-operator"


@dataclass
class Applier:
    """Carries out actions for one job UID and remembers what was refused."""

    gateway: Gateway
    job: Object
    now: datetime
    refusals: dict[str, Refusal] = field(default_factory=dict)
    event_errors: list[ApiError] = field(default_factory=list)
    _refused_now: bool = False

    async def apply(self, actions: Sequence[Action]) -> bool:
        """Carry them out in order; True when something was refused."""
        for batch in batches(actions):
            if self._refused_now and isinstance(batch[0], Create):
                continue
            results = await asyncio.gather(*map(self._carry_out, batch), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        return self._refused_now

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Create():
                await self._create(action)
            case DeletePod():
                await self.gateway.delete(
                    "Pod",
                    self._namespace,
                    action.name,
                    uid=action.uid,
                    grace_seconds=action.grace_seconds,
                )
            case Delete(kind="Workload"):
                await leave_queue(self.gateway, self._namespace, action.name, uid=action.uid)
            case Delete():
                await self.gateway.delete(
                    action.kind, self._namespace, action.name, uid=action.uid, grace_seconds=None
                )
            case SetIntent():
                await self.gateway.annotate(
                    "Pod",
                    self._namespace,
                    action.name,
                    uid=action.uid,
                    annotations={api.ANNOTATION_INTENT: action.intent},
                )
            case PublishEvent():
                await self._publish(action)

    async def _create(self, action: Create) -> None:
        try:
            await self.gateway.create(action.body)
        except ApiError as error:
            if error.code == CONFLICT:
                await self._take_existing(action, error)
            elif error.code in REFUSALS:
                self._refuse(action, error.code, error.message)
            else:
                raise
        else:
            self.refusals.pop(action.key, None)

    async def _take_existing(self, action: Create, error: ApiError) -> None:
        """The name is taken: by ourselves earlier, or by somebody else."""
        found = await self.gateway.get(action.kind, self._namespace, action.name)
        if found is None:
            raise error  # deleted meanwhile: the next pass makes it
        if owned_by(found, self._uid) or is_retained(found, self.job):
            self.refusals.pop(action.key, None)
        else:
            leaving = is_leaving(found, self.job)
            self._refuse(action, CONFLICT, owner_of(found), is_leaving=leaving)

    def _refuse(self, action: Create, code: int, message: str, *, is_leaving: bool = False) -> None:
        self._refused_now = True
        earlier = self.refusals.get(action.key)
        self.refusals[action.key] = Refusal(
            kind=action.kind,
            name=action.name,
            code=code,
            message=message,
            count=earlier.count + 1 if earlier else 1,
            time=self.now,
            is_leaving=is_leaving,
        )

    async def _publish(self, event: PublishEvent) -> None:
        """Best effort: what matters is in status."""
        try:
            await self.gateway.create(event_body(self.job, event, self.now))
        except ApiError as error:
            if error.code != CONFLICT:
                self.event_errors.append(error)

    @property
    def _namespace(self) -> str:
        return str(self.job["metadata"]["namespace"])

    @property
    def _uid(self) -> str:
        return str(self.job["metadata"]["uid"])


async def leave_queue(gateway: Gateway, namespace: str, group: str, *, uid: str) -> None:
    """Take a group out of its queue, or leave it there where we may not: roles that somebody wrote
    let us look alone, and a queue stops no job."""
    try:
        await gateway.delete("Workload", namespace, group, uid=uid, grace_seconds=None)
    except ApiError as error:
        if error.code != FORBIDDEN:
            raise


def batches(actions: Sequence[Action]) -> list[list[Action]]:
    """Runs of actions that may be carried out at once: what pods need, then the pods; all else of
    one kind too."""
    result: list[list[Action]] = []
    for action in actions:
        joins = (
            result
            and _kind(action) == _kind(result[-1][0])
            and len(result[-1]) < ACTIONS_AT_ONCE_MAX
        )
        if joins:
            result[-1].append(action)
        else:
            result.append([action])
    return result


def _kind(action: Action) -> str:
    if isinstance(action, Create):
        return "create pods" if action.kind == "Pod" else "create what they need"
    return type(action).__name__


def is_retained(found: Object, job: Object) -> bool:
    """A claim that an earlier job of this name left behind."""
    labels = found["metadata"].get("labels") or {}
    is_claim = found.get("kind") == "PersistentVolumeClaim"
    return is_claim and labels.get(api.LABEL_JOB_NAME) == job["metadata"]["name"]


def is_leaving(found: Object, job: Object) -> bool:
    """Whether the object goes by itself: it is being deleted, or the garbage collector will delete
    it after an earlier job of this name."""
    references = found["metadata"].get("ownerReferences") or []
    name = job["metadata"]["name"]
    is_of_earlier = any(
        one.get("kind") == api.KIND and one.get("name") == name for one in references
    )
    return is_of_earlier or "deletionTimestamp" in found["metadata"]


def owner_of(found: Object) -> str:
    """Who has the name, for a person."""
    references = found["metadata"].get("ownerReferences") or []
    owners = [f"{one.get('kind')} {one.get('name')}, UID {one.get('uid')}" for one in references]
    return f"it belongs to {'; '.join(owners)}" if owners else "it has no owner"


def event_body(job: Object, event: PublishEvent, now: datetime) -> Object:
    """An Event whose name is made of what it is about, so that it is made once."""
    metadata = job["metadata"]
    key = f"{metadata['uid']}/{event.reason}/{event.attempt}/{event.subject}".rstrip("/")
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{digest}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:EVENT_MESSAGE_LENGTH_MAX],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
