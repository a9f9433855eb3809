"""A small world for single passes of the operator: the simulation's API server, a kubelet and a
trainer that do what a test says. Whole lives are in tests/simulation.

The operator's own code runs against it through its two doors, `Gateway` and `Reports`. Time stands
still until it is moved. A write can be made to crash the operator just before or just after it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lmtraining_api import names as api
from lmtraining_api.exits import CODE_OF_CLASS, ExitCode, FailureClass
from lmtraining_api.records import (
    CheckpointReport,
    ExitRecord,
    Intent,
    TrainerReport,
    gang_digest,
)
from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator.gateway import CONFLICT, NOT_FOUND, ApiError, Object
from lmtraining_operator.reconcile import JobKey, JobReconciler
from lmtraining_operator.reports import ReportError
from tests.simulation.clock import START
from tests.simulation.operator_process import SETTINGS
from tests.simulation.server import OPERATOR, ApiServer, Change
from tests.simulation.world import NAMESPACE, PERSON


class CrashError(BaseException):
    """The operator's process ends here."""


def job_body(name: str = "tiny", **changes: Any) -> Object:
    """A job of two pods; `changes` are dotted paths below spec with `__` for the dots."""
    spec: Object = {
        "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2}},
        "data": {"train": [{"uri": "file:///data/*.txt"}], "sequenceLength": 64},
        "training": {"budget": {"steps": 20}, "batchTokens": 1024},
        "workers": {"replicas": 2},
        "recovery": {"restartsMax": 100, "backoffSeconds": 1, "graceSeconds": 20},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = copy.deepcopy(value)
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


@dataclass
class World:
    """Everything outside the operator."""

    now: datetime = START
    creates: list[str] = field(default_factory=list)
    """kind/name of every object made, in order."""
    status_writes: list[LMTrainingJobStatus] = field(default_factory=list)
    forbid: dict[str, str] = field(default_factory=dict)
    """Message with which the creation of a kind is refused (403)."""
    crash_at_write: int | None = None
    """Crash the operator at this many writes from now."""
    crash_after: bool = False
    """Crash after the write took effect, not before."""
    fail_next: ApiError | None = None
    """Answer of the next write, instead of carrying it out."""
    is_silent: bool = False
    """No report is answered."""
    first_steps: dict[frozenset[str], datetime] = field(default_factory=dict)
    """When each gang, by the UIDs of its pods, made its first step."""
    step: int = 0
    saved_step: int = 0
    finished: bool = False

    # --- the API server ---------------------------------------------------------------------

    def __post_init__(self) -> None:
        self.server = ApiServer(self._seconds)
        self.server.refused = self.forbid
        self.server.listeners.append(self._changed)

    def _seconds(self) -> float:
        return (self.now - START).total_seconds()

    @property
    def objects(self) -> dict[tuple[str, str], Object]:
        """By kind and name; one namespace is enough. A test may change them where they are."""
        return self.server.objects

    def _changed(self, change: Change) -> None:
        if change.actor != OPERATOR:
            return
        if change.type == "ADDED":
            self.creates.append(f"{change.kind}/{change.name}")
        elif change.kind == api.KIND:
            self.status_writes.append(LMTrainingJobStatus.model_validate(change.object["status"]))

    def add(self, body: Object) -> Object:
        """An object that somebody else makes."""
        return self.server.create(copy.deepcopy(body), PERSON)

    def touch(self, found: Object) -> None:
        """It has another version now."""
        self.server.version += 1
        found["metadata"]["resourceVersion"] = str(self.server.version)

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def list_objects(
        self, kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        return copy.deepcopy(self.server.matching(kind, labels=labels, fields=fields))

    async def create(self, body: Object) -> Object:
        return self._write(lambda: self.server.create(copy.deepcopy(body), OPERATOR))

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None
    ) -> None:
        self._write(
            lambda: self.server.delete(
                (kind, name), OPERATOR, uid=uid, grace_seconds=grace_seconds
            ),
            unless_gone=True,
        )

    async def annotate(
        self, kind: str, namespace: str, name: str, *, uid: str, annotations: dict[str, str]
    ) -> None:
        self._write(
            lambda: self.server.annotate((kind, name), OPERATOR, uid=uid, annotations=annotations),
            unless_gone=True,
        )

    async def apply_status(self, body: Object) -> Object:
        return self._write(lambda: self.server.apply_status(copy.deepcopy(body), OPERATOR))

    def _write(self, act: Callable[[], Any], *, unless_gone: bool = False) -> Any:
        """Carry it out, unless it fails or the operator dies before it; it may die after it."""
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        is_last = self._is_last_write()
        if is_last and not self.crash_after:
            raise CrashError
        try:
            answer = copy.deepcopy(act())
        except ApiError as error:
            if not (unless_gone and error.code in (NOT_FOUND, CONFLICT)):
                raise
            answer = None
        if is_last:
            raise CrashError
        return answer

    def _is_last_write(self) -> bool:
        if self.crash_at_write is None:
            return False
        self.crash_at_write -= 1
        if self.crash_at_write > 0:
            return False
        self.crash_at_write = None
        return True

    # --- what tests ask ---------------------------------------------------------------------

    @property
    def job(self) -> Object:
        return next(one for (kind, _), one in self.objects.items() if kind == api.KIND)

    @property
    def status(self) -> LMTrainingJobStatus:
        return LMTrainingJobStatus.model_validate(self.job.get("status") or {})

    @property
    def pods(self) -> list[Object]:
        return [one for (kind, _), one in sorted(self.objects.items()) if kind == "Pod"]

    @property
    def live_pods(self) -> list[Object]:
        return [pod for pod in self.pods if pod["status"]["phase"] in ("Pending", "Running")]

    def pod(self, name: str) -> Object:
        return self.objects["Pod", name]

    def reason(self, kind: str = "Succeeded") -> str:
        return next((c.reason for c in self.status.conditions if c.type == kind), "")

    def message(self, kind: str = "Succeeded") -> str:
        return next((c.message for c in self.status.conditions if c.type == kind), "")

    def edit(self, **spec: Any) -> None:
        """A person changes the spec."""
        self.job["spec"].update(spec)
        self.job["metadata"]["generation"] += 1
        self.touch(self.job)

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # --- kubelet and trainer ----------------------------------------------------------------

    def start_pod(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        replica, replaced = name.split("-")[-2:]
        pod["spec"]["nodeName"] = "node-1"
        pod["status"] = {
            "phase": "Running",
            "podIP": f"127.1.{replaced}.{1 + int(replica)}",
            "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
        }

    def start_all(self) -> None:
        for pod in self.pods:
            if pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                self.start_pod(pod)

    def end_pod(self, pod: Object, code: int, message: str = "", reason: str = "Error") -> None:
        """The container ends, and the pod with it; one that is being deleted is gone."""
        self.end_container(pod, code, message, reason)
        self.settle_pod(pod)

    def end_container(
        self, pod: Object, code: int, message: str = "", reason: str = "Error"
    ) -> None:
        """The container ends; the kubelet calls the pod Running a little longer."""
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else reason,
            "message": message,
            "finishedAt": self.now.isoformat(),
        }
        pod["status"]["containerStatuses"] = [{"name": "trainer", "state": {"terminated": ended}}]

    def settle_pod(self, pod: Object) -> None:
        """The kubelet calls the pod ended whose container has ended."""
        ended = self.exit_of(pod)
        if ended is None:
            return
        pod["status"]["phase"] = "Succeeded" if ended["exitCode"] == 0 else "Failed"
        if "deletionTimestamp" in pod["metadata"]:
            self.remove(pod)

    @staticmethod
    def exit_of(pod: Object) -> Object | None:
        """How its container ended; None while it has not."""
        containers = pod["status"].get("containerStatuses") or [{"state": {}}]
        ended: Object | None = containers[0]["state"].get("terminated")
        return ended

    def fail_pod(
        self, pod: Object, failure_class: FailureClass, *, at_once: bool = True, **record: Any
    ) -> None:
        """The trainer ends with a record of that class."""
        code = CODE_OF_CLASS[failure_class]
        end = self.end_pod if at_once else self.end_container
        end(pod, code, self.exit_record(pod, code, failure_class, **record))

    def remove(self, pod: Object) -> None:
        self.server.remove_pod(pod["metadata"]["uid"], PERSON)

    def exit_record(
        self, pod: Object, code: int, failure_class: FailureClass | None, **record: Any
    ) -> str:
        labels = pod["metadata"]["labels"]
        values: dict[str, Any] = {
            "job_uid": labels[api.LABEL_JOB_UID],
            "attempt": int(labels[api.LABEL_ATTEMPT]),
            "round": 1,
            "replica": int(labels[api.LABEL_REPLICA]),
            "pod_name": pod["metadata"]["name"],
            "exit_code": ExitCode(code),
            "failure_class": failure_class,
            "reason": str(failure_class or "Finished"),
            "message": "rank 0 ended",
            "time": self.now,
        }
        return ExitRecord.model_validate(values | record).model_dump_json(exclude_none=True)

    def armed_gang(self) -> list[Object] | None:
        """The pods that train: all replicas of one attempt, each with the same full peer table."""
        armed = [pod for pod in self.live_pods if self.is_armed(pod)]
        uids = frozenset(pod["metadata"]["uid"] for pod in armed)
        return armed if armed and all(self.peers_of(pod) == uids for pod in armed) else None

    def is_armed(self, pod: Object) -> bool:
        """True when the pod has been told all its peers, and so may write."""
        running = pod["status"]["phase"] == "Running" and self.exit_of(pod) is None
        return running and len(self.peers_of(pod)) == self.job["spec"]["workers"]["replicas"]

    @staticmethod
    def peers_of(pod: Object) -> frozenset[str]:
        """The UIDs of the pods in its peer table."""
        text = pod["metadata"].get("annotations", {}).get(api.ANNOTATION_INTENT)
        peers = Intent.model_validate_json(text).peers if text else []
        return frozenset(peer.pod_uid for peer in peers)

    def train(self, steps: int) -> None:
        """Step, save, finish: what the gang does when nothing is in its way."""
        gang = self.armed_gang()
        if gang is None or any("deletionTimestamp" in pod["metadata"] for pod in gang):
            return
        total = self.job["spec"]["training"]["budget"]["steps"]
        if not self.finished:
            if steps:
                self.first_steps.setdefault(self.peers_of(gang[0]), self.now)
            self.step = min(self.step + steps, total)
            self.saved_step = self.step - self.step % 5
            self.finished = self.step == total
        if self.finished:
            for pod in gang:
                extra = {"step": total, "export_path": "export", "loss": 3.25}
                self.end_pod(pod, 0, self.exit_record(pod, 0, None, **extra))

    async def pull(self, address: str, *, job_uid: str, attempt: int) -> TrainerReport:
        """The lead's report: the second door of the operator."""
        lead = next((p for p in self.live_pods if p["status"].get("podIP") == address), None)
        has_ended = lead is None or self.exit_of(lead) is not None
        if self.is_silent or lead is None or has_ended or lead["status"]["phase"] != "Running":
            raise ReportError("no connection")
        first_step = self.first_steps.get(self.peers_of(lead))
        trains = first_step is not None
        checkpoint = CheckpointReport(
            step=self.saved_step,
            path=f"checkpoints/{self.saved_step}",
            time=START + timedelta(seconds=self.saved_step),
            size_bytes=10,
            sha256="a" * 64,
        )
        return TrainerReport(
            job_uid=lead["metadata"]["labels"][api.LABEL_JOB_UID],
            attempt=int(lead["metadata"]["labels"][api.LABEL_ATTEMPT]),
            round=1,
            state="Training" if trains else "Waiting",
            report_time=self.now,
            step=self.step if trains else 0,
            total_steps=self.job["spec"]["training"]["budget"]["steps"],
            step_time=self.now if trains else None,
            first_step_time=first_step,
            loss=3.5 if trains else None,
            tokens_per_second=1000.0,
            checkpoint=checkpoint if self.saved_step else None,
            resumed_from_step=None,
            gang=gang_digest(self.peers_of(lead)),
        )

    # --- the operator -----------------------------------------------------------------------

    def operator(self, name: str = "tiny") -> JobReconciler:
        """A new operator process, as far as one job is concerned."""
        return JobReconciler(
            JobKey(NAMESPACE, name),
            gateway=self,
            reports=self,  # type: ignore[arg-type]
            settings=SETTINGS,
            clock=lambda: self.now,
        )
