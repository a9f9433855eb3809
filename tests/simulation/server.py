"""An API server in memory, with the rules that operators trip over.

Promise: resourceVersion, generation, UID preconditions, deletionTimestamp and grace, server-side
apply on the status subresource, owner garbage collection and the order of watch events are those of
Kubernetes; every state that ever was can be read again, for readers that are late.
Trap avoided: objects that two parties hold and one changes. A stored object is never changed: a
write makes a new one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmtraining_api import names as api
from lmtraining_operator.gateway import CONFLICT, NOT_FOUND, ApiError, Object
from tests.simulation.clock import stamp

Key = tuple[str, str]
"""Kind and name; one namespace is enough."""
Objects = Mapping[Key, Object]

FORBIDDEN = 403
OPERATOR = "operator"
TERMINAL = frozenset({"Succeeded", "Failed"})
HISTORY_MAX = 400
RACE_SECONDS = 1.0
"""Two who want the same within this time cannot know of each other."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write that took effect."""

    type: str
    """ADDED, MODIFIED or DELETED."""
    object: Object
    actor: str
    before: Object | None = None

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


class ApiServer:
    """Objects of one namespace. Who writes says who it is."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.objects: dict[Key, Object] = {}
        self.version = 0
        self.listeners: list[Callable[[Change], None]] = []
        self.refused: dict[str, str] = {}
        """Message with which the creation of a kind is refused (403), whoever asks."""
        self.empty_writes: list[str] = []
        """Writes of the operator that changed nothing."""
        self._history: list[tuple[float, dict[Key, Object]]] = [(0.0, {})]
        self._foreign_status: dict[str, frozenset[str]] = {}
        """Fields of a job's status that somebody else applied, by UID of the job."""

    # --- reading ----------------------------------------------------------------------------

    def at(self, seconds: float) -> Objects:
        """All objects as they were then."""
        for time, objects in reversed(self._history):
            if time <= seconds:
                return objects
        return self._history[0][1]

    def of_kind(self, kind: str) -> list[Object]:
        return [one for (a_kind, _), one in self.objects.items() if a_kind == kind]

    def matching(
        self, kind: str, *, labels: str = "", fields: str = "", objects: Objects | None = None
    ) -> list[Object]:
        """As a LIST with selectors shows them, now or of `objects`."""
        every = self.objects if objects is None else objects
        found = [one for (a_kind, _), one in every.items() if a_kind == kind]
        if labels:
            key, _, value = labels.partition("=")
            found = [one for one in found if one["metadata"].get("labels", {}).get(key) == value]
        if kind == "Event" and fields:
            uid = fields.partition("involvedObject.uid=")[2].partition(",")[0]
            found = [one for one in found if one["involvedObject"]["uid"] == uid]
            found = [one for one in found if one["type"] == "Warning"]
        return found

    # --- writing ----------------------------------------------------------------------------

    def create(self, body: Object, actor: str) -> Object:
        kind, name = body["kind"], body["metadata"]["name"]
        if kind in self.refused and actor == OPERATOR:
            raise ApiError(FORBIDDEN, "Forbidden", self.refused[kind])
        if (kind, name) in self.objects:
            raise ApiError(CONFLICT, "AlreadyExists", f"{kind} {name} already exists")
        uid = f"{self.version + 1:08d}-uid"
        metadata = body["metadata"] | {
            "uid": uid,
            "generation": 1,
            "creationTimestamp": stamp(self._now()),
        }
        made = body | {"metadata": metadata}
        if kind == "Pod":
            made["status"] = {"phase": "Pending"}
        return self._store("ADDED", made, actor)

    def delete(self, key: Key, actor: str, *, uid: str, grace_seconds: int | None) -> None:
        """A pod that may run gets its time to stop, which a later request can only shorten."""
        found = self._found(key, uid)
        metadata = found["metadata"]
        if key[0] != "Pod" or not found["spec"].get("nodeName"):
            return self._remove(found, actor)
        own = found["spec"].get("terminationGracePeriodSeconds", 30)
        wanted = own if grace_seconds is None else grace_seconds
        if found["status"]["phase"] in TERMINAL or wanted == 0:
            return self._remove(found, actor)
        if metadata.get("deletionGracePeriodSeconds", wanted + 1) <= wanted:
            if self._was_so(key, RACE_SECONDS):
                self._note_empty("delete", key, actor)
            return None
        changed = {
            "deletionTimestamp": stamp(self._now() + wanted),
            "deletionGracePeriodSeconds": wanted,
        }
        self._store("MODIFIED", found | {"metadata": metadata | changed}, actor)
        return None

    def annotate(self, key: Key, actor: str, *, uid: str, annotations: dict[str, str]) -> None:
        found = self._found(key, uid)
        old = found["metadata"].get("annotations", {})
        if old | annotations == old:
            self._note_empty("annotate", key, actor)
            return
        metadata = found["metadata"] | {"annotations": old | annotations}
        self._store("MODIFIED", found | {"metadata": metadata}, actor)

    def apply_status(self, body: Object, actor: str) -> Object:
        """Server-side apply by one manager: what it applied before and no longer names goes, what
        others applied stays. Only on the very object and version that the body names."""
        wanted = body["metadata"]
        key = (body["kind"], wanted["name"])
        found = self._found(key, wanted.get("uid", ""))
        version = wanted.get("resourceVersion", found["metadata"]["resourceVersion"])
        if found["metadata"]["resourceVersion"] != version:
            raise ApiError(CONFLICT, "Conflict", f"{key[1]} has changed")
        old = found.get("status", {})
        foreign = self._foreign_status.get(found["metadata"]["uid"], frozenset())
        status = {name: old[name] for name in foreign if name in old} | body["status"]
        if status == old:
            self._note_empty("apply status", key, actor)
            return found
        return self._store("MODIFIED", found | {"status": status}, actor)

    # --- what the rest of the cluster writes --------------------------------------------------

    def edit_spec(self, key: Key, actor: str, spec: Object) -> None:
        """A person changes the wish."""
        found = self.objects[key]
        if found["spec"] == spec:
            return
        generation = found["metadata"]["generation"] + 1
        metadata = found["metadata"] | {"generation": generation}
        self._store("MODIFIED", found | {"metadata": metadata, "spec": spec}, actor)

    def edit_status_by_hand(self, key: Key, actor: str, fields: Object) -> None:
        """Another manager applies fields of its own to the status."""
        found = self.objects[key]
        uid = found["metadata"]["uid"]
        self._foreign_status[uid] = self._foreign_status.get(uid, frozenset()) | fields.keys()
        self._store("MODIFIED", found | {"status": found.get("status", {}) | fields}, actor)

    def set_node(
        self, name: str, actor: str, *, conditions: Object, taints: Mapping[str, str]
    ) -> None:
        """Node and node controller say how it is: status by type, and effect by key."""
        said = [{"type": kind, "status": status} for kind, status in conditions.items()]
        body = {
            "kind": "Node",
            "metadata": {"name": name, "uid": f"{name}-uid"},
            "spec": {"taints": [{"key": k, "effect": effect} for k, effect in taints.items()]},
            "status": {"conditions": said},
        }
        is_known = ("Node", name) in self.objects
        self._store("MODIFIED" if is_known else "ADDED", body, actor)

    def remove_node(self, name: str, actor: str) -> None:
        self._remove(self.objects["Node", name], actor)

    def wipe_status(self, key: Key, actor: str) -> None:
        """A person takes away all that was said."""
        self._store("MODIFIED", self.objects[key] | {"status": {"attempt": 0}}, actor)

    def set_pod(self, uid: str, actor: str, *, node: str = "", **status: Any) -> Object | None:
        """Scheduler and kubelet change the pod of that UID, where it still is."""
        found = self.pod_of(uid)
        if found is None:
            return None
        new = found | {"status": found["status"] | status}
        if node:
            new["spec"] = found["spec"] | {"nodeName": node}
        return self._store("MODIFIED", new, actor) if new != found else found

    def remove_pod(self, uid: str, actor: str) -> None:
        """It is gone from the API server, whatever its container does."""
        found = self.pod_of(uid)
        if found is not None:
            self._remove(found, actor)

    def pod_of(self, uid: str) -> Object | None:
        return next((p for p in self.of_kind("Pod") if p["metadata"]["uid"] == uid), None)

    def collect_garbage(self) -> None:
        """Delete what belongs to an owner that is no longer there."""
        uids = {one["metadata"]["uid"] for one in self.objects.values()}
        for key, found in list(self.objects.items()):
            owners = found["metadata"].get("ownerReferences") or []
            if not owners or any(owner["uid"] in uids for owner in owners):
                continue
            uid = found["metadata"]["uid"]
            if "deletionTimestamp" not in found["metadata"]:
                self.delete(key, "garbage collector", uid=uid, grace_seconds=None)

    # --- inside -----------------------------------------------------------------------------

    def _found(self, key: Key, uid: str) -> Object:
        found = self.objects.get(key)
        if found is None:
            raise ApiError(NOT_FOUND, "NotFound", f"{key[0]} {key[1]} not found")
        if uid and found["metadata"]["uid"] != uid:
            raise ApiError(CONFLICT, "Conflict", f"{key[1]} has another UID")
        return found

    def _store(self, type_: str, new: Object, actor: str) -> Object:
        self.version += 1
        new["metadata"] = new["metadata"] | {"resourceVersion": str(self.version)}
        key = (new["kind"], new["metadata"]["name"])
        before = self.objects.get(key)
        self.objects = {**self.objects, key: new}
        self._tell(Change(type_, new, actor, before))
        return new

    def _remove(self, found: Object, actor: str) -> None:
        self.version += 1
        key = (found["kind"], found["metadata"]["name"])
        self.objects = {name: one for name, one in self.objects.items() if name != key}
        self._tell(Change("DELETED", found, actor, found))

    def _tell(self, change: Change) -> None:
        self._history.append((self._now(), self.objects))
        if len(self._history) > HISTORY_MAX:
            del self._history[: HISTORY_MAX // 2]
        for listener in self.listeners:
            listener(change)

    def _was_so(self, key: Key, seconds: float) -> bool:
        """Whether the object is as it was that long ago."""
        return self.at(self._now() - seconds).get(key) is self.objects[key]

    def _note_empty(self, what: str, key: Key, actor: str) -> None:
        if actor == OPERATOR:
            self.empty_writes.append(f"{what} {key[0]} {key[1]}")


def owner_uid(found: Object) -> str:
    """UID of the job that the object belongs to; empty when it belongs to none."""
    owners = found["metadata"].get("ownerReferences") or []
    return str(owners[0]["uid"]) if owners else ""


def label(found: Object, name: str) -> int:
    """Attempt or replica of a pod."""
    return int(found["metadata"]["labels"][name])


def attempt_of(pod: Object) -> int:
    return label(pod, api.LABEL_ATTEMPT)


def replica_of(pod: Object) -> int:
    return label(pod, api.LABEL_REPLICA)
