"""What may change while ranks train: into every pod's intent, and back into status and events."""

from typing import Any

import pytest

from lmtraining_api.records import Intent
from lmtraining_api.status import LMTrainingJobStatus, Succeeded
from lmtraining_api.wishes import Applied, RollbackWish, Wishes
from lmtraining_operator.plan import ObservedReport, Plan, SetIntent
from tests.unit.operator_situations import (
    decide,
    deleted,
    ended,
    events,
    job_object,
    message,
    report_of,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

TRAINING = status_of(state=Succeeded.TRAINING)
WISHES: tuple[tuple[dict[str, Any], Wishes], ...] = (
    ({}, Wishes(generation=7, budget_steps=20)),
    ({"training__budget__steps": 30}, Wishes(generation=7, budget_steps=30)),
    (
        {"checkpoint__everySteps": 9},
        Wishes(generation=7, budget_steps=20, checkpoint_every_steps=9),
    ),
    (
        {"requests": {"checkpoint": "a"}},
        Wishes(generation=7, budget_steps=20, checkpoint="a"),
    ),
    (
        {"requests": {"rollback": {"name": "b", "toStep": 4}}},
        Wishes(generation=7, budget_steps=20, rollback=RollbackWish(name="b", to_step=4)),
    ),
)


@pytest.mark.parametrize(("changes", "wishes"), WISHES, ids=[str(c) for c, _ in WISHES])
def test_every_pod_is_told_and_none_is_restarted(changes: dict[str, Any], wishes: Wishes) -> None:
    job = job_object(**changes)
    job["metadata"]["generation"] = 7
    plan = decide(TRAINING, job=job, pods=running_gang(2))
    told = [action for action in plan.actions if isinstance(action, SetIntent)]
    assert [Intent.model_validate_json(one.intent).wishes for one in told] == [wishes] * 2
    assert (deleted(plan), plan.status.attempt) == ([], 1)


def answered(status: LMTrainingJobStatus, **applied: Any) -> Plan:
    report = ObservedReport(report=report_of(applied=Applied(**applied)))
    return decide(status, pods=running_gang(2), report=report)


def test_what_became_of_a_request_is_in_status_and_told_once() -> None:
    plan = answered(TRAINING, generation=2, checkpoint="a", checkpoint_step=12)
    assert plan.status.applied is not None
    assert (plan.status.applied.generation, plan.status.applied.checkpoint_step) == (2, 12)
    assert "CheckpointSaved" in events(plan)
    again = answered(plan.status, generation=2, checkpoint="a", checkpoint_step=12)
    assert "CheckpointSaved" not in events(again)
    refused = answered(plan.status, generation=3, checkpoint="a", rollback="b", refusal="no such")
    assert "RollbackRefused" in events(refused)
    assert refused.status.applied is not None
    assert (refused.status.applied.rollback_step, refused.status.applied.refusal) == (
        None,
        "no such",
    )
    silent = decide(refused.status, pods=running_gang(2))
    assert silent.status.applied == refused.status.applied, "a new operator has no report yet"


def test_a_budget_that_was_raised_too_late_is_told() -> None:
    """P4: the steps that were done, and not those that were wanted."""
    lead, peer = running_gang(2)
    longer = job_object(training__budget__steps=30)
    plan = decide(TRAINING, job=longer, pods=(ended(lead, 0, step=20), ended(peer, 0)))
    assert (plan.status.progress.step, plan.status.progress.total_steps) == (20, 20)
    assert "raised to 30 steps after its last step, 20" in message(plan)
    plan = decide(TRAINING, job=longer, pods=(ended(lead, 0, step=30), ended(peer, 0)))
    assert (plan.status.progress.step, "raised" in message(plan)) == (30, False)
