"""What one Prometheus metric is, for the registries of both halves.

Promise: name, kind, unit, labels, help and the number of series are data, so that the page of
metrics, boards and alerts are checked against what is really exported.
Trap avoided: a label without a limit, found out when the monitoring system is full.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram", "info"]

#: What the text format appends to the name of a histogram.
HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count", "_created")


@dataclass(frozen=True, kw_only=True)
class Label:
    """One label, and how many values it may take within one exporter."""

    help: str
    values_max: int


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """One metric. A counter's name ends in _total; a unit, where there is one, is in the name."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, without the infinite one."""

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}{suffix}" for suffix in HISTOGRAM_SUFFIXES)

    def series_max(self, labels: Mapping[str, Label]) -> int:
        """How many series one exporter can make of it."""
        series = 1
        for label in self.labels:
            series *= labels[label].values_max
        if self.kind == "histogram":  # buckets, the infinite one, sum, count, created
            series *= len(self.buckets) + 4
        elif self.kind == "counter":  # prometheus_client adds when it began
            series *= 2
        return series
