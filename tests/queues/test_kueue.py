"""Jobs in a queue of the real Kueue, with the real operator; the test plays scheduler and kubelet.

The quota is that of one gang, so that whoever holds it keeps all others waiting.
"""

from collections.abc import Callable

import pytest

from devcluster.kubectl import Kubectl
from lmtraining_api import names as api
from lmtraining_api.exits import ExitCode, FailureClass
from lmtraining_api.records import gang_digest
from lmtraining_api.status import ConditionType
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage, label
from tests.api.operator.trainer import Trainer, exit_record, failure

pytestmark = pytest.mark.queues

QUEUE = "team"
GATE = "kueue.x-k8s.io/admission"
CPU = "2"


@pytest.fixture(autouse=True)
def queue(kubectl: Kubectl, namespace: str) -> None:
    """LocalQueue `team` with the quota of one gang of two pods; the priorities high and low."""
    flavor = _object("ResourceFlavor", "default", {})
    quota = [
        {"name": "cpu", "nominalQuota": CPU},
        {"name": "memory", "nominalQuota": "1Ti"},
    ]
    cluster_queue = _object(
        "ClusterQueue",
        namespace,
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [
                {
                    "coveredResources": ["cpu", "memory"],
                    "flavors": [{"name": "default", "resources": quota}],
                }
            ],
        },
    )
    local_queue = _object("LocalQueue", QUEUE, {"clusterQueue": namespace})
    priorities = [
        _object("WorkloadPriorityClass", name, None) | {"value": value}
        for name, value in (("high", 100), ("low", 1))
    ]
    kubectl.apply(flavor, cluster_queue, local_queue, *priorities)


def _object(kind: str, name: str, spec: Object | None) -> Object:
    found: Object = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": kind,
        "metadata": {"name": name},
    }
    return found if spec is None else found | {"spec": spec}


def queued(stage: Stage, name: str, **changes: object) -> Object:
    """A job of two pods of one CPU each in the queue."""
    spec = {"queue__name": QUEUE, "workers__resources": {"cpu": "1", "memory": "1Gi"}}
    return stage.create_job(name, **(spec | changes))


def workloads(stage: Stage) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in stage.list_objects("workloads")}


def is_held(pod: Object) -> bool:
    return GATE in [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]


def let_go(stage: Stage, name: str, attempt: int = 1) -> list[Object]:
    """Wait until Kueue lets the pods of an attempt go, and start them."""

    def free() -> list[Object] | None:
        pods = [p for p in stage.pods(name) if label(p, api.LABEL_ATTEMPT) == attempt]
        pods = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
        running = [p for p in pods if not is_held(p)]
        return running if len(running) == 2 else None

    pods = stage.wait(f"{name}: attempt {attempt} is let go", free)
    for pod in pods:
        assert stage.start(pod), "the pod is gone"
    return pods


def wait_told(stage: Stage, *pods: Object) -> None:
    """Wait until pods are told to go, which stay for now."""
    for pod in pods:
        name = pod["metadata"]["name"]

        def told(name: str = name) -> bool | None:
            return "deletionTimestamp" in stage.do("GET", "pods", f"/{name}")["metadata"] or None

        stage.wait(f"{name} is told to go", told)


def stop(stage: Stage, *pods: Object) -> None:
    """The kubelet ends pods that are told to go: first they are said to have ended, and then they
    are gone, once nobody holds their names."""
    wait_told(stage, *pods)
    for pod in pods:
        code = ExitCode.PREEMPTED
        stage.end_pod(pod, code, exit_record(pod, code))
        stage.vanish(pod)


def gone(stage: Stage, what: str, look: Callable[[], object]) -> None:
    stage.wait(f"no {what}", lambda: not look() or None)


def finish(stage: Stage, name: str, pods: list[Object]) -> None:
    for pod in reversed(pods):
        stage.end_pod(pod, 0, exit_record(pod, 0, step=400, export_path="export"))
    assert stage.wait_for(name, "Completed").status == "True"


def test_one_gang_is_let_go_and_the_next_waits_for_its_quota(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """P4: who waits says why, in Kueue's words, and holds no device."""
    queued(stage, "first")
    trainer = start_trainer("first")
    pods = let_go(stage, "first")
    trainer.train(1)
    stage.wait_for("first", "Training")
    assert list(workloads(stage)) == [
        pods[0]["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"]
    ]

    queued(stage, "second")
    waiting = stage.wait_for("second", "Queued", ConditionType.SCHEDULED)
    assert waiting.status == "False"
    stage.wait_for_message("second", "insufficient unused quota for cpu", ConditionType.SCHEDULED)
    held = stage.wait_for_pods("second", attempt=1, count=2)
    assert all(map(is_held, held))
    finish(stage, "first", pods)
    start_trainer("second").train(1)
    let_go(stage, "second")
    stage.wait_for("second", "Training")


def test_preempted_gang_comes_back_and_is_not_charged(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """A new group waits in the queue while who preempted trains."""
    queued(stage, "low", queue__priorityClass="low", recovery__restartsMax=0)
    trainer = start_trainer("low")
    pods = let_go(stage, "low")
    stage.wait("the starting gun", lambda: stage.intent(pods[1]).peers or None)
    trainer.say(gang=gang_digest(pod["metadata"]["uid"] for pod in pods))
    trainer.train(40)
    stage.wait_for("low", "Training")

    queued(stage, "high", queue__priorityClass="high")
    stop(stage, *pods)
    seen = stage.wait("lastFailure", lambda: stage.status("low").last_failure)
    assert seen.failure_class is FailureClass.DISRUPTION
    assert "reempt" in seen.message
    stage.wait_for("low", "Queued", ConditionType.SCHEDULED)
    status = stage.status("low")
    assert (status.attempt, status.restarts.counted) == (2, 0)
    assert status.restarts.by_reason == {FailureClass.DISRUPTION: 1}
    assert status.progress.step == 40

    high = let_go(stage, "high")
    start_trainer("high").train(1)
    stage.wait_for("high", "Training")
    assert all(is_held(pod) for pod in stage.wait_for_pods("low", attempt=2, count=2))
    finish(stage, "high", high)
    let_go(stage, "low", attempt=2)
    trainer = start_trainer("low", attempt=2)
    trainer.train(41, resumed_from_step=40)
    stage.wait_for("low", "Training")


@pytest.mark.parametrize("is_alike", [True, False], ids=["alike", "other"])
def test_lost_pod_is_replaced_alone_in_its_group(
    stage: Stage,
    operator: OperatorProcess,
    start_trainer: Callable[..., Trainer],
    is_alike: bool,
) -> None:
    """The group keeps its quota, and the other pod its place; also where the new pod differs from
    the one that it replaces."""
    queued(stage, "tiny")
    trainer = start_trainer("tiny")
    gang = let_go(stage, "tiny")
    stage.wait("the starting gun", lambda: stage.intent(gang[0]).peers or None)
    trainer.say(gang=gang_digest(pod["metadata"]["uid"] for pod in gang))
    trainer.train(10)
    stage.wait_for("tiny", "Training")
    (before,) = workloads(stage).values()
    if not is_alike:
        stage.patch_job("tiny", podTemplate={"nodeSelector": {"pool": "new"}})

    lost, survivor = gang[1], gang[0]
    stage.do("DELETE", "pods", f"/{lost['metadata']['name']}")
    stop(stage, lost)
    gang = let_go(stage, "tiny")
    assert [pod["metadata"]["name"] for pod in gang] == ["tiny-1-0-0", "tiny-1-1-1"]
    assert gang[0]["metadata"]["uid"] == survivor["metadata"]["uid"]
    gone(
        stage,
        "lost pod",
        lambda: [p for p in stage.pods("tiny") if p["metadata"]["uid"] == lost["metadata"]["uid"]],
    )
    (after,) = workloads(stage).values()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_failed_attempt_gives_its_quota_to_the_next(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """Also while its pods stay for their logs."""
    queued(stage, "tiny", recovery__backoffSeconds=0)
    trainer = start_trainer("tiny")
    gang = let_go(stage, "tiny")
    trainer.train(10)
    stage.wait_for("tiny", "Training")
    for pod in gang:
        code, record = failure(pod, FailureClass.HANG)
        stage.end_pod(pod, code, record)
    let_go(stage, "tiny", attempt=2)
    assert len(stage.pods("tiny")) == 4


@pytest.mark.parametrize("runs", [True, False], ids=["running", "waiting"])
def test_suspended_job_gives_its_quota_back(
    stage: Stage, operator: OperatorProcess, runs: bool
) -> None:
    """Whether it has it or waits for it; a new group waits when it goes on."""
    if not runs:
        queued(stage, "other")
        other = let_go(stage, "other")
    queued(stage, "nap")
    pods = stage.wait_for_pods("nap", attempt=1, count=2)
    if runs:
        pods = let_go(stage, "nap")
    else:
        stage.wait_for("nap", "Queued", ConditionType.SCHEDULED)
    stage.patch_job("nap", suspend=True)
    if runs:
        stop(stage, *pods)
    stage.wait_for("nap", "Suspended")
    gone(stage, "pods", lambda: stage.pods("nap"))
    if not runs:
        finish(stage, "other", other)
    stage.patch_job("nap", suspend=False)
    let_go(stage, "nap", attempt=2)


@pytest.mark.parametrize("state", ["running", "waiting", "finished"])
def test_deleted_job_leaves_nothing_in_the_queue(
    stage: Stage, operator: OperatorProcess, state: str
) -> None:
    """P5: no pod and no Workload, and its quota is free."""
    if state == "waiting":
        queued(stage, "other")
        other = let_go(stage, "other")
    queued(stage, "brief")
    pods = stage.wait_for_pods("brief", attempt=1, count=2)
    if state == "waiting":
        stage.wait_for("brief", "Queued", ConditionType.SCHEDULED)
    else:
        pods = let_go(stage, "brief")
    if state == "finished":
        finish(stage, "brief", pods)
    stage.do("DELETE", api.PLURAL, "/brief")
    if state == "running":
        stop(stage, *pods)
    gone(stage, "pods", lambda: stage.pods("brief"))
    if state == "waiting":
        finish(stage, "other", other)
        stage.do("DELETE", api.PLURAL, "/other")
    gone(stage, "workloads", lambda: workloads(stage))
    queued(stage, "next")
    let_go(stage, "next")


def test_job_deleted_while_no_operator_runs_leaves_the_queue_when_one_does(
    stage: Stage, start_operator: Callable[[], OperatorProcess]
) -> None:
    """P5."""
    first = start_operator()
    queued(stage, "other")
    let_go(stage, "other")
    queued(stage, "brief")
    stage.wait_for("brief", "Queued", ConditionType.SCHEDULED)
    first.terminate()
    stage.do("DELETE", api.PLURAL, "/brief")
    wait_told(stage, *stage.pods("brief"))
    assert len(workloads(stage)) == 2, "Kueue waits for other pods"
    start_operator()
    gone(stage, "pods", lambda: stage.pods("brief"))
    gone(stage, "workload of brief", lambda: len(workloads(stage)) == 2)
