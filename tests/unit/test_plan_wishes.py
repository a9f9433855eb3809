"""What a person may ask of a job that runs: suspend, go on, delete, a spec that cannot be read."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.names import ANNOTATION_PAUSED
from lmtraining_api.records import CheckpointReport
from lmtraining_api.status import ConditionType, LMTrainingJobStatus, Succeeded
from lmtraining_operator.plan import ObservedReport, PublishEvent
from lmtraining_operator.plan.model import Object
from tests.unit.operator_situations import (
    NOW,
    decide,
    deleted,
    ended,
    events,
    job_object,
    made,
    message,
    reason,
    report_of,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

SUSPENDED_JOB = job_object(suspend=True)


def test_suspend_gives_the_whole_grace_and_is_no_failure() -> None:
    gang = running_gang(2)
    plan = decide(status_of(state=Succeeded.TRAINING), job=SUSPENDED_JOB, pods=gang)
    assert deleted(plan) == [("tiny-1-0-0", None), ("tiny-1-1-0", None)], "their own"
    assert reason(plan, ConditionType.SCHEDULED) == "Suspended"
    assert reason(plan) == "Suspending", "Suspended only when the pods are gone"
    leaving = tuple(replace(pod, is_deleting=True) for pod in gang)
    plan = decide(plan.status, job=SUSPENDED_JOB, pods=(ended(leaving[0], 80), leaving[1]))
    assert plan.status.last_failure is None
    plan = decide(plan.status, job=SUSPENDED_JOB)
    assert reason(plan) == "Suspended"
    assert made(plan) == []

    plan = decide(plan.status)
    assert plan.status.attempt == 2
    assert plan.status.restarts.total == 0


def test_suspend_taken_back_while_pods_stop() -> None:
    """P12, P1: the old gang still goes, and the next attempt waits for it."""
    gang = running_gang(2)
    status = decide(status_of(), job=SUSPENDED_JOB, pods=gang).status
    leaving = (replace(gang[0], is_deleting=True), gang[1])
    plan = decide(status, pods=leaving)
    assert plan.status.attempt == 1
    assert deleted(plan) == [("tiny-1-1-0", None)]
    assert plan.status.last_failure is None
    assert decide(plan.status).status.attempt == 2


def test_job_that_is_born_suspended_waits() -> None:
    plan = decide(job=SUSPENDED_JOB)
    assert (plan.status.attempt, reason(plan), made(plan)) == (0, "Suspended", [])
    assert decide(plan.status).status.attempt == 1


def test_job_that_is_being_deleted_makes_nothing() -> None:
    """P5."""
    job = job_object()
    job["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    assert decide(job=job).actions == ()
    assert decide(status_of(complete=False), job=job).actions == ()


def test_bad_spec_is_refused_and_taken_up_when_it_is_mended() -> None:
    """P12, also after a bad wish is taken back."""
    plan = decide(job=job_object(training__budget__steps=0))
    assert reason(plan, ConditionType.ACCEPTED) == "Invalid"
    assert made(plan) == []
    assert "training.budget.steps" in message(plan)
    plan = decide(plan.status)
    assert reason(plan, ConditionType.ACCEPTED) == "Valid"
    assert plan.status.attempt == 1


def test_spec_that_an_older_operator_cannot_read_stops_no_pod() -> None:
    """P10: a downgrade in the middle of a run."""
    plan = decide(
        status_of(state=Succeeded.TRAINING), job=job_object(elastic="x"), pods=running_gang(2)
    )
    assert reason(plan, ConditionType.ACCEPTED) == "Unsupported"
    assert (reason(plan), plan.status.attempt) == ("Training", 1)
    assert deleted(plan) == []
    assert reason(plan, ConditionType.PROGRESSING) == "Unknown", "P4: nobody watches"
    assert "spec.elastic" in message(plan, ConditionType.PROGRESSING)


def test_spec_that_cannot_be_read_is_suspended_all_the_same() -> None:
    job = job_object(elastic="x", suspend=True, recovery__graceSeconds="soon")
    plan = decide(status_of(state=Succeeded.TRAINING), job=job, pods=running_gang(2))
    assert deleted(plan) == [("tiny-1-0-0", None), ("tiny-1-1-0", None)]
    assert reason(plan) == "Suspending"
    plan = decide(plan.status, job=job)
    assert reason(plan) == "Suspended"
    assert decide(plan.status).status.attempt == 2, "and taken up when it can be read again"


def paused(value: str = "true", **changes: Any) -> Object:
    job = job_object(**changes)
    job["metadata"]["annotations"] = {ANNOTATION_PAUSED: value}
    return job


FAILED = (ended(running_gang(2)[0], 89), running_gang(2)[1])
PAUSES: tuple[tuple[str, LMTrainingJobStatus, dict[str, Any]], ...] = (
    ("a new job", LMTrainingJobStatus(), {}),
    ("a gang to be made", status_of(complete=False), {}),
    ("a gang to be told", status_of(complete=False), {"pods": running_gang(2)}),
    ("a pod that failed", status_of(), {"pods": FAILED}),
    ("a pod that is lost", status_of(), {"pods": running_gang(2)[:1]}),
)


@pytest.mark.parametrize(("what", "status", "world"), PAUSES, ids=[case[0] for case in PAUSES])
def test_a_paused_job_is_left_alone_and_says_so(
    what: str, status: LMTrainingJobStatus, world: dict[str, Any]
) -> None:
    """P4; what the operator would do otherwise is done once the annotation is gone (P12)."""
    plan = decide(status, job=paused(), **world)
    assert [a for a in plan.actions if not isinstance(a, PublishEvent)] == [], what
    assert (events(plan), plan.report_from) == (["Paused"], "")
    assert reason(plan, ConditionType.ACCEPTED) == "Paused"
    assert ANNOTATION_PAUSED in message(plan, ConditionType.ACCEPTED)
    assert reason(plan) == "Paused", "P4: STATE says so"
    assert plan.status.attempt == status.attempt
    assert plan.status.last_failure is None
    assert decide(plan.status, job=paused(), **world).status == plan.status, "written once"
    again = decide(plan.status, **world)
    assert reason(again, ConditionType.ACCEPTED) == "Valid"
    assert reason(again) != "Paused"
    assert [a for a in again.actions if not isinstance(a, PublishEvent)]
    if status.attempt:
        assert reason(plan, ConditionType.PROGRESSING) == "Unknown", "P4: nobody watches"


def test_a_paused_job_is_neither_suspended_nor_ended_nor_read() -> None:
    gang = running_gang(2)
    late = NOW + timedelta(days=1)
    wishes = {"suspend": True, "deadlines": {"startSeconds": 1}, "elastic": "unknown"}
    plan = decide(status_of(), job=paused(**wishes), pods=gang, now=late)
    assert (deleted(plan), plan.status.is_terminal) == ([], False)
    assert deleted(decide(status_of(), job=paused("false", **wishes), pods=gang, now=late))


def test_a_job_that_is_no_longer_paused_never_says_that_it_is() -> None:
    """P4: also where its pods are still stopping, or its spec cannot be read meanwhile."""
    gang = running_gang(2)
    told = decide(status_of(), job=SUSPENDED_JOB, pods=gang).status
    held = decide(told, job=paused(), pods=gang).status
    again = decide(held, pods=gang)
    assert (reason(again), message(again)) == (
        "Pending",
        "waiting until pod tiny-1-0-0 on node node-1 and 1 more is gone",
    )
    held = decide(status_of(), job=paused(), pods=gang).status
    unread = decide(held, job=job_object(elastic="x"), pods=gang)
    assert (reason(unread), "spec.elastic" in message(unread)) == ("Unreachable", True)


def test_a_paused_job_that_has_ended_needs_nobody() -> None:
    plan = decide(status_of(state=Succeeded.FAILED), job=paused(), pods=running_gang(1))
    assert (plan.actions, plan.is_done) == ((), True)


def test_save_at_the_end_of_a_suspended_attempt_is_in_status() -> None:
    """The last report may have been pulled before it."""
    gang = running_gang(2)
    status = decide(status_of(), job=SUSPENDED_JOB, pods=gang).status
    saved = CheckpointReport(step=15, path="c/15", time=NOW, size_bytes=1, sha256="")
    stale = ObservedReport(report=report_of(report_time=NOW - timedelta(seconds=2)))
    ends = (ended(gang[0], 80, checkpoint=saved), gang[1])
    status = decide(status, job=SUSPENDED_JOB, pods=ends, report=stale).status
    status = decide(status, job=SUSPENDED_JOB, report=stale).status
    assert status.checkpoint is not None
    assert status.checkpoint.last_step == 15
