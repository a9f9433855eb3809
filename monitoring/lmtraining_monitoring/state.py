"""What kube-state-metrics shows of a job from its status: there when the operator is not.

Promise: each series is a field of the status that the CRD has, named and typed here once; the
configuration, the page and the test against a real kube-state-metrics are made from it. No label
holds a message, a URI or anything else that a person has written (P11).
Trap avoided: a state that the operator alone exports is gone with the operator, just when somebody
asks for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml

from lmtraining_api import names

PREFIX: Final = "lmtraining_job"
#: Of every series.
JOB_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "job_name": ("metadata", "name"),
    "job_namespace": ("metadata", "namespace"),
}
#: A job that has not ended has no time of its end: nothing to be logged at each scrape.
LOG_LEVEL_OF_ABSENCE: Final = 5
HEADER: Final = (
    "# Made by `make monitoring`. Do not edit. For --custom-resource-state-config-file of\n"
    "# kube-state-metrics, which needs to list and watch lmtrainingjobs of lmtraining.dev.\n"
)
PAGE: Final = """<!-- Made by `make monitoring` from the registry in the code. Do not edit. -->
# Job state, by kube-state-metrics

These come from the status of each job, by kube-state-metrics and not by the operator, so they are
there while it is down. How to switch them on: [observability](observability.md). Every series has
the labels `job_name` and `job_namespace`.

| Name | Field | Labels | Meaning |
|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class StateMetric:
    """One metric of kube-state-metrics."""

    name: str
    kind: Literal["Gauge", "Info"]
    path: tuple[str, ...]
    """Into the job. A time is a number of seconds."""
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Below the path."""
    key_label: str = ""
    """The label that holds the key, where the path leads to a map."""

    @property
    def full_name(self) -> str:
        return f"{PREFIX}_{self.name}"

    @property
    def label_names(self) -> frozenset[str]:
        key = {self.key_label} if self.key_label else set()
        return frozenset({*JOB_LABELS, *self.labels, *key})

    def entry(self) -> dict[str, Any]:
        """As kube-state-metrics reads it."""
        each: dict[str, Any] = {"path": list(self.path)}
        if self.key_label:
            each["labelFromKey"] = self.key_label
        if self.labels:
            each["labelsFromPath"] = {name: list(path) for name, path in self.labels.items()}
        return {
            "name": self.name,
            "help": self.help,
            "each": {"type": self.kind, self.kind.lower(): each},
        }


def _figure(name: str, *path: str, text: str) -> StateMetric:
    return StateMetric(name=name, kind="Gauge", path=path, help=text)


METRICS: Final = (
    StateMetric(
        name="condition",
        kind="Info",
        path=("status", "conditions"),
        labels={"type": ("type",), "status": ("status",), "reason": ("reason",)},
        help="1 for each condition as it is; the reason of Succeeded is the state of the job.",
    ),
    _figure("created", "metadata", "creationTimestamp", text="When the job was made."),
    _figure("generation", "metadata", "generation", text="Version of the wish."),
    _figure(
        "observed_generation",
        "status",
        "observedGeneration",
        text="Version of the wish that the operator has seen; behind while it is down.",
    ),
    _figure("started", "status", "startTime", text="When the job was accepted."),
    _figure("first_placed", "status", "firstPlacedTime", text="When all pods first had a node."),
    _figure("first_run", "status", "firstRunTime", text="When all pods first ran."),
    _figure("completed", "status", "completionTime", text="When the job ended."),
    _figure("attempts", "status", "attempt", text="Gangs of pods so far."),
    _figure("restarts", "status", "restarts", "total", text="New attempts and replaced pods."),
    StateMetric(
        name="restarts_by_class",
        kind="Gauge",
        path=("status", "restarts", "byReason"),
        key_label="failure_class",
        help="The same by the class of the failure.",
    ),
    _figure("last_step", "status", "progress", "step", text="Step, as of the last report."),
    _figure("last_step_budget", "status", "progress", "totalSteps", text="Steps of the budget."),
    _figure("reported", "status", "progress", "reportTime", text="When the job last reported."),
    _figure(
        "saved_step", "status", "checkpoint", "lastStep", text="Step of the newest checkpoint."
    ),
    _figure("saved", "status", "checkpoint", "lastTime", text="When it was published."),
)


def config() -> dict[str, Any]:
    """The document of kube-state-metrics."""
    return {
        "kind": "CustomResourceStateMetrics",
        "spec": {
            "resources": [
                {
                    "groupVersionKind": {
                        "group": names.GROUP,
                        "version": names.VERSION,
                        "kind": names.KIND,
                    },
                    "resourcePlural": names.PLURAL,
                    "metricNamePrefix": PREFIX,
                    "errorLogV": LOG_LEVEL_OF_ABSENCE,
                    "labelsFromPath": {name: list(path) for name, path in JOB_LABELS.items()},
                    "metrics": [metric.entry() for metric in METRICS],
                }
            ]
        },
    }


def rendered() -> str:
    """The file that the chart ships."""
    return HEADER + yaml.safe_dump(config(), sort_keys=False, width=100)


def page() -> str:
    """docs/state-metrics.md."""
    rows = [
        f"| `{metric.full_name}` | `{'.'.join(metric.path)}` "
        f"| {', '.join(f'`{name}`' for name in sorted(metric.label_names - set(JOB_LABELS)))} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    return PAGE + "\n".join(rows) + "\n"
