"""The real operator against a real API server: what keeps a job from starting is said within
seconds, in a sentence with the object and the fix; when it is gone, the job goes on (P4, P12)."""

from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.status import ConditionType
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("operator")]

SCHEDULED, ACCEPTED = ConditionType.SCHEDULED, ConditionType.ACCEPTED


def make(stage: Stage, plural: str, name: str, spec: Object, **rest: Any) -> None:
    kind = {"persistentvolumeclaims": "PersistentVolumeClaim", "resourcequotas": "ResourceQuota"}
    body = {"apiVersion": "v1", "kind": kind[plural], "metadata": {"name": name}, "spec": spec}
    stage.do("POST", plural, body=body | rest)


def claim(stage: Stage, name: str, access_mode: str) -> None:
    size = {"requests": {"storage": "1Gi"}}
    make(stage, "persistentvolumeclaims", name, {"accessModes": [access_mode], "resources": size})


def test_image_that_cannot_be_pulled(stage: Stage) -> None:
    stage.create_job("tiny", workers__replicas=1, workers__image="registry.example/none:1")
    (pod,) = stage.wait_for_pods("tiny", attempt=1, count=1)
    stage.place(pod)
    stage.wait_container(pod, "ErrImagePull", "manifest unknown")
    message = stage.wait_for("tiny", "ImagePullFailed", SCHEDULED, limit_seconds=5).message
    for word in ("tiny-1-0-0", "registry.example/none:1", "manifest unknown", "workers.image"):
        assert word in message
    stage.wait_for_event("tiny", "ImagePullFailed")
    stage.run_pods("tiny", attempt=1, count=1)
    stage.wait_for("tiny", "Scheduled", SCHEDULED)


def test_a_status_is_written_whatever_characters_are_in_it(stage: Stage) -> None:
    """P4. Those beyond the first 65,536 are no text for everyone on the way."""
    uri = "s3://bucket/日本語/\U0001f4a5/\u2028"
    stage.create_job("tiny", workers__replicas=1, checkpoint__storage={"uri": uri[:-2]})
    (pod,) = stage.wait_for_pods("tiny", attempt=1, count=1)
    assert stage.status("tiny").artifacts.uri == uri[:-2]
    stage.place(pod)
    stage.wait_container(pod, "ErrImagePull", f"no such place: {uri}")
    stage.wait_for_message("tiny", "no such place: s3://bucket/日本語/\U0001f4a5/", SCHEDULED)


def test_pod_that_no_node_takes(stage: Stage) -> None:
    stage.create_job("tiny", workers__replicas=1)
    (pod,) = stage.wait_for_pods("tiny", attempt=1, count=1)
    message = "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available."
    condition = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
    }  # fmt: skip
    stage.patch_status(pod, {"conditions": [condition]})
    said = stage.wait_for("tiny", "Unschedulable", SCHEDULED, limit_seconds=5)
    assert "tiny-1-0-0" in said.message
    assert "3 Insufficient memory: lower workers.resources.memory, or add nodes" in said.message
    assert "preemption" not in said.message


def test_secret_that_is_missing(stage: Stage) -> None:
    """The kubelet says it in an event, which wakes nobody."""
    secret = {"secretRef": {"name": "s3-key"}}
    source = {"uri": "s3://bucket/data.txt", "credentials": secret}
    stage.create_job("tiny", workers__replicas=1, data__train=[source])
    (pod,) = stage.wait_for_pods("tiny", attempt=1, count=1)
    stage.place(pod)
    metadata = pod["metadata"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.1", "namespace": stage.namespace},
        "involvedObject": {
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": stage.namespace,
            "uid": metadata["uid"],
        },
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "credentials-0": secret "s3-key" not found',
    }
    stage.do("POST", "events", body=event)
    said = stage.wait_for("tiny", "VolumeNotReady", SCHEDULED, limit_seconds=10)
    field = "data.train[0].credentials.secretRef.name"
    assert said.message == f"Secret s3-key ({field}) does not exist: create it"


def test_quota_that_is_full(stage: Stage) -> None:
    """It is said at once, tried again ever more slowly, and the job goes on when there is room."""
    make(stage, "resourcequotas", "team", {"hard": {"pods": "0"}})
    quota = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
    stage.do("PATCH", "resourcequotas", "/team/status", quota)
    stage.create_job("tiny")
    said = stage.wait_for("tiny", "QuotaExceeded", SCHEDULED, limit_seconds=15)
    assert "exceeded quota: team" in said.message
    assert "tiny-1-0-0" in said.message or "tiny-1-1-0" in said.message
    stage.do("DELETE", "resourcequotas", "/team")
    stage.wait_for_pods("tiny", attempt=1, count=2)
    stage.wait_for("tiny", "Starting", SCHEDULED)
    assert stage.status("tiny").attempt == 1


def test_claim_that_one_node_alone_can_write(stage: Stage) -> None:
    claim(stage, "disk", "ReadWriteOnce")
    stage.create_job("tiny", checkpoint__storage={"existingClaim": "disk"})
    said = stage.wait_for("tiny", "Invalid", ACCEPTED)
    assert said.status == "False"
    for word in ("disk", "ReadWriteOnce", "workers.replicas", "ReadWriteMany"):
        assert word in said.message
    assert stage.pods("tiny") == []


def test_claim_that_does_not_exist(stage: Stage) -> None:
    stage.create_job("tiny", checkpoint__storage={"existingClaim": "later"})
    assert "later" in stage.wait_for("tiny", "VolumeNotReady", SCHEDULED).message
    assert stage.pods("tiny") == []
    claim(stage, "later", "ReadWriteMany")
    stage.wait_for_pods("tiny", attempt=1, count=2)


def test_storage_class_that_does_not_exist(stage: Stage) -> None:
    """The provisioner says it in an event of the claim, the scheduler in the pod's status."""
    stage.create_job("tiny", checkpoint__storage={"claim": {"storageClassName": "no-such"}})
    pod, _ = stage.wait_for_pods("tiny", attempt=1, count=2)
    made = stage.do("GET", "persistentvolumeclaims", "/tiny-checkpoints")["metadata"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "tiny-checkpoints.1", "namespace": stage.namespace},
        "involvedObject": {
            "kind": "PersistentVolumeClaim",
            "name": made["name"],
            "namespace": stage.namespace,
            "uid": made["uid"],
        },
        "type": "Warning",
        "reason": "ProvisioningFailed",
        "message": 'storageclass.storage.k8s.io "no-such" not found',
    }
    stage.do("POST", "events", body=event)
    unbound = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    }  # fmt: skip
    stage.patch_status(pod, {"conditions": [unbound]})
    stage.wait_for_message("tiny", '"no-such" not found', SCHEDULED)
    said = stage.wait_for("tiny", "VolumeNotReady", SCHEDULED).message
    assert "PersistentVolumeClaim tiny-checkpoints (Pending)" in said


def test_two_jobs_in_one_run_directory(stage: Stage) -> None:
    claim(stage, "shared", "ReadWriteMany")
    same = {"storage": {"existingClaim": "shared"}, "path": "ours"}
    stage.create_job("first", checkpoint=same)
    stage.wait_for_pods("first", attempt=1, count=2)
    stage.create_job("second", checkpoint=same)
    said = stage.wait_for("second", "Invalid", ACCEPTED)
    for word in ("first", "checkpoint.path", "ours", "shared"):
        assert word in said.message
    assert stage.pods("second") == []


def test_name_that_is_taken(stage: Stage, operator: OperatorProcess) -> None:
    """P1: a child of somebody else is never adopted."""
    container = {"name": "other", "image": "registry.example/other:1"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tiny-1-0-0"},
        "spec": {"containers": [container]},
    }
    stage.do("POST", "pods", body=pod)
    stage.create_job("tiny", workers__replicas=1)
    said = stage.wait_for("tiny", "NameTaken", SCHEDULED)
    assert "tiny-1-0-0" in said.message
    assert stage.pods("tiny") == []
    stage.vanish({"metadata": {"name": "tiny-1-0-0"}})
    stage.wait_for_pods("tiny", attempt=1, count=1)


def test_namespace_of_the_restricted_level(stage: Stage) -> None:
    """The restricted level lets our pods in."""
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    stage.label_namespace(level)
    stage.create_job("tiny")
    stage.wait_for_pods("tiny", attempt=1, count=2)
    assert stage.status("tiny").condition(ACCEPTED) is not None
    assert api.LABEL_JOB_UID in stage.pods("tiny")[0]["metadata"]["labels"]
