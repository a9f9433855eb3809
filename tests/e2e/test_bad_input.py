"""Every bad input gets a sentence that names what is wrong and what to do, early."""

import subprocess
from typing import Any

import pytest

from devcluster.kubectl import Kubectl
from devcluster.product import Product
from lmtraining_api import ConditionType
from tests.e2e.jobs import ALONE, Watcher, job, read_volume

pytestmark = pytest.mark.e2e


def apply(kubectl: Kubectl, made: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    import json

    return kubectl.try_run("apply", "--filename", "-", stdin=json.dumps(made))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suspendd": True}, ['unknown field "spec.suspendd"']),
        ({"training__budget": {"steps": "many"}}, ["spec.training.budget.steps", "integer"]),
        ({"model__config__heads": 5}, ["heads 5", "hiddenSize 64"]),
        ({"training__batchTokens": 1000}, ["training.batchTokens 1000", "multiple"]),
        (
            {"checkpoint__storage": {"claim": {"accessMode": "ReadWriteOnce"}}},
            ["workers.replicas 2", "ReadWriteMany"],
        ),
    ],
)
def test_refused_by_apply(kubectl: Kubectl, changes: dict[str, Any], words: list[str]) -> None:
    result = apply(kubectl, job("refused", **changes))
    assert result.returncode != 0
    for word in words:
        assert word in result.stderr


def test_long_name_is_refused_by_apply(kubectl: Kubectl) -> None:
    result = apply(kubectl, job("n" * 63))
    assert result.returncode != 0
    assert "metadata.name" in result.stderr
    assert "shorter" in result.stderr


def test_image_that_does_not_exist(kubectl: Kubectl) -> None:
    image = "127.0.0.1:5000/no-such-image:1"
    kubectl.apply(job("no-image", workers__image=image))
    message = Watcher(kubectl, "no-image").wait_for(ConditionType.SCHEDULED, "ImagePullFailed")
    assert image in message


def test_claim_that_does_not_exist(kubectl: Kubectl) -> None:
    kubectl.apply(job("no-claim", checkpoint__storage={"existingClaim": "nowhere"}))
    watcher = Watcher(kubectl, "no-claim")
    assert "nowhere" in watcher.wait_for(ConditionType.SCHEDULED, "VolumeNotReady")


def claim(name: str, mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
    }


def test_read_write_once_claim_with_two_replicas(kubectl: Kubectl) -> None:
    kubectl.apply(claim("lonely", "ReadWriteOnce"))
    kubectl.apply(job("two-on-one", checkpoint__storage={"existingClaim": "lonely"}))
    watcher = Watcher(kubectl, "two-on-one")
    message = watcher.wait_for(ConditionType.ACCEPTED, "Invalid")
    assert "lonely" in message
    assert "ReadWriteMany" in message


def test_missing_credentials_secret(kubectl: Kubectl) -> None:
    source = {
        "uri": "s3://nobody/*.txt",
        "credentials": {"secretRef": {"name": "no-such-secret"}},
    }
    kubectl.apply(job("no-secret", data__train=[source]))
    watcher = Watcher(kubectl, "no-secret")
    assert "no-such-secret" in watcher.wait_for(ConditionType.SCHEDULED, "VolumeNotReady")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "no-data",
            {"data__train": [{"uri": "file:///nowhere/*.txt"}]},
            ["file:///nowhere/*.txt"],
        ),
        (
            "big-vocabulary",
            {"data__tokenizer": {"vocabSize": 200_000}},
            ["vocabSize", "200000"],
        ),
    ],
)
def test_data_that_cannot_be_used(
    kubectl: Kubectl, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    kubectl.apply(job(name, **ALONE, **changes))
    watcher = Watcher(kubectl, name)
    ended = watcher.wait_for_end()
    assert watcher.reason() == "Failed"
    assert ended.restarts.total == 0, "trying again cannot help"
    for word in words:
        assert word in watcher.message()


def test_two_jobs_that_name_the_same_path(kubectl: Kubectl) -> None:
    kubectl.apply(claim("common", "ReadWriteMany"))
    where = {
        "checkpoint__storage": {"existingClaim": "common"},
        "checkpoint__path": "mine",
        "training__budget": {"steps": 60},
    }
    kubectl.apply(job("first", **ALONE, **where))
    first = Watcher(kubectl, "first")
    first.wait_for(ConditionType.ACCEPTED, "Valid")
    kubectl.apply(job("second", **ALONE, **where))
    second = Watcher(kubectl, "second")
    message = second.wait_for(ConditionType.ACCEPTED, "Invalid")
    assert "first" in message
    assert "checkpoint.path" in message
    assert second.pods() == []
    first.wait_for_end()
    assert first.reason() == "Completed", first.message()


FILES_OF_RUN = """
import hashlib, json, pathlib
files = [p for p in pathlib.Path("/storage/runs/kept").rglob("*") if p.is_file()]
print(json.dumps({str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
                  if "checkpoints" in p.parts}))
"""


def test_checkpoints_of_another_model(product: Product, kubectl: Kubectl) -> None:
    """Refused with both models named, and nothing already there is touched."""
    kubectl.apply(claim("shelf", "ReadWriteMany"))
    where = {
        "checkpoint__storage": {"existingClaim": "shelf"},
        "checkpoint__path": "kept",
        **ALONE,
    }
    kubectl.apply(job("small", **where, training__budget={"steps": 60}))
    small = Watcher(kubectl, "small")
    small.wait_for_end()
    assert small.reason() == "Completed", small.message()
    before = read_volume(kubectl, product.trainer_image, "shelf", FILES_OF_RUN, "before")
    assert before

    kubectl.apply(
        job("large", **where, checkpoint__existingRun="Resume", model__config__hiddenSize=128)
    )
    large = Watcher(kubectl, "large")
    large.wait_for_end()
    assert large.reason() == "Failed"
    assert "kept" in large.message()
    assert "128" in large.message()
    after = read_volume(kubectl, product.trainer_image, "shelf", FILES_OF_RUN, "after")
    assert after == before


def test_more_devices_than_the_node_has(kubectl: Kubectl) -> None:
    """Simulated nvidia.com/gpu: the scheduler's own words reach the job."""
    kubectl.apply(job("greedy", workers__accelerator={"count": 16}, training__batchTokens=64 * 32))
    message = Watcher(kubectl, "greedy").wait_for(ConditionType.SCHEDULED, "Unschedulable")
    assert "nvidia.com/gpu" in message


def test_quota(kubectl: Kubectl) -> None:
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "one-pod"},
            "spec": {"hard": {"pods": "1"}},
        }
    )
    kubectl.apply(job("over"))
    watcher = Watcher(kubectl, "over")
    message = watcher.wait_for(ConditionType.SCHEDULED, "QuotaExceeded")
    assert "one-pod" in message
    kubectl.run("delete", "resourcequota", "one-pod")
    watcher.wait_for(ConditionType.SCHEDULED, "Scheduled")
