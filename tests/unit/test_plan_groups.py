"""What a job leaves in a queue is taken out of it."""

from dataclasses import replace
from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.observe import left_in_queues, pod_view
from lmtraining_operator.plan import Delete, Leftover, Observed, groups, plan
from lmtraining_operator.plan.model import Object
from lmtraining_operator.reconcile import MISSING_SECONDS
from tests.simulation.world import PERSON
from tests.unit.operator_situations import NOW, job_object, running_gang, status_of
from tests.unit.operator_world import SETTINGS, World, job_body

pytestmark = pytest.mark.unit

GROUP = "tiny-1"
(RUNS,) = (replace(pod, group=GROUP) for pod in running_gang(1))
GATED = replace(RUNS, phase="Pending", node="", address="", gates=("kueue.x-k8s.io/admission",))
DELETED = replace(GATED, is_deleting=True, is_held=True)
STOPPING = replace(RUNS, is_deleting=True, is_held=True, grace_seconds=30)
FORCED = replace(STOPPING, grace_seconds=0)
ENDED = replace(RUNS, phase="Failed")


@pytest.mark.parametrize(
    ("pods", "is_abandoned"),
    [
        ((DELETED, DELETED), True),
        ((DELETED, ENDED), True),
        ((FORCED,), True),
        ((DELETED, GATED), False),
        ((DELETED, STOPPING), False),  # it can yet end, and the group with it
        ((ENDED, ENDED), False),  # Kueue sees by itself that it is over
        ((replace(ENDED, is_deleting=True, is_held=True),), False),
        ((replace(DELETED, group=""),), False),
    ],
)
def test_a_group_is_abandoned_when_none_of_its_pods_will_end(
    pods: tuple[Any, ...], is_abandoned: bool
) -> None:
    assert groups.abandoned(pods) == ([GROUP] if is_abandoned else [])


@pytest.mark.parametrize(
    ("status", "deleting", "is_past"),
    [
        (status_of(), False, False),
        (status_of(attempt=2), False, True),
        (status_of(), True, True),
        (LMTrainingJobStatus(), False, True),
    ],
)
def test_the_group_of_a_live_attempt_is_left_alone(
    status: LMTrainingJobStatus, deleting: bool, is_past: bool
) -> None:
    job = job_object()
    if deleting:
        job["metadata"]["deletionTimestamp"] = "2026-12-01T00:00:00Z"
    assert groups.of_the_past(job, status, [DELETED]) == ([DELETED] if is_past else [])
    seen = Observed(abandoned=(Leftover(kind="Workload", name=GROUP, uid="w"),))
    actions = plan(job, status, seen, NOW, SETTINGS).actions
    assert Delete(kind="Workload", name=GROUP, uid="w") in actions


def test_a_paused_job_leaves_its_queue_alone_too() -> None:
    job = job_object()
    job["metadata"]["annotations"] = {api.ANNOTATION_PAUSED: "true"}
    seen = Observed(abandoned=(Leftover(kind="Workload", name=GROUP, uid="w"),))
    actions = plan(job, status_of(), seen, NOW, SETTINGS).actions
    assert not any(isinstance(action, Delete) for action in actions)


def test_a_pod_that_only_a_finalizer_keeps_is_gone() -> None:
    metadata: Object = {
        "name": "tiny-1-0-0",
        "uid": "a",
        "labels": {"kueue.x-k8s.io/pod-group-name": GROUP},
        "deletionTimestamp": "2026-12-01T00:00:00Z",
        "deletionGracePeriodSeconds": 0,
        "finalizers": ["kueue.x-k8s.io/managed"],
    }
    seen = pod_view({"metadata": metadata})
    assert (seen.group, seen.is_gone) == (GROUP, True)
    assert not pod_view({"metadata": metadata | {"finalizers": []}}).is_gone
    slow = {"deletionGracePeriodSeconds": 30}
    assert not pod_view({"metadata": metadata | slow}).is_gone
    assert pod_view({"metadata": metadata | slow, "status": {"phase": "Failed"}}).is_gone


async def with_an_abandoned_group(world: World) -> None:
    """A job whose pods are held by Kueue's finalizer, each deleted before it ran."""
    world.add(job_body())
    await world.operator().look()
    for pod in world.pods:
        pod["metadata"] |= {
            "deletionTimestamp": "2026-12-01T00:00:00Z",
            "deletionGracePeriodSeconds": 0,
            "finalizers": ["kueue.x-k8s.io/managed"],
        }
        pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] = GROUP
    namespace = world.job["metadata"]["namespace"]
    world.add({"kind": "Workload", "metadata": {"name": GROUP, "namespace": namespace}})


async def test_a_job_that_is_gone_is_looked_after_in_its_queue() -> None:
    world = World()
    await with_an_abandoned_group(world)
    namespace = world.job["metadata"]["namespace"]
    uid = world.objects["Workload", GROUP]["metadata"]["uid"]
    (left,) = await left_in_queues(world, namespace, "tiny")
    assert left == Leftover(kind="Workload", name=GROUP, uid=uid)


async def test_roles_that_know_no_workloads_stop_nothing() -> None:
    class Refusing(World):
        async def get(self, kind: str, namespace: str, name: str) -> Object | None:
            if kind == "Workload":
                raise ApiError(403, "Forbidden", "workloads is forbidden")
            return await super().get(kind, namespace, name)

    world = Refusing()
    world.add(job_body(queue={"name": "team"}))
    await world.operator().look()
    await world.operator().look()
    assert len(world.pods) == 2


class ReadOnlyQueues(World):
    """Roles with which Workloads may be read and not deleted."""

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None
    ) -> None:
        if kind == "Workload":
            raise ApiError(403, "Forbidden", "workloads is forbidden")
        await super().delete(kind, namespace, name, uid=uid, grace_seconds=grace_seconds)


async def test_roles_that_may_not_delete_workloads_stop_nothing() -> None:
    """P12: neither the passes of a job, nor the end of the task of one that is gone."""
    world = ReadOnlyQueues()
    await with_an_abandoned_group(world)
    world.job["spec"]["suspend"] = True
    operator = world.operator()
    outcome = await operator.look()
    assert world.reason() == "Suspended"
    assert not outcome.is_done
    uid = world.job["metadata"]["uid"]
    world.server.delete((api.KIND, "tiny"), PERSON, uid=uid, grace_seconds=None)
    await operator.look()
    world.pass_time(MISSING_SECONDS)
    assert (await operator.look()).is_gone
