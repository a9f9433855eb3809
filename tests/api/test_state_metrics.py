"""A real kube-state-metrics with the chart's configuration, over a real API server."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devcluster import binaries
from devcluster.apiserver import ApiServer, free_ports
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.waiting import wait_until
from lmtraining_api import names
from lmtraining_monitoring import state
from tests.contract_cases import minimal

pytestmark = pytest.mark.api

FILES = Path(__file__).resolve().parents[2] / "charts/lm-training-operator/files"
NAMESPACE = "state-metrics"
WAIT_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
NEVER_TOLD = "the words of a message"
TIME = "2026-01-02T03:04:05Z"
SECONDS = 1767323045.0
STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "startTime": TIME,
    "firstPlacedTime": TIME,
    "firstRunTime": TIME,
    "completionTime": TIME,
    "attempt": 3,
    "restarts": {"total": 2, "byReason": {"Crash": 1, "PodLost": 1}},
    "progress": {"step": 40, "totalSteps": 100, "reportTime": TIME},
    "checkpoint": {"lastStep": 30, "lastTime": TIME, "path": "checkpoints/step-30"},
    "conditions": [
        {
            "type": "Succeeded",
            "status": "Unknown",
            "reason": "Training",
            "message": NEVER_TOLD,
            "lastTransitionTime": TIME,
            "observedGeneration": 1,
        }
    ],
}
Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture(scope="module")
def scraped(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """What is exported of a job with a full status, and of one that no operator has seen."""
    programs = binaries.ensure(["kubectl", "kube-state-metrics"], Layout.from_environment())
    kubectl = Kubectl(programs["kubectl"], api_server.kubeconfig, NAMESPACE)
    kubectl.run("create", "namespace", NAMESPACE)
    for name in ("told", "unseen"):
        kubectl.apply(minimal() | {"metadata": {"name": name}})
    kubectl.run(
        *("patch", names.PLURAL, "told", "--subresource=status", "--type=merge", "--patch"),
        json.dumps({"status": STATUS}),
    )
    port, telemetry = free_ports(2)
    log_file = tmp_path_factory.mktemp("state") / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                str(programs["kube-state-metrics"]),
                f"--kubeconfig={api_server.kubeconfig}",
                f"--namespaces={NAMESPACE}",
                "--custom-resource-state-only",
                f"--custom-resource-state-config-file={FILES / 'kube-state-metrics.yaml'}",
                *(f"--port={port}", "--host=127.0.0.1"),
                *(f"--telemetry-port={telemetry}", "--telemetry-host=127.0.0.1"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield wait_until(
            "kube-state-metrics shows both jobs",
            lambda: both_jobs(port),
            limit_seconds=WAIT_SECONDS_MAX,
            hint=str(log_file),
        )
    finally:
        process.terminate()
        process.wait(STOP_SECONDS_MAX)


def both_jobs(port: int) -> Samples | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    jobs = {labels["job_name"] for labels, _ in found.get(f"{state.PREFIX}_created", [])}
    assert NEVER_TOLD not in text
    return found if jobs == {"told", "unseen"} else None


def test_every_metric_of_the_registry_is_there_with_its_labels_and_no_other(
    scraped: Samples,
) -> None:
    ours = {name: values for name, values in scraped.items() if name.startswith(state.PREFIX)}
    assert set(ours) == {metric.full_name for metric in state.METRICS}
    fixed = {"customresource_group", "customresource_kind", "customresource_version"}
    for metric in state.METRICS:
        for labels, _ in ours[metric.full_name]:
            assert set(labels) - fixed == metric.label_names, metric.name


def test_the_values_are_those_of_the_status(scraped: Samples) -> None:
    def of_told(name: str) -> list[tuple[dict[str, str], float]]:
        values = scraped[f"{state.PREFIX}_{name}"]
        return [(labels, value) for labels, value in values if labels["job_name"] == "told"]

    ((condition, one),) = of_told("condition")
    assert (condition["type"], condition["status"], condition["reason"], one) == (
        "Succeeded", "Unknown", "Training", 1.0,
    )  # fmt: skip
    classes = {labels["failure_class"]: n for labels, n in of_told("restarts_by_class")}
    assert classes == {"Crash": 1.0, "PodLost": 1.0}
    for name, value in {
        "attempts": 3.0,
        "restarts": 2.0,
        "last_step": 40.0,
        "last_step_budget": 100.0,
        "saved_step": 30.0,
        "started": SECONDS,
        "first_placed": SECONDS,
        "first_run": SECONDS,
        "completed": SECONDS,
        "reported": SECONDS,
        "saved": SECONDS,
        "observed_generation": 1.0,
    }.items():
        assert [found for _, found in of_told(name)] == [value], name


def test_a_job_that_no_operator_has_seen_is_there_and_seen_to_be_unseen(scraped: Samples) -> None:
    def jobs(name: str) -> set[str]:
        return {labels["job_name"] for labels, _ in scraped[f"{state.PREFIX}_{name}"]}

    assert jobs("generation") == {"told", "unseen"}
    assert jobs("observed_generation") == jobs("condition") == {"told"}
