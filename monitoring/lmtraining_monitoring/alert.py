"""What one alert is.

Promise: each has a severity, a sentence of summary, one with the figures, and a runbook of its own
name in docs/runbooks. Critical is what loses work or leaves every job without help, and no more:
a person may be woken for it.
Trap avoided: an alert that names no job. All are kept by namespace and job, so that one route per
team is enough.
"""

from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

#: What tells one job from another, whatever its pods are called.
JOB = "namespace, job_namespace, job_name"
THE_JOB = "job {{ $labels.job_namespace }}/{{ $labels.job_name }}"
A_JOB = f"J{THE_JOB[1:]}"
RUNBOOKS = "docs/runbooks"

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert. Its expression holds while something is wrong."""

    name: str
    severity: Severity
    minutes: int
    """How long it must hold before anybody is told."""
    summary: str
    """The same for every job, so that alerts of one kind can be grouped by it."""
    description: str
    """With the job and the figures, as a Prometheus template."""
    expr: str

    @property
    def runbook(self) -> str:
        """Its page, from the root of the repository."""
        return f"{RUNBOOKS}/{self.name}.md"

    def rule(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": dedent(self.expr).strip() + "\n",
            "for": f"{self.minutes}m",
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": self.runbook,
            },
        }
