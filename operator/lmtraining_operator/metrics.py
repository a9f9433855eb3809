"""The operator's own metrics.

Promise: names, labels and help are all here; no label takes a job's name, so their number is
bounded.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

PREFIX = "lmtraining_operator"
RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One registry per operator."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            f"{PREFIX}_reconcile_duration_seconds",
            "Time of one pass over one job, waiting excluded.",
            buckets=RECONCILE_BUCKETS,
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            f"{PREFIX}_reconcile_errors",
            "Passes that ended in an error, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.api_requests = Counter(
            f"{PREFIX}_api_requests",
            "Requests to the API server, by verb, kind and status code (0: no answer).",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self.report_pulls = Counter(
            f"{PREFIX}_report_pulls",
            "Reports asked for, by result: ok, failed.",
            ["result"],
            registry=self.registry,
        )
        self.loop_lag_seconds = Gauge(
            f"{PREFIX}_event_loop_lag_seconds",
            "How late the event loop ran a timer the last time.",
            registry=self.registry,
        )
        self.leader = Gauge(
            f"{PREFIX}_leader",
            "1 while this operator runs the jobs, 0 while it follows another.",
            registry=self.registry,
        )
        self.build = Info(f"{PREFIX}_build", "The running version.", registry=self.registry)
        self.build.info({"version": version})

    def count_answer(self, verb: str, kind: str, code: int) -> None:
        self.api_requests.labels(verb, kind, str(code)).inc()

    def show_jobs(self, states: Callable[[], Mapping[str, int]]) -> None:
        """Count the jobs by state when asked, and not before."""
        self.registry.register(_JobsByState(states))


class _JobsByState(Collector):
    def __init__(self, states: Callable[[], Mapping[str, int]]) -> None:
        self._states = states

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            f"{PREFIX}_jobs",
            "Jobs known, by state: the reason of their condition Succeeded.",
            labels=["state"],
        )
        for state, count in sorted(self._states().items()):
            family.add_metric([state], count)
        yield family
