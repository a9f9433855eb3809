"""deadlines: who is late, what is saved before the end, and what taking it back does."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.records import CheckpointReport, FaultReport
from lmtraining_api.status import CheckpointStatus, ConditionType, LMTrainingJobStatus, Succeeded
from lmtraining_operator.plan import ObservedReport, Plan
from lmtraining_operator.plan.moments import LAST, later
from tests.unit.operator_situations import (
    NOW,
    decide,
    deleted,
    ended,
    events,
    job_object,
    message,
    reason,
    report_of,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

START_60 = job_object(deadlines={"startSeconds": 60})
RUN_60 = job_object(deadlines={"runSeconds": 60})
GANG = running_gang(2)
SAVED = CheckpointStatus(last_step=12, last_time=NOW, path="checkpoints/12")


def test_a_moment_at_the_end_of_the_calendar_has_none_after_it() -> None:
    """Of a status that somebody wrote by hand, or a clock gone mad."""
    assert later(NOW, 60) == NOW + timedelta(seconds=60)
    assert later(LAST, 60) == LAST


def late(seconds: float = 61, **observed: Any) -> dict[str, Any]:
    return {"now": NOW + timedelta(seconds=seconds), **observed}


def is_over(plan: Plan) -> bool:
    return plan.status.is_terminal


NOT_STEPPED = report_of(state="Preparing", message="tokenised 1 of 2 MB", first_step_time=None)
FAULT = FaultReport(
    round=1, failure_class="Crash", reason="Crash", step=3, has_stepped=True, time=NOW
)
STARTS: tuple[tuple[str, LMTrainingJobStatus, dict[str, Any], bool], ...] = (
    ("in time", status_of(), late(59, report=ObservedReport(report=NOT_STEPPED)), False),
    ("no step", status_of(), late(report=ObservedReport(report=NOT_STEPPED)), True),
    ("a step", status_of(), late(report=ObservedReport(report=report_of())), False),
    (
        "a step in the round before",
        status_of(),
        late(report=ObservedReport(report=NOT_STEPPED.model_copy(update={"last_fault": FAULT}))),
        False,
    ),
    ("a new operator, which has heard nothing yet", status_of(), late(), False),
    (
        "a lead that never answers",
        status_of(),
        late(122, report=ObservedReport(error="no connection", failing_since=NOW)),
        True,
    ),
    ("pods that find no place", status_of(complete=False), late(pods=()), True),
)


@pytest.mark.parametrize(("what", "status", "world", "ends"), STARTS, ids=[c[0] for c in STARTS])
def test_start_seconds_end_a_job_that_has_made_no_step(
    what: str, status: LMTrainingJobStatus, world: dict[str, Any], ends: bool
) -> None:
    world = {"pods": GANG} | world
    plan = decide(status, job=START_60, **world)
    assert is_over(plan) is ends, what
    assert not is_over(decide(status, **world)), "only where the job says so"
    if ends:
        assert reason(plan) == "DeadlineExceeded"
        assert message(plan).startswith("no optimizer step within deadlines.startSeconds 60")
        assert plan.status.completion_time == world["now"]
        assert [name for name, _ in deleted(plan)] == [pod.name for pod in world["pods"]]
        assert "DeadlineExceeded" in events(plan)


def test_the_end_tells_why_there_was_no_step() -> None:
    status = decide(status_of(complete=False), job=START_60, pods=GANG[:1]).status
    waiting = replace(GANG[0], phase="Pending", unschedulable_message="0/1 nodes: Insufficient cpu")
    status = decide(status, job=START_60, pods=(waiting, *GANG[1:])).status
    plan = decide(status, job=START_60, **late(pods=(waiting, *GANG[1:])))
    assert "no node takes pod tiny-1-0-0" in message(plan)


def running(**changes: Any) -> LMTrainingJobStatus:
    return status_of(state=Succeeded.TRAINING, first_run_time=NOW, checkpoint=SAVED, **changes)


def test_run_seconds_save_before_they_end_the_job() -> None:
    plan = decide(running(), job=RUN_60, **late(pods=GANG))
    assert deleted(plan) == [("tiny-1-0-0", None), ("tiny-1-1-0", None)], "their own grace"
    assert (reason(plan), is_over(plan)) == ("DeadlineExceeded", False)
    assert plan.report_from == GANG[0].address, "what it saves is heard of"
    assert reason(plan, ConditionType.SCHEDULED) == "Stopping"
    later = NOW + timedelta(seconds=62)
    saved = CheckpointReport(step=17, path="c/17", time=later, size_bytes=1, sha256="")
    leaving = tuple(replace(pod, is_deleting=True) for pod in GANG)
    left = (ended(leaving[0], 80, checkpoint=saved), leaving[1])
    plan = decide(plan.status, job=RUN_60, **late(63, pods=left))
    assert (is_over(plan), plan.status.last_failure) == (False, None)
    plan = decide(plan.status, job=RUN_60, **late(64))
    assert is_over(plan)
    assert message(plan).endswith("the newest checkpoint is of step 17")
    assert plan.status.restarts.total == 0
    again = decide(plan.status, job=job_object(), **late(65))
    assert again.status == plan.status, "P2: the end stays when the deadline is taken back"


def test_run_seconds_count_from_the_first_run() -> None:
    waiting = decide(status_of(complete=False), job=RUN_60, pods=GANG[:1])
    assert waiting.status.first_run_time is None
    status = decide(waiting.status, job=RUN_60, **late(500, pods=GANG)).status
    assert status.first_run_time == NOW + timedelta(seconds=500)
    plan = decide(status, job=RUN_60, **late(559.5, pods=GANG))
    assert (deleted(plan), plan.look_again_seconds) == ([], 0.5), "looked at when it is over"
    assert deleted(decide(status, job=RUN_60, **late(560, pods=GANG)))


def test_a_job_waits_for_room_until_all_of_its_pods_have_a_node() -> None:
    unplaced = tuple(replace(pod, phase="Pending", address="", node="") for pod in GANG)
    placed = tuple(replace(pod, phase="Pending", address="") for pod in GANG)
    status = decide(status_of(complete=False), job=RUN_60, pods=unplaced).status
    status = decide(status, job=RUN_60, **late(5, pods=(placed[0], *unplaced[1:]))).status
    assert status.first_placed_time is None
    status = decide(status, job=RUN_60, **late(10, pods=placed)).status
    assert status.first_placed_time == NOW + timedelta(seconds=10)
    status = decide(status, job=RUN_60, **late(20, pods=GANG)).status
    assert status.first_placed_time == NOW + timedelta(seconds=10), "the first time stays"
    older = running().model_copy(update={"first_placed_time": None})
    assert decide(older, job=RUN_60, **late(30, pods=GANG)).status.first_placed_time is None


def test_a_deadline_that_is_raised_while_the_pods_stop_is_kept_as_it_is_now() -> None:
    """P12."""
    status = decide(running(), job=RUN_60, **late(pods=GANG)).status
    longer = job_object(deadlines={"runSeconds": 600})
    status = decide(status, job=longer, **late(63, pods=GANG[:1])).status
    plan = decide(status, job=longer, **late(70))
    assert (plan.status.attempt, is_over(plan)) == (2, False)
    assert plan.status.restarts.total == 0


def test_pods_that_do_not_go_do_not_keep_the_job() -> None:
    status = decide(running(), job=RUN_60, **late(pods=GANG)).status
    stuck = tuple(replace(pod, is_deleting=True) for pod in GANG)
    assert not is_over(decide(status, job=RUN_60, **late(61 + 79, pods=stuck)))
    assert is_over(decide(status, job=RUN_60, **late(61 + 81, pods=stuck)))


def test_a_suspended_job_is_ended_only_once_it_is_to_go_on() -> None:
    suspended = job_object(suspend=True, deadlines={"runSeconds": 60})
    status = decide(running(), job=suspended, **late(pods=GANG)).status
    plan = decide(status, job=suspended, **late(70))
    assert (reason(plan), is_over(plan)) == ("Suspended", False)
    assert is_over(decide(plan.status, job=RUN_60, **late(71)))


def test_a_job_that_an_older_operator_ran_has_run_since_its_gang_was_complete() -> None:
    before = running().model_copy(update={"first_run_time": None})
    scheduled = before.condition(ConditionType.SCHEDULED)
    assert scheduled is not None
    status = decide(before, job=job_object(), **late(500, pods=GANG)).status
    assert status.first_run_time == scheduled.last_transition_time
