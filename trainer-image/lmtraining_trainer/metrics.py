"""Every Prometheus metric of the trainer: its name, labels, unit and help, and nothing else.

Promise: boards, alerts and docs are checked against `METRICS`. A value that is not known is not
exported, rather than exported as 0 or NaN, so that no graph shows a loss of zero; what rank 0 alone
knows is exported by its pod alone, so that a sum over pods is right.
Trap avoided: metrics that are set from many places, and go stale in one of them. Each scrape is
computed from one snapshot of the report.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from lmtraining_api import State, TrainerReport
from lmtraining_api.metrics import Label, MetricDefinition
from lmtraining_api.records import RANKS_REPORTED_MAX
from lmtraining_api.report_parts import TimeAccounts

#: Labels of every metric. Prometheus adds pod and namespace of its own.
COMMON_LABELS = ("job_name", "job_namespace")


LABELS: Final[Mapping[str, Label]] = {
    "state": Label(help="What the pod is doing.", values_max=len(get_args(State))),
    "cause": Label(help="Where time went.", values_max=len(TimeAccounts.model_fields)),
    "rank": Label(help="A rank of this pod.", values_max=RANKS_REPORTED_MAX),
}


@dataclass(frozen=True, kw_only=True)
class TrainerMetric(MetricDefinition):
    """One metric of the trainer, and where its value is."""

    field: str = ""
    """The path to it in `TrainerReport`; empty where it has labels."""
    lead_only: bool = False
    """Exported only where rank 0 is."""


def _of_run(
    name: str, kind: Literal["gauge", "counter"], unit: str, field: str, text: str
) -> TrainerMetric:
    return TrainerMetric(
        name=f"lmtraining_{name}", kind=kind, unit=unit, field=field, help=text, lead_only=True
    )


METRICS: tuple[TrainerMetric, ...] = (
    _of_run("step", "gauge", "steps", "step", "Optimizer steps done, over all attempts."),
    _of_run("step_budget", "gauge", "steps", "total_steps", "Optimizer steps of the budget."),
    _of_run(
        "step_timestamp_seconds", "gauge", "seconds", "step_time", "When the newest step ended."
    ),
    _of_run("eta_seconds", "gauge", "seconds", "eta_seconds", "Time left at the present speed."),
    _of_run(
        "tokens_total",
        "counter",
        "tokens",
        "tokens",
        "Training tokens seen, over all attempts, without replays.",
    ),
    _of_run(
        "tokens_per_second",
        "gauge",
        "tokens per second",
        "tokens_per_second",
        "Training tokens per second of all ranks, over the last steps.",
    ),
    _of_run(
        "mfu_ratio",
        "gauge",
        "ratio",
        "mfu",
        "Model FLOP/s utilisation: share of the devices' dense peak that the model takes; absent "
        "where the peak is not known.",
    ),
    _of_run(
        "loss",
        "gauge",
        "nats per token",
        "loss",
        "Training loss of the newest step; absent while it is not finite.",
    ),
    _of_run(
        "loss_is_finite", "gauge", "boolean", "loss_is_finite", "1 while the newest loss is finite."
    ),
    _of_run("validation_loss", "gauge", "nats per token", "validation_loss", "Validation loss."),
    _of_run(
        "validation_accuracy",
        "gauge",
        "ratio",
        "validation_accuracy",
        "Share of the validation examples whose label was said rightly, where a task has labels.",
    ),
    _of_run(
        "validation_f1",
        "gauge",
        "ratio",
        "validation_f1",
        "Macro F1 of the validation examples, where a task has labels.",
    ),
    _of_run(
        "cut_examples",
        "gauge",
        "examples",
        "cut_examples",
        "Labelled examples that are longer than data.sequenceLength, and were cut.",
    ),
    _of_run(
        "validation_step", "gauge", "steps", "validation_step", "Step of the newest validation."
    ),
    _of_run(
        "unigram_loss",
        "gauge",
        "nats per token",
        "unigram_loss",
        "Validation loss of a unigram model: the baseline to beat.",
    ),
    _of_run(
        "gradient_norm",
        "gauge",
        "none",
        "gradient_norm",
        "Global gradient norm before clipping, newest step.",
    ),
    _of_run("learning_rate", "gauge", "none", "learning_rate", "Learning rate of the newest step."),
    _of_run("parameters", "gauge", "parameters", "parameters", "Trainable parameters."),
    _of_run(
        "zero_weight_share",
        "gauge",
        "ratio",
        "zero_share",
        "Share of the decaying weights that are zero, at the end of a sparse run.",
    ),
    _of_run(
        "skipped_steps_total",
        "counter",
        "steps",
        "skipped_steps",
        "Bad batches that were skipped, over all attempts.",
    ),
    _of_run(
        "clipped_steps_total",
        "counter",
        "steps",
        "clipped_steps",
        "Steps whose gradient was clipped below gradientClipNorm, over all attempts.",
    ),
    _of_run(
        "rewinds_total",
        "counter",
        "rewinds",
        "rewinds",
        "Rewinds to a healthy checkpoint, over all attempts.",
    ),
    _of_run(
        "learning_rate_scale",
        "gauge",
        "none",
        "rate_scale",
        "What rewinds have made of the learning rate, as a factor.",
    ),
    _of_run(
        "stable",
        "gauge",
        "boolean",
        "is_stable",
        "0 from a remedy until enough good steps have followed it.",
    ),
    _of_run(
        "update_ratio",
        "gauge",
        "none",
        "update_ratio",
        "Size of an update beside the weights', newest sampled step.",
    ),
    _of_run(
        "update_rms",
        "gauge",
        "none",
        "update_rms",
        "Root mean square of Adam's update before the learning rate, newest sampled step.",
    ),
    _of_run(
        "swallowed_share",
        "gauge",
        "none",
        "swallowed_share",
        "Share of the weights whose second moment has a root below Adam's epsilon.",
    ),
    _of_run(
        "attention_logit_bound",
        "gauge",
        "none",
        "attention_logit_bound",
        "No attention logit of the newest sampled step was larger.",
    ),
    _of_run(
        "activation_max",
        "gauge",
        "none",
        "activation_max",
        "Largest absolute value that a block gave to the next, newest sampled step.",
    ),
    _of_run(
        "noise_scale_tokens",
        "gauge",
        "tokens",
        "noise_scale_tokens",
        "Gradient noise scale: batches larger than this bring little.",
    ),
    _of_run(
        "checkpoint_healthy_step",
        "gauge",
        "steps",
        "healthy_step",
        "Step of the newest healthy checkpoint: where a rewind would go.",
    ),
    _of_run(
        "replayed_steps",
        "gauge",
        "steps",
        "replayed_steps",
        "Steps that an earlier attempt had done and this one did again.",
    ),
    _of_run(
        "checkpoint_load_seconds",
        "gauge",
        "seconds",
        "load_seconds",
        "Time to find, verify and load the checkpoint of this attempt.",
    ),
    _of_run(
        "checkpoint_step",
        "gauge",
        "steps",
        "checkpoint.step",
        "Step of the newest intact checkpoint.",
    ),
    _of_run(
        "checkpoint_timestamp_seconds",
        "gauge",
        "seconds",
        "checkpoint.time",
        "When the newest intact checkpoint was published.",
    ),
    _of_run(
        "checkpoint_size_bytes",
        "gauge",
        "bytes",
        "checkpoint.size_bytes",
        "Size of the newest intact checkpoint.",
    ),
    _of_run(
        "checkpoint_failing",
        "gauge",
        "boolean",
        "checkpoint_error",
        "1 while the newest save has failed.",
    ),
    _of_run(
        "checkpoint_interval_seconds",
        "gauge",
        "seconds",
        "checkpoint_interval.seconds",
        "From one save to the next, as the trainer has chosen; absent where everySteps is set.",
    ),
    _of_run(
        "checkpoint_cost_seconds",
        "gauge",
        "seconds",
        "checkpoint_interval.cost_seconds",
        "What a save takes from the loop, on average; absent where everySteps is set.",
    ),
    _of_run(
        "storage_is_full",
        "gauge",
        "boolean",
        "storage_is_full",
        "1 while the newest save has failed for want of room.",
    ),
    _of_run(
        "goodput_ratio",
        "gauge",
        "ratio",
        "accounts.goodput",
        "Share of the wall time since the run first started that went into steps of the model.",
    ),
    TrainerMetric(
        name="lmtraining_run_seconds",
        kind="gauge",
        unit="seconds",
        labels=("cause",),
        lead_only=True,
        help="Time since the run first started by cause, over all attempts; adds up to its wall "
        "time.",
    ),
    TrainerMetric(
        name="lmtraining_attempt",
        kind="gauge",
        unit="attempts",
        field="attempt",
        help="Number of the gang of pods.",
    ),
    TrainerMetric(
        name="lmtraining_round",
        kind="gauge",
        unit="rounds",
        field="round",
        help="Number of the start of the ranks within the attempt.",
    ),
    TrainerMetric(
        name="lmtraining_state",
        kind="gauge",
        unit="boolean",
        labels=("state",),
        help="1 for the state that this pod is in, 0 for the others.",
    ),
    TrainerMetric(
        name="lmtraining_state_seconds_total",
        kind="counter",
        unit="seconds",
        labels=("state",),
        help="Time by state since the supervisor of this pod started; adds up to its wall time.",
    ),
    TrainerMetric(
        name="lmtraining_rank_heartbeat_age_seconds",
        kind="gauge",
        unit="seconds",
        labels=("rank",),
        help="Time since the last sign of life of a rank of this pod.",
    ),
    TrainerMetric(
        name="lmtraining_rank_score",
        kind="gauge",
        unit="ratio",
        labels=("rank",),
        help="Seconds of the fastest rank for its own part of a step over those of a rank of this "
        "pod; 1 is the fastest.",
    ),
)

Sample = tuple[tuple[str, ...], float]


def samples(definition: TrainerMetric, report: TrainerReport) -> list[Sample]:
    """What `report` says of one metric: label values beyond the common ones, and the value."""
    if definition.labels:
        return _by_label(definition.name, report)
    value: Any = report
    for part in definition.field.split("."):
        value = None if value is None else getattr(value, part)
    return _of_value(value)


def _by_label(name: str, report: TrainerReport) -> list[Sample]:
    values: dict[str, Iterable[tuple[object, float]]] = {
        "lmtraining_state": ((state, state == report.state) for state in get_args(State)),
        "lmtraining_state_seconds_total": report.time_seconds.items(),
        "lmtraining_run_seconds": report.accounts or (),
        "lmtraining_rank_heartbeat_age_seconds": (
            (rank.rank, rank.heartbeat_age_seconds) for rank in report.ranks
        ),
        "lmtraining_rank_score": (
            (rank.rank, rank.score) for rank in report.ranks if rank.score is not None
        ),
    }
    return [((str(label),), float(value)) for label, value in values[name]]


def _of_value(value: float | datetime | str | None) -> list[Sample]:
    """Of a sentence that says what is wrong: whether there is one."""
    match value:
        case None:
            return []
        case datetime():
            return [((), value.timestamp())]
        case str():
            return [((), float(bool(value)))]
    return [((), float(value))]


@dataclass(frozen=True, kw_only=True, eq=False)  # a registry hashes its collectors
class _Scrape(Collector):
    report: TrainerReport
    leads: bool
    common: tuple[str, str]

    def collect(self) -> Iterator[Metric]:
        for definition in METRICS:
            if self.leads or not definition.lead_only:
                yield self._family(definition, samples(definition, self.report))

    def _family(self, definition: TrainerMetric, found: Iterable[Sample]) -> Metric:
        build = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
        labels = (*COMMON_LABELS, *definition.labels)
        family = build(definition.name, definition.help, labels=labels)
        for values, value in found:
            family.add_metric([*self.common, *values], value)
        return family


def exposition(report: TrainerReport, *, leads: bool, job_name: str, namespace: str) -> bytes:
    """One scrape, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(report=report, leads=leads, common=(job_name, namespace)))
    return generate_latest(registry)
