"""The facts of one pass under names that the policy uses.

Promise: a question that several policies ask is answered in one place.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from lmtraining_api.job import LMTrainingJob, LMTrainingJobSpec
from lmtraining_api.records import TrainerReport, gang_digest
from lmtraining_api.status import Condition, ConditionType, LastFailure, LMTrainingJobStatus
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
        return {self.name_of(replica): replica for replica in range(self.spec.workers.replicas)}

    def name_of(self, replica: int) -> str:
        """The name of the present pod of a replica."""
        replaced = self.status.replaced_pods.get(str(replica), 0)
        return names.pod_name(self.job, self.attempt, replica, replaced)

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
        """Pods of the newest failed attempt, or the newest replaced one, that stay for their
        logs."""
        found = [pod for pod in self.observed.pods if pod.name not in self.expected]
        return tuple(pod for pod in found if attempts.is_kept(pod, self.status))

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
    def report_from(self) -> str:
        """The address that is asked how it goes; empty while there is none."""
        lead = self.lead
        return lead.address if lead is not None and lead.phase == "Running" else ""

    @property
    def gang_runs(self) -> bool:
        """True when every pod of the attempt runs at an address."""
        return not self.missing and all(pod.has_started for pod in self.gang)

    @property
    def gang_is_placed(self) -> bool:
        """True when every pod of the attempt has a node."""
        return not self.missing and all(pod.node for pod in self.gang)

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
        """True when this attempt, or a pod of it, is the answer to a failure."""
        failure = self.status.last_failure
        if failure is None:
            return False
        # One that was mended by another pod is not what ended its attempt.
        ended_the_last = failure.attempt == self.attempt - 1 and not failure.replaced_by
        return ended_the_last or self.replaced is not None

    @property
    def replaced(self) -> LastFailure | None:
        """The newest failure of this attempt, where it was answered by another pod."""
        failure = self.status.last_failure
        if failure is None or failure.attempt != self.attempt or not failure.replaced_by:
            return None
        return failure

    @property
    def is_replacing(self) -> bool:
        """True while the attempt waits for a pod in the place of a lost one."""
        return self.replaced is not None and not self.gang_was_complete

    @property
    def awaits_gang(self) -> bool:
        """True until the lead says that it trains with the pods that are there now."""
        report = self.report
        present = gang_digest(pod.uid for pod in self.gang)
        is_of_another = report is not None and report.gang != present
        return self.is_replacing or (self.replaced is not None and is_of_another)

    @property
    def report(self) -> TrainerReport | None:
        """The newest report of this attempt, by its present lead."""
        observed, lead = self.observed.report, self.lead
        if observed.report is None or observed.report.attempt != self.attempt:
            return None
        is_of_another = lead is not None and lead.address not in ("", observed.address)
        return None if observed.address and is_of_another else observed.report

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
