"""What a node says of itself decides what a failure on it means, where nodes may be read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from lmtraining_api.exits import FailureClass
from tests.api.conftest import _kubectl
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import NODE, Object, Stage
from tests.api.operator.trainer import Trainer, failure

pytestmark = pytest.mark.api

FENCED = "node.kubernetes.io/out-of-service=off:NoExecute"


@pytest.fixture
def node(api_server: ApiServer) -> Iterator[Kubectl]:
    """The node that all pods of a stage are on, without a kubelet."""
    kubectl = _kubectl(api_server)
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    yield kubectl
    kubectl.run("delete", "node", NODE)


@pytest.fixture
def reads_nodes(api_server: ApiServer, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    log = tmp_path / "operator.log"
    process = OperatorProcess(api_server, namespace, log, arguments=["--read-nodes"])
    process.wait_ready()
    yield process
    process.kill()


def has_taken(pod: Object, stage: Stage) -> bool:
    return stage.request("GET", "pods", f"/{pod['metadata']['name']}")[0] == 404


def test_what_the_node_says_decides(
    node: Kubectl,
    stage: Stage,
    reads_nodes: OperatorProcess,
    start_trainer: Callable[..., Trainer],
) -> None:
    """A crash on a device that is broken is the hardware's, and the next pod goes elsewhere."""
    broken = '{"status":{"conditions":[{"type":"GpuMemWatch","status":"True","message":"Xid 95"}]}}'
    node.run("patch", "node", NODE, "--subresource=status", "--type=merge", f"--patch={broken}")
    stage.create_job("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    start_trainer("tiny").train(step=100)
    stage.wait_for("tiny", "Training")
    stage.end_pod(gang[1], *failure(gang[1], FailureClass.CRASH))
    stage.wait_for_event("tiny", "NodeAvoided")
    status = stage.status("tiny")
    assert status.last_failure is not None
    assert status.last_failure.failure_class is FailureClass.HARDWARE
    assert status.last_failure.node_conditions == ["GpuMemWatch"]
    assert [one.name for one in status.avoided_nodes] == [NODE]
    stage.bury(gang[0])
    for pod in stage.wait_for_pods("tiny", attempt=2, count=2):
        required = pod["spec"]["affinity"]["nodeAffinity"]
        assert NODE in str(required["requiredDuringSchedulingIgnoredDuringExecution"])


def test_a_node_that_is_out_of_service_is_not_waited_for(
    node: Kubectl, stage: Stage, reads_nodes: OperatorProcess
) -> None:
    """No kubelet will ever end its pods, and somebody has made sure that nothing runs there."""
    stage.create_job("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    node.run("taint", "node", NODE, FENCED)
    stage.request("DELETE", "pods", f"/{gang[0]['metadata']['name']}")
    for pod in gang:
        stage.wait("it is forced", lambda pod=pod: has_taken(pod, stage) or None)
    assert len(stage.wait_for_pods("tiny", attempt=2, count=2)) == 2
    failed = stage.status("tiny").last_failure
    assert failed is not None
    assert (failed.failure_class, failed.reason) == (FailureClass.DISRUPTION, "NodeLost")
