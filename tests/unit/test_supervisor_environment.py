"""Threads, identity and metrics: what depends on nothing but its input."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmtraining_api import (
    CheckpointReport,
    FailureClass,
    IntervalReport,
    RankHealth,
    TimeAccounts,
    TrainerReport,
    names,
)
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.metrics import COMMON_LABELS, METRICS, exposition
from lmtraining_trainer.supervisor.environment import cpu_limit, rank_environment, with_defaults
from lmtraining_trainer.supervisor.identity import identity_from, read_job_file
from tests.contract_cases import minimal

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cpus", "ranks", "threads"), [(8, 2, "4"), (2, 2, "1"), (0.5, 4, "1"), (3.9, 1, "3")]
)
def test_ranks_share_the_cores_of_their_pod(cpus: float, ranks: int, threads: str) -> None:
    assert rank_environment(cpus=cpus, ranks=ranks)["OMP_NUM_THREADS"] == threads


def test_what_the_user_set_stays() -> None:
    wanted = rank_environment(cpus=8, ranks=1)
    assert with_defaults({"OMP_NUM_THREADS": "3"}, wanted)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "100000"}, 0.25),
    ],
)
def test_a_cgroup_limits_the_cores(tmp_path: Path, files: dict[str, str], limit: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit


@pytest.mark.parametrize("text", ["max 100000", "-1", "", "nonsense"])
def test_without_a_limit_the_affinity_counts(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_limit(tmp_path) >= 1


GOOD = {
    names.ENV_POD_UID: "p",
    names.ENV_POD_NAME: "job-2-1-0",
    names.ENV_ATTEMPT: "2",
    names.ENV_REPLICA: "1",
}


def test_identity_is_read_from_the_environment() -> None:
    identity = identity_from(GOOD)
    assert (identity.attempt, identity.replica) == (2, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [(names.ENV_POD_UID, ""), (names.ENV_ATTEMPT, "0"), (names.ENV_ATTEMPT, "two"),
     (names.ENV_REPLICA, "-1"), (names.ENV_REPLICA, "")],
)  # fmt: skip
def test_a_wrong_environment_is_named(name: str, value: str) -> None:
    with pytest.raises(TrainerError, match=name) as caught:
        identity_from(GOOD | {name: value})
    assert caught.value.failure_class is FailureClass.CONFIGURATION


@pytest.mark.parametrize("text", ["", "{", "{}", '{"jobName": 1}'])
def test_a_wrong_job_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(TrainerError, match=str(path)) as caught:
        read_job_file(path)
    assert caught.value.failure_class is FailureClass.CONFIGURATION


def test_p10_a_job_file_of_a_job_that_is_older_than_a_rule_is_read(tmp_path: Path) -> None:
    """The operator has asked the rules that the job began with."""
    spec = minimal(
        model={"config": {"dropout": 0.5}}, training={"regularisation": {"dropout": 0.25}}
    )["spec"]
    text = {"jobName": "tiny", "namespace": "n", "jobUid": "u", "spec": spec}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(text | {"runDirectory": "/r", "dataCacheDirectory": "/c"}))
    assert read_job_file(path).spec.training.regularisation.dropout == 0.25


FULL = TrainerReport(
    job_uid="u",
    attempt=2,
    round=1,
    state="Training",
    report_time=NOW,
    step=7,
    total_steps=10,
    tokens=700,
    step_time=NOW,
    eta_seconds=3.0,
    loss=2.5,
    validation_loss=2.6,
    validation_step=5,
    validation_accuracy=0.9,
    validation_f1=0.8,
    cut_examples=12,
    unigram_loss=5.0,
    gradient_norm=0.5,
    learning_rate=1e-3,
    zero_share=0.25,
    tokens_per_second=123.0,
    parameters=9,
    load_seconds=0.5,
    healthy_step=4,
    update_ratio=1e-3,
    update_rms=0.3,
    swallowed_share=0.1,
    attention_logit_bound=9.0,
    activation_max=20.0,
    noise_scale_tokens=4096.0,
    mfu=0.4,
    time_seconds={"Starting": 1.0, "Training": 2.0},
    accounts=TimeAccounts(productive=3.0, recovery=1.0),
    checkpoint=CheckpointReport(step=5, path="c", time=NOW, size_bytes=3, sha256="a"),
    checkpoint_interval=IntervalReport(seconds=90.0, cost_seconds=0.4, fault_seconds=3600.0),
    ranks=[RankHealth(rank=0, heartbeat_age_seconds=0.1, score=0.5)],
)


def _scraped(
    report: TrainerReport, *, leads: bool = True
) -> dict[str, list[tuple[dict[str, str], float]]]:
    body = exposition(report, leads=leads, job_name="j", namespace="n").decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_metric_of_the_registry_is_exported_with_its_labels_and_no_other() -> None:
    found = _scraped(FULL)
    assert set(found) == {metric.name for metric in METRICS}
    for metric in METRICS:
        for labels, _ in found[metric.name]:
            assert set(labels) == {*COMMON_LABELS, *metric.labels}
    assert found["lmtraining_loss"] == [({"job_name": "j", "job_namespace": "n"}, 2.5)]
    assert found["lmtraining_step"][0][1] == 7
    assert found["lmtraining_checkpoint_interval_seconds"][0][1] == 90.0
    assert found["lmtraining_checkpoint_cost_seconds"][0][1] == 0.4
    assert found["lmtraining_goodput_ratio"][0][1] == 0.75
    by_cause = {labels["cause"]: value for labels, value in found["lmtraining_run_seconds"]}
    assert by_cause == TimeAccounts(productive=3.0, recovery=1.0).model_dump(by_alias=False)


def test_the_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name.startswith("lmtraining_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        assert metric.unit


def test_what_is_not_known_is_not_exported() -> None:
    blank = TrainerReport(job_uid="u", attempt=1, round=1, state="Waiting", report_time=NOW)
    found = _scraped(blank)
    assert "lmtraining_loss" not in found
    assert "lmtraining_checkpoint_step" not in found


def test_only_the_pod_of_rank_0_exports_the_run() -> None:
    found = _scraped(FULL, leads=False)
    assert "lmtraining_tokens_total" not in found
    assert "lmtraining_state" in found
