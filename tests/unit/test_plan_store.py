"""A run in an object store: no claim, scratch space in each pod, and the Secret of the store."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.records import JobFile
from lmtraining_api.status import Scheduled
from lmtraining_operator.plan import PodWarning, manifests
from lmtraining_operator.plan.scheduling import scheduled
from tests.unit.operator_situations import (
    decide,
    ended,
    job_object,
    made,
    message,
    reason,
    running_gang,
    situation,
    status_of,
)

pytestmark = pytest.mark.unit

URI = "s3://bucket/team"
SECRET = {"secretRef": {"name": "bucket-writer"}}
MODEL: dict[str, Any] = {
    "model__config": None,
    "model__pretrained": {"uri": "s3://models/gpt2", "credentials": SECRET},
}
STORE: dict[str, Any] = {"checkpoint__storage": {"uri": f"{URI}/", "credentials": SECRET}}


def test_no_claim_is_made_and_status_says_where_the_run_is() -> None:
    plan = decide(job=job_object(**STORE))
    assert made(plan) == [
        "ConfigMap/tiny-job-file",
        "NetworkPolicy/tiny",
        "Pod/tiny-1-0-0",
        "Pod/tiny-1-1-0",  # more than one replica: all can write there
    ]
    artifacts = plan.status.artifacts
    assert (artifacts.claim, artifacts.uri) == ("", URI)
    assert artifacts.run_directory == "runs/tiny-01234567"


def test_a_pod_has_scratch_space_and_the_secret_of_the_store() -> None:
    job = LMTrainingJob.model_validate(job_object(**STORE))
    pod = manifests.pod(job, "tiny-1-0-0", attempt=1, replica=0, intent="{}", image="trainer:1")
    volumes = {volume.pop("name"): volume for volume in pod["spec"]["volumes"]}
    assert volumes["storage"] == {"emptyDir": {}}
    assert volumes["credentials-0"]["secret"]["secretName"] == "bucket-writer"
    mounts = {one["name"]: one for one in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["storage"]["mountPath"] == api.STORAGE_DIRECTORY
    assert mounts["credentials-0"]["mountPath"] == f"{api.CREDENTIALS_DIRECTORY}/bucket-writer"
    assert mounts["credentials-0"]["readOnly"]


@pytest.mark.parametrize(
    ("changes", "run", "cache"),
    [
        (STORE, f"{URI}/runs/tiny-01234567", f"{URI}/data-cache"),
        (STORE | {"checkpoint__path": "mine/1"}, f"{URI}/runs/mine/1", f"{URI}/data-cache"),
        ({}, "", ""),
    ],
)
def test_the_job_file_says_where_the_run_lives(
    changes: dict[str, Any], run: str, cache: str
) -> None:
    job = LMTrainingJob.model_validate(job_object(**changes))
    text = manifests.config_map(job)["data"]["job.json"]
    content = JobFile.model_validate_json(text)
    assert (content.run_uri, content.data_cache_uri) == (run, cache)
    assert content.run_directory.startswith(f"{api.RUNS_DIRECTORY}/")
    assert ("run_uri" in text or "runUri" in text) is bool(run)
    assert json.loads(text)["spec"].get("checkpoint", {}).get("path") == (
        "mine/1" if "checkpoint__path" in changes else None
    )


TRACKED: dict[str, Any] = {"tracking__mlflow": {"uri": "http://mlflow:5000", "credentials": SECRET}}
WANDB: dict[str, Any] = {"tracking__wandb": {"credentials": SECRET}}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (STORE, "checkpoint.storage"),
        (TRACKED, "tracking.mlflow"),
        (WANDB, "tracking.wandb"),
        (MODEL, "model.pretrained"),
    ],
)
def test_a_missing_secret_names_the_field_that_asks_for_it(
    changes: dict[str, Any], field: str
) -> None:
    job = LMTrainingJob.model_validate(job_object(**changes))
    assert manifests.secrets(job) == ["bucket-writer"]
    lead, peer = running_gang(2)
    waits = replace(peer, phase="Pending", address="")
    complaint = PodWarning(
        pod=waits.name,
        reason="FailedMount",
        message='MountVolume.SetUp failed for volume "credentials-0" : secret "bucket-writer" '
        "not found",
    )
    verdict = scheduled(
        situation(pods=(lead, waits), complete=False, spec=changes, warnings=(complaint,))
    )
    assert verdict.reason == Scheduled.VOLUME_NOT_READY
    assert verdict.message == (
        f"Secret bucket-writer ({field}.credentials.secretRef.name) does not exist: create it"
    )


def test_a_finished_job_says_where_the_model_is() -> None:
    lead, peer = running_gang(2)
    plan = decide(status_of(), job=job_object(**STORE), pods=(ended(lead, 0), peer))
    assert reason(plan) == "Completed"
    assert message(plan).endswith(f" of {URI}")
    assert "PersistentVolumeClaim" not in message(plan)
