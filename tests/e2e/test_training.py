"""A job trains in real pods; faults on the way change nothing of its result."""

from typing import Any

import pytest

from devcluster.faults import kill_rank, kill_supervisor
from devcluster.kubectl import Kubectl
from devcluster.product import NAMESPACE, RELEASE, Product
from lmtraining_api import ConditionType
from tests.e2e.jobs import STEPS, Watcher, job, read_volume

pytestmark = pytest.mark.e2e

HASH_OF_EXPORT = """
import glob, hashlib, json
(path,) = glob.glob("/storage/runs/*/export/model.safetensors")
print(json.dumps(hashlib.sha256(open(path, "rb").read()).hexdigest()))
"""


def start(kubectl: Kubectl, name: str, **changes: object) -> Watcher:
    kubectl.apply(job(name, **changes))
    return Watcher(kubectl, name)


def pod_of(watcher: Watcher, *, attempt: int, replica: int) -> str:
    """The pod of the replica that runs: one that was replaced may be there for its log."""
    return str(running(watcher, attempt, replica)["name"])


def uid_of(watcher: Watcher, *, attempt: int, replica: int) -> str:
    return str(running(watcher, attempt, replica)["uid"])


def running(watcher: Watcher, attempt: int, replica: int) -> dict[str, Any]:
    prefix = f"{watcher.name}-{attempt}-{replica}-"
    found: list[dict[str, Any]] = [
        pod["metadata"] for pod in watcher.pods() if pod["status"]["phase"] == "Running"
    ]
    return next(
        one for one in found if one["name"].startswith(prefix) and "deletionTimestamp" not in one
    )


def test_kills_cost_time_and_nothing_else(product: Product, kubectl: Kubectl) -> None:
    """P3, P7: the weights after a deleted worker pod and a SIGKILL of the lead pod's supervisor
    equal those of an uninterrupted run, bit for bit; each is replaced alone, in that attempt."""
    # Five such pods fit beside the operator on a node of two cores.
    small = {"workers__resources": {"cpu": "350m", "memory": "1Gi"}}
    calm = start(kubectl, "calm", **small)
    rough = start(kubectl, "rough", **small)
    rough.wait("a checkpoint", lambda s: s.checkpoint is not None and s.progress.step >= 60)
    lead = uid_of(rough, attempt=1, replica=0)
    deleted = pod_of(rough, attempt=1, replica=1)
    kubectl.run("delete", "pod", deleted, "--force", "--grace-period=0")
    second = rough.wait(
        "a step with another worker pod, past a checkpoint",
        lambda s: (
            s.replaced_pods == {"1": 1} and s.last_recovery is not None and s.progress.step >= 210
        ),
    )
    assert second.attempt == 1
    assert second.restarts.counted == 0, "a deleted pod is not the job's fault"
    assert uid_of(rough, attempt=1, replica=0) == lead, "the other pod waited in place"
    worker = uid_of(rough, attempt=1, replica=1)
    kill_supervisor(pod_of(rough, attempt=1, replica=0))
    third = rough.wait(
        "a step with another lead pod",
        lambda s: (
            s.replaced_pods == {"0": 1, "1": 1}
            and s.last_recovery is not None
            and s.last_recovery != second.last_recovery
        ),
    )
    assert third.round > second.round, "P1: a round is never gone back to"
    assert uid_of(rough, attempt=1, replica=1) == worker, "the other pod waited in place"

    ended = rough.wait_for_end()
    assert rough.reason() == "Completed", rough.message()
    assert ended.attempt == 1
    assert ended.restarts.total == 2
    assert ended.restarts.counted == 1
    assert ended.last_recovery is not None
    assert ended.last_recovery.resumed_from_step is not None
    assert ended.last_failure is not None
    assert kubectl.run("logs", ended.last_failure.pod), "its pod stays, for its log"
    assert calm.wait_for_end().restarts.total == 0

    weights = [
        read_volume(
            kubectl, product.trainer_image, f"{name}-checkpoints", HASH_OF_EXPORT, f"{name}-hash"
        )
        for name in ("calm", "rough")
    ]
    assert weights[0] == weights[1]


def test_a_killed_rank_starts_again_inside_its_pod(kubectl: Kubectl) -> None:
    """No new pod and no new attempt: the supervisors mend it, and status says what it was."""
    watcher = start(kubectl, "rank")
    watcher.wait("a checkpoint", lambda s: s.checkpoint is not None and s.progress.step >= 40)
    before = sorted(pod["metadata"]["uid"] for pod in watcher.pods())
    kill_rank(pod_of(watcher, attempt=1, replica=0))
    mended = watcher.wait(
        "a step of round 2", lambda s: s.round == 2 and s.last_recovery is not None
    )
    assert mended.last_recovery is not None
    assert "SIGKILL" in mended.last_recovery.fault
    assert (mended.attempt, mended.restarts.total) == (1, 0)
    assert sorted(pod["metadata"]["uid"] for pod in watcher.pods()) == before
    watcher.wait_for_end()
    assert watcher.reason() == "Completed", watcher.message()


def test_suspend_frees_the_pods_and_resume_goes_on(kubectl: Kubectl) -> None:
    """P3: resume goes on from the step at which suspend saved."""
    watcher = start(kubectl, "nap")
    watcher.wait_for_step(20)
    kubectl.run("patch", "lmtj", "nap", "--type=merge", "--patch", '{"spec":{"suspend":true}}')
    watcher.wait_for(ConditionType.SUCCEEDED, "Suspended")
    assert watcher.pods() == []
    saved = watcher.status.checkpoint
    assert saved is not None

    kubectl.run("patch", "lmtj", "nap", "--type=merge", "--patch", '{"spec":{"suspend":false}}')
    ended = watcher.wait_for_end()
    assert watcher.reason() == "Completed", watcher.message()
    assert ended.restarts.counted == 0
    assert ended.progress.step == ended.progress.total_steps


def test_operator_restart_restarts_no_pod(product: Product, kubectl: Kubectl) -> None:
    """P10, P2: the operator goes away and comes back in the middle of a run."""
    watcher = start(kubectl, "steady", training__budget={"steps": 2 * STEPS})
    watcher.wait_for_step(20)
    before = {p["metadata"]["uid"] for p in watcher.pods()}
    operator = product.kubectl.within(NAMESPACE)
    operator.run("rollout", "restart", f"deployment/{RELEASE}")
    operator.run("rollout", "status", f"deployment/{RELEASE}", "--timeout=90s")
    assert {p["metadata"]["uid"] for p in watcher.pods()} == before
    ended = watcher.wait_for_end()
    assert watcher.reason() == "Completed", watcher.message()
    assert ended.attempt == 1

    kubectl.run("delete", "pods", "--all", "--wait=true")
    operator.run("rollout", "restart", f"deployment/{RELEASE}")
    operator.run("rollout", "status", f"deployment/{RELEASE}", "--timeout=90s")
    start(kubectl, "later", suspend=True).wait_for(ConditionType.ACCEPTED, "Valid")
    assert watcher.status == ended, "a finished job stays finished"
    assert watcher.pods() == []


def test_delete_leaves_the_claim_and_nothing_else(kubectl: Kubectl) -> None:
    """P5: owner references clean up; the volume stays by policy."""
    watcher = start(kubectl, "brief")
    watcher.wait_for(ConditionType.SCHEDULED, "Scheduled")
    kubectl.run("delete", "lmtj", "brief", "--wait=true")
    watcher.wait_for_no_pods()
    left = kubectl.run(
        "get", "pods,configmaps,networkpolicies,persistentvolumeclaims", "--output=name"
    ).split()
    assert [name for name in left if "kube-root-ca" not in name] == [
        "persistentvolumeclaim/brief-checkpoints"
    ]


def test_printer_columns_tell_the_story(kubectl: Kubectl) -> None:
    """P4: what `kubectl get` shows while it trains is what the trainer said."""
    watcher = start(kubectl, "seen")
    watcher.wait_for_step(10)
    table = kubectl.run("get", "lmtj", "seen").splitlines()
    assert table[0].split() == [
        "NAME", "STATE", "STEP", "PROGRESS", "ETA", "LOSS", "TOK/S", "RESTARTS", "AGE",
    ]  # fmt: skip
    row = table[1].split()
    assert row[1] == "Training"
    assert int(row[2]) >= 10
    assert 0 < float(row[5]) < 10
