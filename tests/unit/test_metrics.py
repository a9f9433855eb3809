"""The registries of metrics: what they name is what is exported, and no more than they promise."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from bench.scrape import STEPS_LONG, STEPS_SHORT, full_report, operator_registry
from lmtraining_api.conditions import ConditionType, Succeeded
from lmtraining_api.exits import FailureClass
from lmtraining_api.metrics import MetricDefinition
from lmtraining_api.status import Condition, LastRecovery, LMTrainingJobStatus, Restarts
from lmtraining_operator import metrics as operator
from lmtraining_operator.metrics import CODES_MAX, OTHER, REASONS_MAX, Metrics
from lmtraining_operator.milestones import Milestones, milestones
from lmtraining_trainer import metrics as trainer

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


RECOVERED = LastRecovery(fault_time=NOW, first_step_time=later(9), seconds="9 s")
AGAIN = LastRecovery(fault_time=later(100), first_step_time=later(104), seconds="4 s")
BLANK = LMTrainingJobStatus()
ACCEPTED = LMTrainingJobStatus(start_time=NOW)
PLACED = LMTrainingJobStatus(start_time=NOW, first_placed_time=later(20))
RUNNING = PLACED.model_copy(update={"first_run_time": later(30)})
OF_AN_OLDER_OPERATOR = LMTrainingJobStatus(start_time=NOW, first_run_time=later(30))
ONE_CRASH = Restarts(total=1, by_reason={FailureClass.CRASH: 1})
RENAMED = Restarts(total=1, by_reason={FailureClass.CRASH: 0, FailureClass.DISRUPTION: 1})


def in_state(state: Succeeded) -> LMTrainingJobStatus:
    summary = Condition(
        type=ConditionType.SUCCEEDED,
        status="Unknown",
        reason=state,
        observed_generation=1,
        last_transition_time=NOW,
    )
    return LMTrainingJobStatus(conditions=[summary])


THREE = Restarts(total=3, by_reason={FailureClass.CRASH: 2, FailureClass.HANG: 1})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (BLANK, ACCEPTED, Milestones()),
        (ACCEPTED, PLACED, Milestones(queue_seconds=20.0)),
        (PLACED, RUNNING, Milestones(start_seconds=10.0)),
        (ACCEPTED, RUNNING, Milestones(queue_seconds=20.0, start_seconds=10.0)),
        (ACCEPTED, OF_AN_OLDER_OPERATOR, Milestones()),
        (RUNNING, RUNNING, Milestones()),
        (
            RUNNING,
            RUNNING.model_copy(update={"last_recovery": RECOVERED}),
            Milestones(recovery_seconds=9.0),
        ),
        (
            RUNNING.model_copy(update={"last_recovery": RECOVERED}),
            RUNNING.model_copy(update={"last_recovery": RECOVERED}),
            Milestones(),
        ),
        (
            RUNNING.model_copy(update={"last_recovery": RECOVERED}),
            RUNNING.model_copy(update={"last_recovery": AGAIN}),
            Milestones(recovery_seconds=4.0),
        ),
        (
            RUNNING.model_copy(update={"restarts": ONE_CRASH}),
            RUNNING.model_copy(update={"restarts": THREE}),
            Milestones(restarts={"Crash": 1, "Hang": 1}),
        ),
        (  # a failure that got a better name
            RUNNING.model_copy(update={"restarts": ONE_CRASH}),
            RUNNING.model_copy(update={"restarts": RENAMED}),
            Milestones(),
        ),
        (BLANK, in_state(Succeeded.TRAINING), Milestones()),
        (in_state(Succeeded.TRAINING), in_state(Succeeded.FAILED), Milestones(end="Failed")),
        (in_state(Succeeded.FAILED), in_state(Succeeded.FAILED), Milestones()),
    ],
)
def test_a_milestone_is_told_once(
    old: LMTrainingJobStatus, new: LMTrainingJobStatus, expected: Milestones
) -> None:
    assert milestones(old, new) == expected


def used() -> Metrics:
    """Every metric of the operator with a value."""
    metrics = Metrics("test")
    metrics.show_jobs(lambda: {"Training": 2}, oldest_unstarted_seconds=lambda: 40.0)
    metrics.count_answer("GET", "Pod", 200, 0.02)
    metrics.count_error("Conflict")
    metrics.reconcile_seconds.observe(0.02)
    metrics.report_pulls.labels("ok").inc()
    metrics.count_milestones(
        Milestones(
            queue_seconds=20.0,
            start_seconds=30.0,
            recovery_seconds=9.0,
            restarts={"Crash": 2},
            end="Failed",
        )
    )
    return metrics


def test_the_operator_exports_what_its_registry_names_and_no_more() -> None:
    found: dict[str, set[str]] = {}
    for family in used().registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    created = {name for name in found if name.endswith("_created")}
    expected = {
        name: {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
        for metric in operator.METRICS
        for name in metric.sample_names
    }
    assert {n: labels for n, labels in found.items() if n not in created} == {
        n: labels for n, labels in expected.items() if n not in created
    }


def test_milestones_are_counted() -> None:
    value = used().registry.get_sample_value
    assert value("lmtraining_operator_job_queue_duration_seconds_sum") == 20
    assert value("lmtraining_operator_job_start_duration_seconds_sum") == 30
    assert value("lmtraining_operator_job_recovery_duration_seconds_sum") == 9
    assert value("lmtraining_operator_job_restarts_total", {"failure_class": "Crash"}) == 2
    assert value("lmtraining_operator_job_ends_total", {"state": "Failed"}) == 1
    assert value("lmtraining_operator_job_ends_total", {"state": "Diverged"}) == 0, "from 0"
    assert value("lmtraining_operator_oldest_unstarted_job_seconds") == 40


def test_words_of_others_are_bounded_and_still_counted() -> None:
    metrics = Metrics("test")
    for number in range(REASONS_MAX + 5):
        metrics.count_error(f"Reason{number}")
    for number in range(CODES_MAX + 5):
        metrics.count_answer("GET", "Pod", number, 0.02)
    value = metrics.registry.get_sample_value
    assert value("lmtraining_operator_reconcile_errors_total", {"reason": OTHER}) == 5
    of_others = {"verb": "GET", "kind": "Pod", "code": OTHER}
    assert value("lmtraining_operator_api_requests_total", of_others) == 5
    metrics.count_error("Reason0")
    assert value("lmtraining_operator_reconcile_errors_total", {"reason": "Reason0"}) == 2


def test_a_scrape_is_no_larger_late_in_a_run_and_keeps_its_bounds() -> None:
    bodies = [
        trainer.exposition(full_report(step), leads=True, job_name="j", namespace="n").decode()
        for step in (STEPS_SHORT, STEPS_LONG)
    ]
    early, late = ([line for line in body.splitlines() if line[0] != "#"] for body in bodies)
    assert len(early) == len(late) > 150
    assert len(late) <= sum(metric.series_max(trainer.LABELS) for metric in trainer.METRICS)
    assert len(bodies[1]) < 1.05 * len(bodies[0])
    series = sum(1 for family in operator_registry(1000).collect() for _ in family.samples)
    assert series <= sum(metric.series_max(operator.LABELS) for metric in operator.METRICS)


@pytest.mark.parametrize("metric", [*operator.METRICS, *trainer.METRICS], ids=lambda m: m.name)
def test_a_metric_follows_the_conventions(metric: MetricDefinition) -> None:
    labels = {**trainer.LABELS, **operator.LABELS}
    assert re.fullmatch(r"lmtraining_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    if metric.unit in ("seconds", "bytes"):
        assert metric.name.removesuffix("_total").endswith(metric.unit)
    assert metric.help.endswith(".")
    assert set(metric.labels) <= set(labels)
    assert "step" not in metric.labels
    assert "rank" not in metric.labels or metric.name.startswith("lmtraining_rank_")
