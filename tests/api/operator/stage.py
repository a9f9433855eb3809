"""What a person and a kubelet do in one namespace of a real API server.

Pods never run: the test patches their status as a kubelet would.
"""

import http.client
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from devcluster.apiserver import ApiServer
from devcluster.waiting import wait_until
from lmtraining_api import names as api
from lmtraining_api.records import ExitRecord, Intent
from lmtraining_api.status import Condition, ConditionType, LMTrainingJobStatus
from tests.side_by_side import process_number

Object = dict[str, Any]
T = TypeVar("T")

ANSWER_SECONDS_MAX = 30
WAIT_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02
TRAINER_IMAGE = "registry.example/trainer:1"
NODE = "node-1"
GONE = (404, 409)
MERGE = "application/merge-patch+json"

_PATHS = {
    "pods": "/api/v1",
    "configmaps": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "events": "/api/v1",
    "limitranges": "/api/v1",
    "resourcequotas": "/api/v1",
    "services": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "workloads": "/apis/kueue.x-k8s.io/v1beta2",
    api.PLURAL: f"/apis/{api.API_VERSION}",
}


@dataclass
class Stage:
    """One namespace: what a person and a kubelet do there."""

    server: ApiServer
    namespace: str
    network: int
    """Addresses of this test's pods: 127.<process>.<network>.<replica + 1>."""
    _connection: http.client.HTTPSConnection = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.server.ca))
        self._connection = http.client.HTTPSConnection(
            urlsplit(self.server.url).netloc, context=context, timeout=ANSWER_SECONDS_MAX
        )

    def close(self) -> None:
        self._connection.close()

    def request(
        self, method: str, plural: str, path: str = "", body: Object | None = None, **query: str
    ) -> tuple[int, Object]:
        url = f"{_PATHS[plural]}/namespaces/{self.namespace}/{plural}{path}"
        kind = MERGE if method == "PATCH" else "application/json"
        self._connection.request(
            method,
            f"{url}?{urlencode(query, quote_via=quote)}",
            None if body is None else json.dumps(body),
            {"Authorization": f"Bearer {self.server.admin_token}", "Content-Type": kind},
        )
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def do(self, method: str, plural: str, path: str = "", body: Object | None = None) -> Object:
        """The same, which must succeed."""
        code, answer = self.request(method, plural, path, body)
        assert code < 300, answer.get("message")
        return answer

    # --- what a person does -----------------------------------------------------------------

    def create_job(self, name: str, **changes: Any) -> Object:
        return self.do("POST", api.PLURAL, body=job_body(name, **changes))

    def patch_job(self, name: str, **spec: Any) -> None:
        self.do("PATCH", api.PLURAL, f"/{name}", {"spec": spec})

    def job(self, name: str) -> Object:
        return self.do("GET", api.PLURAL, f"/{name}")

    def status(self, name: str) -> LMTrainingJobStatus:
        return LMTrainingJobStatus.model_validate(self.job(name).get("status") or {})

    def list_objects(self, plural: str) -> list[Object]:
        return list(self.do("GET", plural)["items"])

    def pods(self, name: str) -> list[Object]:
        _, answer = self.request("GET", "pods", labelSelector=f"{api.LABEL_JOB_NAME}={name}")
        return sorted(answer["items"], key=lambda pod: str(pod["metadata"]["name"]))

    def wait(
        self, what: str, look: Callable[[], T | None], limit_seconds: float = WAIT_SECONDS_MAX
    ) -> T:
        return wait_until(what, look, limit_seconds=limit_seconds, poll_seconds=POLL_SECONDS)

    def wait_for(
        self,
        name: str,
        reason: str,
        kind: ConditionType = ConditionType.SUCCEEDED,
        limit_seconds: float = WAIT_SECONDS_MAX,
    ) -> Condition:
        """Wait until a condition has that reason."""

        def look() -> Condition | None:
            condition = self.status(name).condition(kind)
            return condition if condition and condition.reason == reason else None

        return self.wait(f"{name}: {kind} {reason}", look, limit_seconds)

    def wait_for_message(self, name: str, words: str, kind: ConditionType) -> None:
        """Wait until a condition says these words."""

        def look() -> bool | None:
            condition = self.status(name).condition(kind)
            return (condition is not None and words in condition.message) or None

        self.wait(f"{name}: {kind} says {words!r}", look)

    def wait_for_pods(self, name: str, attempt: int, count: int) -> list[Object]:
        def look() -> list[Object] | None:
            found = [p for p in self.pods(name) if label(p, api.LABEL_ATTEMPT) == attempt]
            return found if len(found) == count else None

        return self.wait(f"{name}: {count} pods of attempt {attempt}", look)

    def events(self, name: str) -> list[str]:
        return [e["reason"] for e in self.list_objects("events") if _about(e, name)]

    def wait_for_event(self, name: str, reason: str) -> None:
        """An event follows the status that it tells of."""
        self.wait(f"{name}: event {reason}", lambda: reason in self.events(name) or None)

    def label_namespace(self, patch: Object) -> None:
        self._namespace("PATCH", json.dumps(patch))

    def delete_namespace(self) -> None:
        """It is Terminating then, for ever: nobody here empties it."""
        self._namespace("DELETE")

    def _namespace(self, method: str, body: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {self.server.admin_token}", "Content-Type": MERGE}
        path = f"/api/v1/namespaces/{self.namespace}"
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status < 300

    # --- what a kubelet does ----------------------------------------------------------------

    def run_pods(self, name: str, attempt: int, count: int) -> list[Object]:
        """Wait for the pods of an attempt, and start them."""
        pods = self.wait_for_pods(name, attempt, count)
        for pod in pods:
            assert self.start(pod), "the pod is gone"
        return pods

    def start(self, pod: Object) -> bool:
        """Place it where it is not yet, and let it run; False when it is gone or going."""
        name, status = pod["metadata"]["name"], {"status": self._running(pod)}
        if "nodeName" not in pod["spec"]:
            code, _ = self.request("POST", "pods", f"/{name}/binding", _binding(name))
            if code in GONE:
                return False
        code, _ = self.request("PATCH", "pods", f"/{name}/status", status)
        return code not in GONE

    def place(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        self.do("POST", "pods", f"/{name}/binding", _binding(name))

    def patch_status(self, pod: Object, status: Object) -> None:
        self.do("PATCH", "pods", f"/{pod['metadata']['name']}/status", {"status": status})

    def address(self, replica: int) -> str:
        return f"127.{process_number()}.{self.network}.{replica + 1}"

    def _running(self, pod: Object) -> Object:
        address = self.address(label(pod, api.LABEL_REPLICA))
        state = {"running": {"startedAt": _now()}}
        return {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": [_container(state)],
        }

    def wait_container(self, pod: Object, reason: str, message: str) -> None:
        """The container cannot start."""
        state = {"waiting": {"reason": reason, "message": message}}
        self.patch_status(pod, {"phase": "Pending", "containerStatuses": [_container(state)]})

    def end_pod(
        self, pod: Object, code: int, record: ExitRecord | None = None, reason: str = ""
    ) -> None:
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": record.model_dump_json(exclude_none=True) if record else "",
            "startedAt": _now(),
            "finishedAt": _now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        state = _container({"terminated": ended})
        self.patch_status(pod, {"phase": phase, "containerStatuses": [state]})

    def bury(self, *pods: Object) -> None:
        """Wait until these pods are told to go, and let them be gone."""
        for pod in pods:
            name = pod["metadata"]["name"]

            def told(name: str = name) -> bool:
                code, answer = self.request("GET", "pods", f"/{name}")
                return code == 404 or "deletionTimestamp" in answer["metadata"]

            self.wait(f"{name} is deleted", lambda told=told: told() or None)
            self.vanish(pod)

    def vanish(self, pod: Object) -> None:
        """The pod is gone now."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        self.request("DELETE", "pods", f"/{pod['metadata']['name']}", options)

    def has_intent(self, pod: Object, intent: Intent) -> bool:
        found = self.do("GET", "pods", f"/{pod['metadata']['name']}")
        text = found["metadata"]["annotations"][api.ANNOTATION_INTENT]
        return bool(text == intent.model_dump_json(by_alias=True))

    def intent(self, pod: Object) -> Intent:
        found = self.do("GET", "pods", f"/{pod['metadata']['name']}")
        return Intent.model_validate_json(found["metadata"]["annotations"][api.ANNOTATION_INTENT])


def _binding(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    }


def _container(state: Object) -> Object:
    return {
        "name": "trainer",
        "image": TRAINER_IMAGE,
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def label(pod: Object, label: str) -> int:
    return int(pod["metadata"]["labels"][label])


def _about(event: Object, name: str) -> bool:
    return bool(event["involvedObject"]["name"] == name)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def job_body(name: str, **changes: Any) -> Object:
    """A job of two pods; `changes` are dotted paths below spec with `__` for the dots."""
    spec: Object = {
        "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2}},
        "data": {"train": [{"uri": "file:///data/*.txt"}], "sequenceLength": 64},
        "training": {"budget": {"steps": 400}, "batchTokens": 1024},
        "workers": {"replicas": 2},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": name},
        "spec": spec,
    }
