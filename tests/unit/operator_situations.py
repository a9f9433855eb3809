"""Situations for the tables of the policy's tests."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from lmtraining_api.exits import ExitCode, FailureClass
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.records import ExitRecord, TrainerReport
from lmtraining_api.status import (
    Accepted,
    ConditionType,
    LastFailure,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan import (
    ContainerExit,
    Create,
    DeletePod,
    Observed,
    ObservedClaim,
    ObservedPod,
    ObservedReport,
    Plan,
    PublishEvent,
    plan,
)
from lmtraining_operator.plan.model import Object
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict, with_conditions
from tests.unit.operator_world import SETTINGS, START, job_body

NOW = START
UID = "0123456789abcdef-uid"


def job_object(name: str = "tiny", **changes: Any) -> Object:
    """A job as the API server gives it."""
    made = job_body(name, **changes)
    made["metadata"] |= {
        "uid": UID,
        "generation": 1,
        "creationTimestamp": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resourceVersion": "1",
    }
    return made


def running_gang(count: int, attempt: int = 1) -> tuple[ObservedPod, ...]:
    return tuple(
        ObservedPod(
            name=f"tiny-{attempt}-{replica}-0",
            uid=f"pod-{attempt}-{replica}",
            attempt=attempt,
            replica=replica,
            phase="Running",
            address=f"127.1.0.{replica + 1}",
            node="node-1",
        )
        for replica in range(count)
    )


def status_of(
    *,
    attempt: int = 1,
    complete: bool = True,
    state: Succeeded = Succeeded.STARTING,
    **changes: Any,
) -> LMTrainingJobStatus:
    """A status in the middle of an attempt."""
    placed = (
        Verdict("True", Scheduled.SCHEDULED) if complete else Verdict("False", Scheduled.STARTING)
    )
    value = {Succeeded.COMPLETED: "True", Succeeded.FAILED: "False", Succeeded.DIVERGED: "False"}
    return with_conditions(
        LMTrainingJobStatus(attempt=attempt, start_time=NOW, **changes),
        [
            Verdict(value.get(state, "Unknown"), state),  # type: ignore[arg-type]
            Verdict("True", Accepted.VALID),
            Verdict("False", Progressing.NOT_STARTED),
            placed,
        ],
        generation=1,
        now=NOW,
    )


def failure_status(
    failure_class: FailureClass = FailureClass.CRASH, attempt: int = 1, **changes: Any
) -> LastFailure:
    values: dict[str, Any] = {
        "failure_class": failure_class,
        "reason": str(failure_class),
        "message": "Pod tiny-1-0-0: told by the trainer",
        "attempt": attempt,
        "time": NOW,
    }
    return LastFailure.model_validate(values | changes)


def report_of(**changes: Any) -> TrainerReport:
    """A report of a training attempt."""
    values: dict[str, Any] = {
        "job_uid": UID,
        "attempt": 1,
        "round": 1,
        "state": "Training",
        "report_time": NOW,
        "step": 12,
        "total_steps": 20,
        "step_time": NOW,
        "first_step_time": NOW,
        "loss": 3.25,
        "tokens_per_second": 2048.0,
    }
    return TrainerReport.model_validate(values | changes)


def situation(
    *,
    pods: tuple[ObservedPod, ...] = (),
    complete: bool = True,
    status: LMTrainingJobStatus | None = None,
    report: TrainerReport | ObservedReport | None = None,
    now: datetime = NOW,
    spec: dict[str, Any] | None = None,
    **observed: Any,
) -> Situation:
    body = job_object(**(spec or {}))
    pulled = report if isinstance(report, ObservedReport) else ObservedReport(report=report)
    return Situation(
        job=LMTrainingJob.model_validate(body),
        created_at=body["metadata"]["creationTimestamp"],
        status=status or status_of(complete=complete),
        observed=Observed(pods=pods, report=pulled, **observed),
        now=now,
        settings=SETTINGS,
    )


def decide(
    status: LMTrainingJobStatus | None = None,
    *,
    job: Object | None = None,
    now: datetime = NOW,
    **observed: Any,
) -> Plan:
    """The plan for a job."""
    world = Observed(**observed)
    return plan(job or job_object(), status or LMTrainingJobStatus(), world, now, SETTINGS)


def all_children() -> dict[str, Any]:
    """What a job has beside its pods, as `decide` takes it."""
    claim = ObservedClaim(name="tiny-checkpoints", made_for_job="tiny")
    return {"config_map": True, "claim": claim, "network_policy": True}


def made(plan: Plan) -> list[str]:
    return [action.key for action in plan.actions if isinstance(action, Create)]


def deleted(plan: Plan) -> list[tuple[str, int | None]]:
    return [(a.name, a.grace_seconds) for a in plan.actions if isinstance(a, DeletePod)]


def events(plan: Plan) -> list[str]:
    return [action.reason for action in plan.actions if isinstance(action, PublishEvent)]


def reason(plan: Plan, kind: ConditionType = ConditionType.SUCCEEDED) -> str:
    condition = plan.status.condition(kind)
    assert condition is not None
    return condition.reason


def message(plan: Plan, kind: ConditionType = ConditionType.SUCCEEDED) -> str:
    condition = plan.status.condition(kind)
    assert condition is not None
    return condition.message


def ended(pod: ObservedPod, code: int, **record: Any) -> ObservedPod:
    phase = "Succeeded" if code == 0 else "Failed"
    text = ""
    if code == 0 or record:
        values = {
            "job_uid": UID,
            "attempt": pod.attempt,
            "round": 1,
            "replica": pod.replica,
            "exit_code": ExitCode(code),
            "reason": "Finished",
            "time": NOW,
        }
        text = ExitRecord.model_validate(values | record).model_dump_json(exclude_none=True)
    exit_ = ContainerExit(code=code, reason="Error", finished_at=NOW, termination_message=text)
    return replace(pod, phase=phase, exit=exit_)
