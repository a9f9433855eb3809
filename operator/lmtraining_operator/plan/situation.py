"""The facts of one pass under names that the policy uses.

Promise: a question that several policies ask is answered in one place.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from lmtraining_api.job import LMTrainingJob, LMTrainingJobSpec
from lmtraining_api.records import TrainerReport
from lmtraining_api.status import Condition, ConditionType, LMTrainingJobStatus
from lmtraining_operator.plan import attempts, names
from lmtraining_operator.plan.model import Observed, ObservedPod, Settings
from lmtraining_operator.plan.verdicts import Verdict, with_conditions


@dataclass(frozen=True, kw_only=True)
class Situation:
    """An accepted job, what was last said about it, and the world."""

    job: LMTrainingJob
    created_at: str
    """metadata.creationTimestamp, as the API server spells it."""
    status: LMTrainingJobStatus
    observed: Observed
    now: datetime
    settings: Settings

    @property
    def spec(self) -> LMTrainingJobSpec:
        return self.job.spec

    @property
    def attempt(self) -> int:
        return self.status.attempt

    @cached_property
    def expected(self) -> dict[str, int]:
        """Pod name to replica: the gang of the attempt."""
        return {
            names.pod_name(self.job, self.attempt, replica): replica
            for replica in range(self.spec.workers.replicas)
        }

    @cached_property
    def gang(self) -> tuple[ObservedPod, ...]:
        """The pods of the attempt that exist, by replica."""
        found = [pod for pod in self.observed.pods if pod.name in self.expected]
        return tuple(sorted(found, key=lambda pod: pod.replica))

    @property
    def strays(self) -> tuple[ObservedPod, ...]:
        """Pods of this job that no longer belong to it."""
        return tuple(pod for pod in self.in_the_way if pod.name not in self.expected)

    @property
    def kept(self) -> tuple[ObservedPod, ...]:
        """Pods of the newest failed attempt that stay for their logs."""
        return tuple(pod for pod in self.observed.pods if attempts.is_kept(pod, self.status))

    @property
    def in_the_way(self) -> tuple[ObservedPod, ...]:
        """Pods that must be gone before the next attempt begins."""
        return attempts.in_the_way(self.observed.pods, self.status)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the pods of the attempt that do not exist."""
        present = {pod.name for pod in self.gang}
        return tuple(name for name in self.expected if name not in present)

    @property
    def lead(self) -> ObservedPod | None:
        return next((pod for pod in self.gang if pod.replica == 0), None)

    @property
    def gang_runs(self) -> bool:
        """True when every pod of the attempt runs at an address."""
        return not self.missing and all(pod.has_started for pod in self.gang)

    @property
    def gang_was_complete(self) -> bool:
        return attempts.gang_was_complete(self.status)

    @property
    def attempt_failed(self) -> bool:
        return attempts.has_failed(self.status)

    @property
    def attempt_was_suspended(self) -> bool:
        return attempts.was_suspended(self.status)

    @property
    def attempt_is_over(self) -> bool:
        return attempts.is_over(self.status)

    @property
    def follows_failure(self) -> bool:
        """True when this attempt is the answer to a failure."""
        failure = self.status.last_failure
        return failure is not None and failure.attempt == self.attempt - 1

    @property
    def report(self) -> TrainerReport | None:
        """The newest report of this attempt."""
        report = self.observed.report.report
        return report if report is not None and report.attempt == self.attempt else None

    def condition(self, kind: ConditionType) -> Condition | None:
        return self.status.condition(kind)

    def condition_is(self, kind: ConditionType, value: str) -> bool:
        condition = self.condition(kind)
        return condition is not None and condition.status == value

    def reason_is(self, kind: ConditionType, reason: str) -> bool:
        condition = self.condition(kind)
        return condition is not None and condition.reason == reason

    @property
    def trainer_image(self) -> str:
        """Image of all pods of all attempts: fixed in status when the job begins."""
        wanted = self.spec.workers.image or self.settings.trainer_image
        return self.status.trainer_image or wanted

    def having(self, status: LMTrainingJobStatus) -> "Situation":
        """The same situation after this has been said."""
        return replace(self, status=status)

    def with_status(self, **changes: Any) -> "Situation":
        """The same situation after these parts of status have been said."""
        return self.having(self.status.model_copy(update=changes))

    def saying(self, *verdicts: Verdict) -> "Situation":
        """The same situation after these conditions have been said."""
        generation = self.job.metadata.generation
        return self.having(
            with_conditions(self.status, verdicts, generation=generation, now=self.now)
        )
