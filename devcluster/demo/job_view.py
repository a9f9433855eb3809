"""What the demo reads out of a job's status.

Promise: the demo sees what a user sees, `kubectl get lmtj -o json`, and nothing else.
"""

from dataclasses import dataclass, field
from typing import Any

from lmtraining_api import ConditionType, LMTrainingJobStatus


@dataclass(frozen=True)
class JobView:
    """A job at one moment."""

    name: str
    status: LMTrainingJobStatus

    @classmethod
    def of(cls, job: dict[str, Any]) -> "JobView":
        status = LMTrainingJobStatus.model_validate(job.get("status") or {})
        return cls(job["metadata"]["name"], status)

    @property
    def state(self) -> str:
        summary = self.status.condition(ConditionType.SUCCEEDED)
        return summary.reason if summary else "Pending"

    @property
    def message(self) -> str:
        summary = self.status.condition(ConditionType.SUCCEEDED)
        return summary.message if summary else "waiting for the operator"

    @property
    def said(self) -> str:
        """The message without what stands before it already: beside the state, a message that
        begins with the trainer's own state, or names its attempt twice, says it again."""
        parts = [self.state]
        for part in self.message.split(": "):
            if not any(earlier.startswith(part) for earlier in parts):
                parts.append(part)
        return ": ".join(parts[1:])

    @property
    def steps(self) -> str:
        """Steps done of all steps; a dash before the trainer knows how many there are."""
        progress = self.status.progress
        return f"{progress.step}/{progress.total_steps}" if progress.total_steps else "–"

    @property
    def fraction(self) -> float:
        progress = self.status.progress
        return progress.step / progress.total_steps if progress.total_steps else 0.0


@dataclass
class LossCurve:
    """Training loss by step, as it appeared in status; a replayed step replaces its first value."""

    points: dict[int, float] = field(default_factory=dict)

    def add(self, view: JobView) -> None:
        if view.status.metrics.loss:
            self.points[view.status.progress.step] = float(view.status.metrics.loss)
