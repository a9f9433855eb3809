"""Jobs for the end-to-end tests, and what a person would ask kubectl about them."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from devcluster.kubectl import Kubectl
from devcluster.waiting import wait_until
from lmtraining_api import ConditionType, LMTrainingJobStatus
from lmtraining_api.names import API_VERSION, KIND, LABEL_JOB_NAME, STORAGE_DIRECTORY

START_SECONDS_MAX = 240
END_SECONDS_MAX = 300
POLL_SECONDS = 0.8
"""Each look is a kubectl, whose CPU the pods would like to have."""
STEPS = 500
"""What a test does in the middle of a run finds the run there."""
ALONE: dict[str, Any] = {
    "workers__replicas": 1,
    "workers__resources": {"cpu": "900m", "memory": "1Gi"},
}
"""Changes: one pod, with the core to itself."""

_JOB: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "spec": {
        "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2, "dropout": 0.1}},
        "data": {
            "train": [{"uri": "file:///usr/lib/python3.11/asyncio/*.py"}],
            "tokenizer": {"vocabSize": 512},
            "sequenceLength": 64,
            "validationFraction": 0.2,
        },
        "training": {
            "budget": {"steps": STEPS},
            "batchTokens": 1024,
            "evaluation": {"everySteps": 200, "sequences": 8},
        },
        "precision": {"compute": "fp32"},
        # The start of a pod is 10 s of CPU, spent on imports, at the speed that it is given here.
        # Three fit beside the operator on a node of two cores: a deleted one may still be there.
        "workers": {"replicas": 2, "resources": {"cpu": "600m", "memory": "1Gi"}},
        "checkpoint": {"everySteps": 50, "storage": {"claim": {"size": "1Gi"}}},
        "recovery": {"graceSeconds": 30},
    },
}


def job(name: str, **changes: Any) -> dict[str, Any]:
    """A small job; `changes` are dotted paths below spec with `__` for the dots."""
    made = copy.deepcopy(_JOB)
    made["metadata"] = {"name": name}
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made["spec"]
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


@dataclass(frozen=True)
class Watcher:
    """Asks the cluster about one job until an answer holds."""

    kubectl: Kubectl
    name: str

    @property
    def status(self) -> LMTrainingJobStatus:
        found = self.kubectl.get("lmtj", self.name)
        return LMTrainingJobStatus.model_validate(found.get("status") or {})

    def reason(self, kind: ConditionType = ConditionType.SUCCEEDED) -> str:
        condition = self.status.condition(kind)
        return condition.reason if condition else ""

    def message(self, kind: ConditionType = ConditionType.SUCCEEDED) -> str:
        condition = self.status.condition(kind)
        return condition.message if condition else ""

    def pods(self) -> list[dict[str, Any]]:
        return self.kubectl.list("pods", f"{LABEL_JOB_NAME}={self.name}")

    def wait(
        self,
        what: str,
        holds: Callable[[LMTrainingJobStatus], bool],
        *,
        limit_seconds: float = START_SECONDS_MAX,
    ) -> LMTrainingJobStatus:
        def look() -> LMTrainingJobStatus | None:
            status = self.status
            if holds(status):
                return status
            assert not status.is_terminal, f"{self.name} ended: {status.model_dump_json(indent=1)}"
            return None

        return wait_until(
            f"lmtj/{self.name}: {what}",
            look,
            limit_seconds=limit_seconds,
            hint=f"kubectl -n {self.kubectl.namespace} describe lmtj {self.name}",
            poll_seconds=POLL_SECONDS,
        )

    def wait_for(
        self,
        kind: ConditionType,
        reason: str,
        *,
        limit_seconds: float = START_SECONDS_MAX,
    ) -> str:
        """Wait until a condition has that reason; its message."""

        def holds(status: LMTrainingJobStatus) -> bool:
            found = status.condition(kind)
            return found is not None and found.reason == reason

        status = self.wait(f"{kind} {reason}", holds, limit_seconds=limit_seconds)
        found = status.condition(kind)
        assert found is not None
        return found.message

    def wait_for_step(self, step: int) -> LMTrainingJobStatus:
        return self.wait(f"step {step}", lambda status: status.progress.step >= step)

    def wait_for_end(self) -> LMTrainingJobStatus:
        return self.wait("the end", lambda s: s.is_terminal, limit_seconds=END_SECONDS_MAX)

    def wait_for_no_pods(self) -> None:
        wait_until(
            f"pods of lmtj/{self.name} to go",
            lambda: not self.pods(),
            limit_seconds=START_SECONDS_MAX,
            poll_seconds=POLL_SECONDS,
        )


def read_volume(kubectl: Kubectl, image: str, claim: str, program: str, name: str) -> Any:
    """Run a Python program in a restricted pod that mounts `claim`; the JSON it printed."""
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "reader",
                        "image": image,
                        "command": ["python3", "-c", program],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "storage", "mountPath": STORAGE_DIRECTORY}],
                    }
                ],
                "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}],
            },
        }
    )

    def ended() -> str | None:
        phase = kubectl.get("pod", name)["status"].get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = wait_until(
        f"pod {name}", ended, limit_seconds=START_SECONDS_MAX, poll_seconds=POLL_SECONDS
    )
    said = kubectl.run("logs", name)
    assert phase == "Succeeded", said
    return json.loads(said)
