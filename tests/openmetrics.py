"""Two hours of every metric that the registries name, for Prometheus to have had from the start.

Made from the registries alone: a query that names something else finds nothing here.
"""

from collections.abc import Iterator
from itertools import product

from lmtraining_api.report_parts import TimeAccounts
from lmtraining_api.status import Succeeded
from lmtraining_monitoring import foreign, state
from lmtraining_operator import metrics as operator
from lmtraining_trainer import metrics as trainer

SECONDS = 7200
STEP_SECONDS = 60
NAMESPACE, JOB, POD = "filled", "history", "history-1-0-0"
OPERATORS = "lmtraining-system"

#: Values of labels, where a query asks for some of them.
VALUES: dict[str, tuple[str, ...]] = {
    "cause": tuple(TimeAccounts.model_fields),
    "code": ("200", "503"),
    "failure_class": ("Crash", "PodLost"),
    "kind": ("Pod",),
    "status": ("Unknown",),
    "type": ("Succeeded",),
    "rank": ("0", "1"),
    "reason": ("Conflict",),
    "result": ("ok", "failed"),
    "state": tuple(dict.fromkeys(["Training", "Evaluating", *map(str, Succeeded)])),
    "verb": ("GET", "PATCH"),
    "version": ("1.2.3",),
    "job_name": (JOB,),
    "job_namespace": (NAMESPACE,),
}
#: What is 1, and not a value that grows.
FLAGS = ("_info", "_leader", "_state", "_attempt", "_stable", "_is_finite")


def history(now: float) -> str:
    """The whole text. Whatever counts grows; other values do as well, if slowly."""
    times = [now - SECONDS + n * STEP_SECONDS for n in range(SECONDS // STEP_SECONDS + 1)]
    lines = [
        f"{series} {_value(series, n, time):.6g} {time:.3f}"
        if "timestamp" not in series
        else f"{series} {time - 30:.3f} {time:.3f}"
        for series in _series()
        for n, time in enumerate(times)
    ]
    return "\n".join([*lines, "# EOF\n"])


def _value(series: str, number: int, time: float) -> float:
    name = series.partition("{")[0]
    if name.endswith(FLAGS):
        return 1.0
    if 'le="' in series:  # the buckets of a histogram are cumulative
        return number * (1.0 + _limit(series))
    return float(number + 1)


def _limit(series: str) -> float:
    limit = series.partition('le="')[2].partition('"')[0]
    return 1000.0 if limit == "+Inf" else min(float(limit), 900.0)


def _series() -> Iterator[str]:
    in_operator = {"namespace": OPERATORS, "pod": "operator-1"}
    for metric in operator.METRICS:
        for name in metric.sample_names:
            more = {"le": (*map(str, metric.buckets), "+Inf")} if name.endswith("_bucket") else {}
            yield from _combined(name, metric.labels, in_operator, more)
    in_trainer = {"namespace": NAMESPACE, "pod": POD}
    for definition in trainer.METRICS:
        labels = (*trainer.COMMON_LABELS, *definition.labels)
        yield from _combined(definition.name, labels, in_trainer, {})
    for name in sorted(foreign.METRICS):
        yield from _foreign(name)
    for state_metric in state.METRICS:
        yield from _of_state(state_metric)


def _combined(
    name: str, labels: tuple[str, ...], fixed: dict[str, str], more: dict[str, tuple[str, ...]]
) -> Iterator[str]:
    choices = {label: VALUES[label] for label in labels} | more
    for values in product(*choices.values()):
        yield _named(name, {**fixed, **dict(zip(choices, values, strict=True))})


def _foreign(name: str) -> Iterator[str]:
    if name.startswith("DCGM_"):  # the scraper of one GPU honours labels, that of the other not
        device = {"modelName": "H100", "Hostname": "w1"}
        yield _named(name, {**device, "gpu": "0", "namespace": NAMESPACE, "pod": POD})
        exporter = {"namespace": "gpus", "pod": "exporter-1"}
        holder = {"exported_namespace": NAMESPACE, "exported_pod": POD}
        yield _named(name, {**device, "gpu": "1", **exporter, **holder})
    elif name.startswith("container_"):
        for namespace, pod, container in (
            (NAMESPACE, POD, "trainer"),
            (OPERATORS, "operator-1", "operator"),
        ):
            yield _named(name, {"namespace": namespace, "pod": pod, "container": container})
    elif name.startswith("kube"):
        claim = {"namespace": NAMESPACE, "persistentvolumeclaim": "history"}
        yield _named(name, {**claim, **({"pod": POD} if name.startswith("kube_pod") else {})})


def _of_state(metric: state.StateMetric) -> Iterator[str]:
    """Two jobs, of which one waits for its pods."""
    for job in (JOB, "waiting"):
        if job != JOB and metric.name == "first_run":
            continue
        labels = tuple(sorted(metric.label_names - {"job_name", "job_namespace"}))
        fixed = {"job_name": job, "job_namespace": NAMESPACE}
        yield from _combined(metric.full_name, labels, fixed, {})


def _named(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inner}}}"
