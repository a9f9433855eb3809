"""The operator's own metrics: every name, label, unit and help is data in `METRICS`.

Promise: no label takes a job's name, and each has a limit that is kept here, so the number of
series is bounded however many jobs there are.
Trap avoided: the reason of an error is a word of somebody else's; past its limit it is counted as
Other, and still counted.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lmtraining_api.exits import FailureClass
from lmtraining_api.metrics import Label, MetricDefinition
from lmtraining_api.status import Succeeded
from lmtraining_operator.milestones import Milestones

PREFIX = "lmtraining_operator"
OTHER = "Other"
REASONS_MAX = 64
CODES_MAX = 32

RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
API_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_BUCKETS = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
START_BUCKETS = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
RECOVERY_BUCKETS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

LABELS: Final[Mapping[str, Label]] = {
    "reason": Label(
        help=f"Reason of the API server, or class of the exception; past the limit {OTHER}.",
        values_max=REASONS_MAX + 1,
    ),
    "verb": Label(help="What was asked of the API server.", values_max=8),
    "kind": Label(help="Kind of object that was asked about.", values_max=8),
    "code": Label(
        help=f"HTTP status; 0 where there was no answer; past the limit {OTHER}.",
        values_max=CODES_MAX + 1,
    ),
    "result": Label(help="ok or failed.", values_max=2),
    "state": Label(help="Reason of the condition Succeeded.", values_max=len(Succeeded)),
    "failure_class": Label(
        help="Class of the failure, as in status.restarts.byReason.", values_max=len(FailureClass)
    ),
    "version": Label(help="Version of the package.", values_max=1),
}

RECONCILE_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_reconcile_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="Time of one pass over one job, waiting excluded.",
    buckets=RECONCILE_BUCKETS,
)
RECONCILE_ERRORS: Final = MetricDefinition(
    name=f"{PREFIX}_reconcile_errors_total",
    kind="counter",
    unit="passes",
    help="Passes that ended in an error, by reason.",
    labels=("reason",),
)
API_REQUESTS: Final = MetricDefinition(
    name=f"{PREFIX}_api_requests_total",
    kind="counter",
    unit="requests",
    help="Requests to the API server, by verb, kind and status code (0: no answer).",
    labels=("verb", "kind", "code"),
)
API_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_api_request_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="From a request to the API server until its answer, or until it is given up.",
    labels=("verb",),
    buckets=API_BUCKETS,
)
REPORT_PULLS: Final = MetricDefinition(
    name=f"{PREFIX}_report_pulls_total",
    kind="counter",
    unit="requests",
    help="Reports asked for, by result: ok, failed.",
    labels=("result",),
)
LOOP_LAG_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_event_loop_lag_seconds",
    kind="gauge",
    unit="seconds",
    help="How late the event loop ran a timer the last time.",
)
LEADER: Final = MetricDefinition(
    name=f"{PREFIX}_leader",
    kind="gauge",
    unit="boolean",
    help="1 while this operator runs the jobs, 0 while it follows another.",
)
JOBS: Final = MetricDefinition(
    name=f"{PREFIX}_jobs",
    kind="gauge",
    unit="jobs",
    help="Jobs known, by state: the reason of their condition Succeeded.",
    labels=("state",),
)
QUEUE_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_job_queue_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="From the acceptance of a job until all of its pods had a node for the first time: quota, "
    "queue, room.",
    buckets=QUEUE_BUCKETS,
)
START_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_job_start_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="From there until all of its pods ran for the first time: volumes, images, containers.",
    buckets=START_BUCKETS,
)
RECOVERY_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_job_recovery_duration_seconds",
    kind="histogram",
    unit="seconds",
    help="From a failure until the first optimizer step after it has ended.",
    buckets=RECOVERY_BUCKETS,
)
ENDS: Final = MetricDefinition(
    name=f"{PREFIX}_job_ends_total",
    kind="counter",
    unit="jobs",
    help="Jobs that have ended, by the state they ended in.",
    labels=("state",),
)
UNSTARTED_SECONDS: Final = MetricDefinition(
    name=f"{PREFIX}_oldest_unstarted_job_seconds",
    kind="gauge",
    unit="seconds",
    help="Time since the acceptance of the oldest job whose pods have never all run; 0 where there "
    "is none. A suspended job does not wait.",
)
RESTARTS: Final = MetricDefinition(
    name=f"{PREFIX}_job_restarts_total",
    kind="counter",
    unit="restarts",
    help="New attempts and replaced pods, by the class of the failure.",
    labels=("failure_class",),
)
BUILD: Final = MetricDefinition(
    name=f"{PREFIX}_build_info",
    kind="info",
    unit="none",
    help="The running version.",
    labels=("version",),
)
METRICS: Final = (
    RECONCILE_SECONDS,
    RECONCILE_ERRORS,
    API_REQUESTS,
    API_SECONDS,
    REPORT_PULLS,
    LOOP_LAG_SECONDS,
    LEADER,
    JOBS,
    UNSTARTED_SECONDS,
    ENDS,
    QUEUE_SECONDS,
    START_SECONDS,
    RECOVERY_SECONDS,
    RESTARTS,
    BUILD,
)


class Metrics:
    """One registry per operator."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = self._histogram(RECONCILE_SECONDS)
        self.report_pulls = self._counter(REPORT_PULLS)
        self.loop_lag_seconds = Gauge(
            LOOP_LAG_SECONDS.name, LOOP_LAG_SECONDS.help, registry=self.registry
        )
        self.leader = Gauge(LEADER.name, LEADER.help, registry=self.registry)
        self._reconcile_errors = self._counter(RECONCILE_ERRORS)
        self._api_requests = self._counter(API_REQUESTS)
        self._api_seconds = self._histogram(API_SECONDS)
        self._queue_seconds = self._histogram(QUEUE_SECONDS)
        self._start_seconds = self._histogram(START_SECONDS)
        self._recovery_seconds = self._histogram(RECOVERY_SECONDS)
        self._restarts = self._counter(RESTARTS)
        self._ends = self._counter(ENDS)
        for state in Succeeded:
            if state.is_terminal:  # from 0, or nobody sees the first one as an increase
                self._ends.labels(state)
        self._reasons = _Words(REASONS_MAX)
        self._codes = _Words(CODES_MAX)
        build = Info(BUILD.name.removesuffix("_info"), BUILD.help, registry=self.registry)
        build.info({"version": version})

    def count_answer(self, verb: str, kind: str, code: int, seconds: float) -> None:
        self._api_requests.labels(verb, kind, self._codes.bounded(str(code))).inc()
        self._api_seconds.labels(verb).observe(seconds)

    def count_error(self, reason: str) -> None:
        self._reconcile_errors.labels(self._reasons.bounded(reason or "Unknown")).inc()

    def count_milestones(self, reached: Milestones) -> None:
        """What one write of status has told for the first time."""
        if reached.queue_seconds is not None:
            self._queue_seconds.observe(reached.queue_seconds)
        if reached.start_seconds is not None:
            self._start_seconds.observe(reached.start_seconds)
        if reached.recovery_seconds is not None:
            self._recovery_seconds.observe(reached.recovery_seconds)
        for failure_class, restarts in reached.restarts.items():
            self._restarts.labels(failure_class).inc(restarts)
        if reached.end:
            self._ends.labels(reached.end).inc()

    def show_jobs(
        self,
        states: Callable[[], Mapping[str, int]],
        *,
        oldest_unstarted_seconds: Callable[[], float],
    ) -> None:
        """Look at the jobs when asked, and not before."""
        self.registry.register(_JobsByState(states))
        unstarted = Gauge(UNSTARTED_SECONDS.name, UNSTARTED_SECONDS.help, registry=self.registry)
        unstarted.set_function(oldest_unstarted_seconds)

    def _counter(self, definition: MetricDefinition) -> Counter:
        return Counter(definition.name, definition.help, definition.labels, registry=self.registry)

    def _histogram(self, definition: MetricDefinition) -> Histogram:
        return Histogram(
            definition.name,
            definition.help,
            definition.labels,
            buckets=definition.buckets,
            registry=self.registry,
        )


class _Words:
    """The first so many words; every later one is Other."""

    def __init__(self, words_max: int) -> None:
        self._words_max = words_max
        self._seen: set[str] = set()

    def bounded(self, word: str) -> str:
        if word in self._seen or len(self._seen) < self._words_max:
            self._seen.add(word)
            return word
        return OTHER


class _JobsByState(Collector):
    def __init__(self, states: Callable[[], Mapping[str, int]]) -> None:
        self._states = states

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(JOBS.name, JOBS.help, labels=JOBS.labels)
        for state, count in sorted(self._states().items()):
            family.add_metric([state], count)
        yield family
