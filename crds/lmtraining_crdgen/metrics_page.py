"""docs/metrics.md: every metric of operator and trainer, made from their registries.

Promise: a name, label or limit on the page is what is exported. Trap avoided: a board that is
written from a page that nobody has brought up to date.
"""

from collections.abc import Mapping, Sequence

from lmtraining_api.metrics import Label, MetricDefinition
from lmtraining_operator import metrics as operator
from lmtraining_trainer import metrics as trainer

INTRODUCTION = """<!-- Made by `make crds` from the registries in the code. Do not edit. -->
# Metrics

Units are base units (seconds, bytes, tokens). A value that is not known is left out, so a gap in a
graph is a gap in what is known, and no graph shows a loss of zero. The series of one exporter are
bounded by the sums below, whatever runs and for however long. How to collect them, the boards and
the alerts: [observability](observability.md); what kube-state-metrics adds:
[job state](state-metrics.md).
"""
TRAINER = """## Trainer

Every pod of a job answers `GET /metrics` on its port `report`. Each series carries the labels
`{labels}`. Metrics marked *lead* come from the pod of rank 0 alone, so a sum over pods is right.
After a restart a counter goes on from what the run directory remembers.
"""
OPERATOR = """## Operator

Answered on the port `metrics` of the operator's pod. No label holds the name of a job.
"""


def rendered() -> str:
    """The whole file."""
    common = "`, `".join(trainer.COMMON_LABELS)
    leads = {metric.name for metric in trainer.METRICS if metric.lead_only}
    return "\n".join(
        [
            INTRODUCTION,
            TRAINER.format(labels=common),
            _table(trainer.METRICS, trainer.LABELS, leads),
            _labels(trainer.LABELS),
            OPERATOR,
            _table(operator.METRICS, operator.LABELS, set()),
            _labels(operator.LABELS).rstrip("\n") + "\n",
        ]
    )


def _table(
    metrics: Sequence[MetricDefinition], labels: Mapping[str, Label], leads: set[str]
) -> str:
    rows = [
        f"| `{metric.name}` | {metric.kind}{', *lead*' if metric.name in leads else ''} | "
        f"{metric.unit} | {', '.join(f'`{label}`' for label in metric.labels)} | "
        f"{metric.series_max(labels)} | {metric.help} |"
        for metric in metrics
    ]
    total = sum(metric.series_max(labels) for metric in metrics)
    head = [
        "| Name | Kind | Unit | Labels | Series, at most | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", f"Together at most {total} series for one exporter.", ""])


def _labels(labels: Mapping[str, Label]) -> str:
    rows = [f"| `{name}` | {label.values_max} | {label.help} |" for name, label in labels.items()]
    return "\n".join(["| Label | Values, at most | Meaning |", "|---|---|---|", *rows, ""])
