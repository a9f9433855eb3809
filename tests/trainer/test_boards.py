"""Every query of every board and alert, asked of a real Prometheus.

It scrapes a real training and a real operator's registry, and holds a history of what a short run
on a CPU cannot have: devices, volumes, long windows, faults.
"""

import math
import re
import time
from collections.abc import Iterator

import pytest
from prometheus_client import start_http_server

from devcluster.prometheus_server import Server
from lmtraining_monitoring import foreign, state
from lmtraining_monitoring.rules import ALERTS
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.milestones import Milestones
from tests import openmetrics
from tests.board_queries import ROOT, other_queries, panel_queries
from tests.prometheus_server import Target, serving
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec, until
from tests.unit.promql import names_in

pytestmark = pytest.mark.trainer

RULES = ROOT / "charts/lm-training-operator/files/alerts.yaml"
HISTORY = {
    "__rate_interval": "5m",
    "operator_namespace": openmetrics.OPERATORS,
    "namespace": openmetrics.NAMESPACE,
    "job": openmetrics.JOB,
}
LIVE = {
    "__rate_interval": "10s",
    "operator_namespace": "live",
    "namespace": "tests",
    "job": "job",
}
QUERIES = [*panel_queries(), *other_queries()]
ANSWER_SECONDS_MAX = 30
#: What one rank on a CPU, for seconds and without a fault, has not; and other exporters' metrics.
NOT_LIVE = {
    *foreign.METRICS,
    *(metric.full_name for metric in state.METRICS),
    *(
        f"lmtraining_{name}"
        for name in (
            "checkpoint_cost_seconds",
            "checkpoint_interval_seconds",
            "checkpoint_load_seconds",
            "mfu_ratio",
            "noise_scale_tokens",
            "rank_score",
            "validation_accuracy",
            "validation_f1",
        )
    ),
    "lmtraining_operator_reconcile_errors_total",
    "lmtraining_operator_job_restarts_total",
}


def busy_operator() -> Metrics:
    """The registry of an operator that works: each scrape finds more done."""
    metrics = Metrics("9.9.9")
    metrics.leader.set(1)

    def states() -> dict[str, int]:
        metrics.reconcile_seconds.observe(0.02)
        metrics.report_pulls.labels("ok").inc()
        metrics.count_answer("GET", "Pod", 200, 0.02)
        metrics.count_milestones(
            Milestones(queue_seconds=2.0, start_seconds=3.0, recovery_seconds=4.0)
        )
        return {"Training": 1}

    metrics.show_jobs(states, oldest_unstarted_seconds=lambda: 0.0)
    return metrics


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Over a run that goes on meanwhile."""
    folder = tmp_path_factory.mktemp("boards")
    job = spec(corpus(folder / "text"), ranksPerReplica=1)
    job["training"]["budget"] = {"steps": 1_000_000}
    pod = Pod(folder, None, job)
    exporter, thread = start_http_server(0, "127.0.0.1", registry=busy_operator().registry)
    targets = (
        Target(f"{pod.address}:{pod.port}", {"namespace": "tests", "pod": pod.name}),
        Target(f"127.0.0.1:{exporter.server_port}", {"namespace": "live", "pod": "operator-9"}),
    )
    history = openmetrics.history(time.time())
    with pods(pod), serving(folder, targets=targets, rules=RULES, samples=history) as server:
        pod.intend()
        until(lambda: has_seen_a_run(server), "checkpoints and validations in Prometheus")
        yield server
        pod.process.kill()
        exporter.shutdown()
        thread.join()


def has_seen_a_run(server: Server) -> bool:
    job = '{job_name="job"}'
    wanted = f"count_over_time(lmtraining_checkpoint_step{job}[1m]) > 5"
    return bool(server.query(wanted) and server.query(f"lmtraining_validation_loss{job}"))


def missing(server: Server, query: str) -> str:
    """What is wrong with its answer; empty where it has a number."""
    values = [float(series["value"][1]) for series in server.query(query)]
    if not values:
        return f"no data: {query}"
    return "" if any(map(math.isfinite, values)) else f"{values}: {query}"


def test_every_query_of_a_board_has_an_answer_over_a_history(prometheus: Server) -> None:
    wrong = {
        f"{query.board}: {query.panel}": trouble
        for query in QUERIES
        if (trouble := missing(prometheus, query.with_values(HISTORY)))
    }
    assert wrong == {}
    assert missing(prometheus, "lmtraining_no_such_metric") == "no data: lmtraining_no_such_metric"


def test_every_panel_that_a_real_run_can_fill_is_filled(prometheus: Server) -> None:
    asked = [q for q in panel_queries() if not NOT_LIVE & set(names_in(q.expr).metrics)]
    assert len(asked) > 50
    for query in asked:
        expr = query.with_values(LIVE)
        until(lambda expr=expr: not missing(prometheus, expr), expr, ANSWER_SECONDS_MAX)


def test_prometheus_evaluates_every_alert_and_finds_what_it_looks_at(prometheus: Server) -> None:
    def evaluated() -> list[dict[str, str]] | None:
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    health = {
        rule["name"]: (rule["health"], rule.get("lastError")) for rule in until(evaluated, "rules")
    }
    assert health == {alert.name: ("ok", None) for alert in ALERTS}
    selectors = {
        found[0]
        for alert in ALERTS
        for found in re.finditer(
            r"\b(?:lmtraining|DCGM|kube|kubelet)_\w+(?:\{[^}]*\})?", alert.expr
        )
    }
    assert len(selectors) > len(ALERTS)
    assert {trouble for one in selectors if (trouble := missing(prometheus, one))} == set()
