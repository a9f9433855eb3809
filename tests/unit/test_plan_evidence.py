"""What the node of a failed pod says about the failure, and what is done about it."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from lmtraining_api.exits import CODE_OF_CLASS, FailureClass
from lmtraining_api.job import Recovery
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.observe import node_view, nodes_asked_for, observe
from lmtraining_operator.plan import (
    NodeCondition,
    ObservedNode,
    ObservedPod,
    ObservedReport,
    Plan,
    plan,
)
from lmtraining_operator.plan.evidence import OUT_OF_SERVICE, is_of_a_program, troubles
from lmtraining_operator.plan.model import HARDWARE_FAULTS, Disruption, Object, Observed, Settings
from lmtraining_operator.plan.nodes import still_avoided
from lmtraining_operator.plan.rules import rule_for
from tests.unit.operator_situations import (
    NOW,
    deleted,
    ended,
    failure_status,
    job_object,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

C = FailureClass
WELL = NodeCondition(type="Ready", status="True")
LOST = NodeCondition(type="Ready", status="Unknown", message="Kubelet stopped posting node status.")
BROKEN = NodeCondition(type="GpuMemWatch", status="True", message="ErrorCode:95 GPU:3")
UNKNOWN = NodeCondition(type="AcceleratedHardwareReady", status="Unknown")
ELSEWHERE = {"failureClass": "Crash", "action": "RetryElsewhere"}
EVICTED = Disruption(reason="DeletionByTaintManager", message="taken away")


def node(*conditions: NodeCondition) -> ObservedNode:
    return ObservedNode(name="node-1", conditions=conditions or (WELL,))


def crash(failure_class: C = C.CRASH) -> ObservedPod:
    pod = running_gang(1)[0]
    return ended(pod, CODE_OF_CLASS[failure_class], failure_class=failure_class, reason="Said")


def raised(kind: str) -> ObservedPod:
    """An exception of that type has ended a rank."""
    told = {"failure_class": C.CRASH, "reason": "RankRaised", "exception_type": kind}
    return ended(running_gang(1)[0], 89, **told)


def decided(pod: ObservedPod, said: ObservedNode | None, job: Object | None = None) -> Plan:
    """The plan when the first pod of two is as it is, and its node says that."""
    nodes = {} if said is None else {said.name: said}
    world = Observed(pods=(pod, running_gang(2)[1]), nodes=nodes)
    settings = Settings(trainer_image="registry.example/trainer:1", reads_nodes=True)
    return plan(job or job_object(), status_of(), world, NOW, settings)


going = replace(running_gang(1)[0], is_deleting=True, grace_seconds=20)
drained = replace(going, disruption=EVICTED)


class Case(NamedTuple):
    """A failed pod, what its node says, and what must come of it."""

    pod: ObservedPod
    node: ObservedNode | None
    failure_class: C
    told: list[str]
    """status.lastFailure.nodeConditions."""
    is_avoided: bool
    charged: int


GPU = ["GpuMemWatch"]
FAILURES = {
    "nobody may read nodes": Case(crash(), None, C.CRASH, [], False, 1),
    "all is well": Case(crash(), node(), C.CRASH, [], False, 1),
    "broken hardware": Case(crash(), node(WELL, BROKEN), C.HARDWARE, GPU, True, 1),
    "a hang on it": Case(crash(C.HANG), node(BROKEN), C.HARDWARE, GPU, True, 1),
    "an exception on it": Case(raised("KeyError"), node(BROKEN), C.CRASH, GPU, True, 1),
    "a device raised it": Case(
        raised("torch.AcceleratorError"), node(BROKEN), C.HARDWARE, GPU, True, 1
    ),
    "its watcher knows nothing": Case(crash(), node(UNKNOWN), C.CRASH, [], False, 1),
    "the trainer knows better": Case(crash(C.DATA), node(BROKEN), C.DATA, GPU, True, 0),
    "drained for it": Case(drained, node(BROKEN), C.DISRUPTION, GPU, True, 0),
    "lost with its node": Case(going, node(LOST), C.DISRUPTION, ["Ready"], False, 0),
    "deleted on a good one": Case(going, node(), C.POD_LOST, [], False, 0),
    "a crash before the loss": Case(crash(), node(LOST), C.CRASH, ["Ready"], False, 1),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_failure_in_the_light_of_its_node(case: Case) -> None:
    """What is nobody's fault is never charged; what the node says is in the failure's words."""
    status = decided(case.pod, case.node).status
    failure = status.last_failure
    assert failure is not None
    assert (failure.failure_class, failure.node_conditions) == (case.failure_class, case.told)
    assert [one.name for one in status.avoided_nodes] == ["node-1"] * case.is_avoided
    assert status.restarts.counted == case.charged
    if case.is_avoided:
        assert "its node says GpuMemWatch (ErrorCode:95 GPU:3)" in failure.message
        assert status.avoided_nodes[0].reason == failure.node_fault


def test_a_taint_that_is_known_for_it_is_broken_hardware() -> None:
    keys = {"nvidia.com/gpu-xid-error": "NoSchedule", "nvidia.com/gpu": "NoSchedule"}
    status = decided(crash(), ObservedNode(name="node-1", taints=keys)).status
    assert status.last_failure is not None
    assert status.last_failure.failure_class is C.HARDWARE
    assert status.last_failure.node_conditions == ["nvidia.com/gpu-xid-error"]


@pytest.mark.parametrize(
    ("words", "is_program"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.", False),
        ("NVRM: Xid (PCI:0000:3b:00): 31, pid=1, Ch 0008, MMU Fault", True),
        ("ErrorCode:43 PCI:0000:3b:00 Recommended Action=NONE", True),
        ("ErrorCode:43 PCI:0000:3b:00 ErrorCode:79", False),
        ("XID 13 was found", True),
        ("GPU count is 7, expected 8", False),
        ("", False),
    ],
)
def test_an_error_of_the_program_is_no_fault_of_the_device(words: str, is_program: bool) -> None:
    assert is_of_a_program(words) is is_program
    said = NodeCondition(type="SysLogsXIDError", status="True", message=words)
    failure = decided(crash(), node(said)).status.last_failure
    assert failure is not None
    assert failure.failure_class is (C.CRASH if is_program else C.HARDWARE)


def test_trouble_is_what_is_bad_for_pods() -> None:
    """A condition of readiness is bad when it is not true; a taint, when it takes pods away."""
    conditions = (
        NodeCondition(type="MemoryPressure", status="False"),
        NodeCondition(type="AcceleratedHardwareReady", status="False"),
        NodeCondition(type="DiskPressure", status="True"),
        WELL,
    )
    taints = {"dedicated": "NoSchedule", "example.com/drain": "NoExecute"}
    found = troubles(ObservedNode(name="n", conditions=conditions, taints=taints), HARDWARE_FAULTS)
    assert [one.name for one in found] == [
        "AcceleratedHardwareReady",
        "DiskPressure",
        "example.com/drain",
    ]


def test_a_rule_may_be_about_what_is_wrong_with_the_node() -> None:
    rule = {"failureClass": "Crash", "nodeCondition": "DiskPressure", "action": "Fail"}
    recovery = Recovery.model_validate({"rules": [rule]})
    assert rule_for(failure_status(C.CRASH), recovery) is None
    assert rule_for(failure_status(C.CRASH, node_conditions=["DiskPressure"]), recovery)
    full = NodeCondition(type="DiskPressure", status="True")
    ended_by_it = decided(crash(), node(full), job_object(recovery__rules=[rule]))
    assert ended_by_it.status.is_terminal
    assert not decided(crash(), node(), job_object(recovery__rules=[rule])).status.is_terminal


@pytest.mark.parametrize(
    ("minutes", "faults", "is_avoided"),
    [(0, 1, True), (59, 1, True), (61, 1, False), (-61, 1, False), (61, 2, True)],
)
def test_a_node_that_tells_of_broken_hardware_is_given_back_after_a_while(
    minutes: int, faults: int, is_avoided: bool
) -> None:
    """P12: it may be mended; what two hardware faults have shown stays."""
    status = decided(crash(), node(BROKEN)).status
    status = status.model_copy(update={"hardware_faults": {"node-1": faults}})
    for recovery in (Recovery(), Recovery.model_validate({"rules": [ELSEWHERE]})):
        kept = still_avoided(status, recovery, NOW + timedelta(minutes=minutes))
        assert [one.name for one in kept.avoided_nodes] == ["node-1"] * is_avoided


@pytest.mark.parametrize("is_told", [False, True])
def test_pods_of_a_node_that_is_out_of_service_are_forced_at_once(is_told: bool) -> None:
    """Nobody on it can be told, and somebody has made sure that nothing runs there (P1)."""
    lead, peer = running_gang(2)
    dead = replace(lead, is_on_dead_node=True, is_deleting=is_told, grace_seconds=20 * is_told)
    failed = status_of(last_failure=failure_status(C.DISRUPTION))
    settings = Settings(trainer_image="registry.example/trainer:1", reads_nodes=True)
    told = plan(job_object(), failed, Observed(pods=(dead, peer)), NOW, settings)
    assert sorted(deleted(told)) == [(lead.name, 0), (peer.name, 5)]
    forced = replace(dead, is_deleting=True, grace_seconds=0)
    again = plan(job_object(), failed, Observed(pods=(forced,)), NOW, settings)
    assert deleted(again) == [], "a finalizer keeps it"


def test_only_nodes_that_may_tell_something_are_asked_for() -> None:
    lead, peer = running_gang(2)
    lead, peer = replace(lead, node="a"), replace(peer, node="b")
    status = status_of()
    assert nodes_asked_for(status, (lead, peer)) == []
    assert nodes_asked_for(status, (lead, replace(peer, is_deleting=True))) == ["b"]
    assert nodes_asked_for(status, (lead, ended(peer, 88))) == ["b", "a"], "a may be the cause"
    kept = status_of(attempt=2, last_failure=failure_status(C.CRASH))
    assert nodes_asked_for(kept, (ended(peer, 89),)) == [], "that has been asked"
    many = tuple(replace(ended(lead, 89), node=f"n{number}") for number in range(20))
    assert len(nodes_asked_for(status, many)) == 8


def test_a_node_is_read_as_it_is_written() -> None:
    found: dict[str, Any] = {
        "metadata": {"name": "a"},
        "spec": {
            "taints": [
                {"key": OUT_OF_SERVICE, "effect": "NoExecute"},
                {"key": OUT_OF_SERVICE, "effect": "NoSchedule"},
            ]
        },
        "status": {"conditions": [{"type": "Ready", "status": "False", "message": "m" * 5000}]},
    }
    view = node_view(found)
    assert view.taints == {OUT_OF_SERVICE: "NoExecute"}
    assert len(view.conditions[0].message) == 1024
    assert node_view({"metadata": {"name": "b"}}) == ObservedNode(name="b")


class OnePod:
    """A gateway behind which one pod of the job is being deleted, and nodes answer like that."""

    def __init__(self, job: Object, code: int) -> None:
        self.asked: list[str] = []
        self._job, self._code = job, code

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if kind != "Node":
            return None
        self.asked.append(name)
        raise ApiError(self._code, "Refused", "nodes is forbidden")

    async def list_objects(self, kind: str, namespace: str, **_: str) -> list[Object]:
        owner = {"uid": self._job["metadata"]["uid"]}
        metadata = {"name": "tiny-1-0-0", "uid": "u", "ownerReferences": [owner]}
        told = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
        return [{"metadata": metadata | told, "spec": {"nodeName": "node-1"}, "status": {}}]


@pytest.mark.parametrize(("code", "reads_nodes"), [(403, True), (500, True), (403, False)])
def test_without_the_right_to_nodes_everything_goes_on(code: int, reads_nodes: bool) -> None:
    """A server in trouble is asked again, by the next pass."""
    gateway: Any = OnePod(job_object(), code)

    async def look() -> Observed:
        return await observe(
            gateway, job_object(), status_of(), report=ObservedReport(), refusals={}, now=NOW,
            reads_nodes=reads_nodes,
        )  # fmt: skip

    if code == 403:
        assert (len(asyncio.run(look()).pods), asyncio.run(look()).nodes) == (1, {})
    else:
        with pytest.raises(ApiError):
            asyncio.run(look())
    assert bool(gateway.asked) is reads_nodes
