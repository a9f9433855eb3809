"""Why do the pods not start?"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.status import Scheduled
from lmtraining_operator.plan import ObservedClaim, PodWarning, Refusal, obstacles
from lmtraining_operator.plan.model import ObservedPod
from lmtraining_operator.plan.scheduling import scheduled
from tests.unit.operator_situations import NOW, running_gang, situation

pytestmark = pytest.mark.unit

LEAD, PEER = running_gang(2)
WAITS = replace(PEER, phase="Pending", address="")
S = Scheduled
MESSAGE_LENGTH_MAX = 500
TAINT = "node(s) had untolerated taint(s)"
TAIL = "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
PULL = 'failed to pull and unpack image "r.example/x:1": failed to resolve reference'


def refusal(code: int, message: str) -> dict[str, Refusal]:
    name = "tiny-1-1-0"
    one = Refusal(kind="Pod", name=name, code=code, message=message, count=1, time=NOW)
    return {f"Pod/{name}": one}


def waiting(reason: str, message: str = "the kubelet's words") -> ObservedPod:
    return replace(WAITS, waiting_reason=reason, waiting_message=message)


def unplaced(message: str) -> ObservedPod:
    return replace(WAITS, node="", unschedulable_message=message)


@pytest.mark.parametrize(
    ("pods", "observed", "reason", "words"),
    [
        ((), {}, S.PENDING, []),
        ((LEAD,), {}, S.STARTING, ["1 of 2"]),
        ((LEAD, WAITS), {}, S.STARTING, ["1 of 2"]),
        ((LEAD, waiting("ContainerCreating")), {}, S.STARTING, []),
        (
            (LEAD, waiting("ImagePullBackOff")),
            {},
            S.IMAGE_PULL_FAILED,
            ["tiny-1-1-0", "registry.example/trainer:1", "the kubelet's words", "workers.image"],
        ),
        (
            (LEAD, waiting("ErrImagePull", f"rpc error: code = NotFound desc = {PULL}: not found")),
            {},
            S.IMAGE_PULL_FAILED,
            ["(ErrImagePull: not found): correct workers.image in a new job"],
        ),
        (
            (LEAD, waiting("ImagePullBackOff", f"{PULL}: 401 Unauthorized")),
            {},
            S.IMAGE_PULL_FAILED,
            ["(ImagePullBackOff: Unauthorized): give the service account"],
        ),
        (
            (LEAD, waiting("ErrImagePull", f"{PULL}: dial tcp: lookup r.example: no such host")),
            {},
            S.IMAGE_PULL_FAILED,
            ["(ErrImagePull: no such host): make the registry reachable"],
        ),
        ((LEAD, waiting("ErrImagePull", "words " * 100)), {}, S.IMAGE_PULL_FAILED, ["words wor"]),
        ((LEAD, waiting("InvalidImageName")), {}, S.IMAGE_PULL_FAILED, []),
        (
            (LEAD, waiting("CreateContainerConfigError")),
            {},
            S.CONTAINER_NOT_CREATED,
            ["tiny-1-1-0", "the kubelet's words"],
        ),
        (
            (LEAD, unplaced("0/3 nodes: 3 Insufficient nvidia.com/gpu")),
            {},
            S.UNSCHEDULABLE,
            ["tiny-1-1-0", "Insufficient nvidia.com/gpu", "2Gi memory"],
        ),
        (
            (LEAD, unplaced(f"0/3 nodes are available: 2 Insufficient cpu, 1 {TAINT}. {TAIL}")),
            {},
            S.UNSCHEDULABLE,
            [f"2 Insufficient cpu, 1 {TAINT}: lower workers.resources.cpu, or add nodes"],
        ),
        (
            (LEAD, unplaced(f"0/3 nodes are available: 3 {TAINT}. {TAIL}")),
            {},
            S.UNSCHEDULABLE,
            [f"3 {TAINT}: free or add nodes"],
        ),
        (
            (LEAD, unplaced('persistentvolumeclaim "disk" not found')),
            {},
            S.VOLUME_NOT_READY,
            ["tiny-checkpoints (it does not exist)", '"disk" not found: create it'],
        ),
        (
            (LEAD, unplaced("pod has unbound immediate PersistentVolumeClaims")),
            {"claim": ObservedClaim(name="tiny-checkpoints")},
            S.VOLUME_NOT_READY,
            ["tiny-checkpoints (Pending)", "PersistentVolume that fits it", "storageClassName"],
        ),
        (
            (LEAD, WAITS),
            {"warnings": (PodWarning(pod=PEER.name, reason="FailedMount", message="no s3-key"),)},
            S.VOLUME_NOT_READY,
            ["tiny-1-1-0", "no s3-key"],
        ),
        (
            (LEAD, WAITS),
            {"warnings": (PodWarning(pod=LEAD.name, reason="FailedMount", message="once"),)},
            S.STARTING,  # that pod runs by now
            [],
        ),
        (
            (LEAD,),
            {"refusals": refusal(403, "exceeded quota: team, requested: pods=1")},
            S.QUOTA_EXCEEDED,
            ["exceeded quota: team", "tried again"],
        ),
        (
            (LEAD,),
            {"refusals": refusal(403, 'violates PodSecurity "restricted:latest"')},
            S.CREATE_REFUSED,
            ["tiny-1-1-0", "violates PodSecurity"],
        ),
        (
            (LEAD,),
            {"refusals": refusal(409, "it belongs to LMTrainingJob tiny, UID 77")},
            S.NAME_TAKEN,
            ["tiny-1-1-0", "UID 77", "another name"],
        ),
    ],
)
def test_what_keeps_a_pod_from_starting(
    pods: tuple[ObservedPod, ...], observed: dict[str, Any], reason: Scheduled, words: list[str]
) -> None:
    """P4: the reason, in the words of whoever keeps it, with the pod."""
    verdict = scheduled(situation(pods=pods, complete=False, **observed))
    assert (verdict.status, verdict.reason) == ("False", reason)
    for word in words:
        assert word in verdict.message
    assert "preemption" not in verdict.message
    assert len(verdict.message) < MESSAGE_LENGTH_MAX


def test_the_fix_names_every_field_that_asks_for_too_much() -> None:
    words = "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu."
    _, fix = obstacles.placement(words, accelerator="nvidia.com/gpu")
    assert fix == (
        "lower workers.resources.cpu and workers.accelerator.count, or add nodes with more cpu and "
        "nvidia.com/gpu"
    )


def test_true_once_all_run_and_kept() -> None:
    assert scheduled(situation(pods=(LEAD, PEER), complete=False)).status == "True"
    assert scheduled(situation(pods=(LEAD, WAITS), complete=True)).status == "True"


def test_newest_refusal_is_told() -> None:
    refusals = refusal(403, "exceeded quota: team")
    later = NOW + timedelta(seconds=1)
    refusals["ConfigMap/tiny-job-file"] = Refusal(
        kind="ConfigMap", name="tiny-job-file", code=409, message="", count=1, time=later
    )
    found = scheduled(situation(pods=(), complete=False, refusals=refusals))
    assert found.reason is Scheduled.NAME_TAKEN
