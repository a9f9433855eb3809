"""Which pods stay for their logs when an attempt has failed, and which are in the way?"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import FailureClass
from lmtraining_api.status import ConditionType, Scheduled, Succeeded
from lmtraining_operator.plan import ObservedPod, Refusal
from lmtraining_operator.plan.attempts import in_the_way, may_make
from lmtraining_operator.plan.gang import BROKEN_GANG_GRACE_SECONDS, ENDING_SECONDS_MAX
from tests.unit.operator_situations import (
    NOW,
    decide,
    deleted,
    ended,
    failure_status,
    job_object,
    made,
    message,
    reason,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit

GANG = running_gang(2)
LEAD, PEER = GANG
CRASHED = ended(PEER, 89)
ENDED = (ended(LEAD, 84), CRASHED)
FAILED = status_of(complete=False, last_failure=failure_status(pod=PEER.name))


@pytest.mark.parametrize(
    ("pod", "stays"),
    [
        (CRASHED, True),
        (replace(PEER, phase="Failed"), False),  # its node was lost: nobody saw how it ended
        (replace(CRASHED, phase="Running"), False),  # something of it may still run
        (replace(CRASHED, is_deleting=True), False),
        (replace(CRASHED, attempt=2), False),
        (PEER, False),
    ],
)
def test_only_a_pod_that_has_surely_ended_stays(pod: ObservedPod, stays: bool) -> None:
    """P1: all that could still write must be gone before the next attempt."""
    assert in_the_way((pod,), FAILED) == (() if stays else (pod,))


def test_next_attempt_runs_beside_the_ended_pods_of_the_failed_one() -> None:
    """P1: with their logs, and not before the pods that ran are gone."""
    plan = decide(status_of(state=Succeeded.TRAINING), pods=(LEAD, CRASHED))
    assert deleted(plan) == [(LEAD.name, BROKEN_GANG_GRACE_SECONDS)]
    leaving = replace(LEAD, is_deleting=True)
    later = NOW + timedelta(minutes=1)
    plan = decide(plan.status, pods=(leaving, CRASHED), now=later)
    assert (plan.status.attempt, plan.actions) == (1, ())
    assert LEAD.name in message(plan)
    assert "more" not in message(plan), "the ended pod is not waited for"

    plan = decide(plan.status, pods=(CRASHED,), now=later)
    assert plan.status.attempt == 2
    assert "Pod/tiny-2-0-0" in made(plan)
    assert deleted(plan) == []
    gang = running_gang(2, attempt=2)
    plan = decide(plan.status, pods=(CRASHED, *gang), now=later)
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.SCHEDULED
    assert deleted(plan) == []


def test_failure_names_the_command_that_shows_the_log_of_a_pod_that_stays() -> None:
    failure = decide(status_of(), pods=(LEAD, CRASHED)).status.last_failure
    assert failure is not None
    assert failure.message.endswith("kubectl logs -n team tiny-1-1-0")
    failure = decide(status_of(), pods=(LEAD, replace(CRASHED, is_deleting=True))).status
    assert "kubectl logs" not in str(failure.last_failure)
    lost = decide(status_of(), pods=(LEAD,)).status.last_failure
    assert lost is not None
    assert lost.failure_class is FailureClass.POD_LOST
    assert "log" not in lost.message


def test_only_the_newest_failed_attempt_keeps_its_pods() -> None:
    running = status_of(attempt=2, last_failure=failure_status())
    lead, peer = running_gang(2, attempt=2)
    plan = decide(running, pods=(CRASHED, lead, ended(peer, 89)))
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.attempt == 2
    assert [name for name, _ in deleted(plan)] == [CRASHED.name, lead.name]


def test_pod_that_is_about_to_end_is_given_a_moment() -> None:
    """The kubelet calls it Running a little longer; beside a sidecar it does so for ever."""
    just_failed = replace(CRASHED, phase="Running")
    plan = decide(status_of(), pods=(LEAD, just_failed))
    assert [name for name, _ in deleted(plan)] == [LEAD.name]
    plan = decide(plan.status, pods=(just_failed,))
    assert (plan.status.attempt, deleted(plan)) == (1, [])
    late = NOW + timedelta(seconds=ENDING_SECONDS_MAX)
    plan = decide(plan.status, pods=(just_failed,), now=late)
    assert (plan.status.attempt, len(deleted(plan))) == (1, 1)


def test_failure_is_never_in_the_future() -> None:
    """A node whose clock is ahead would keep such a pod waiting."""
    ahead = replace(CRASHED, exit=replace(CRASHED.exit, finished_at=NOW + timedelta(hours=1)))  # type: ignore[type-var]
    failure = decide(status_of(), pods=(LEAD, ahead)).status.last_failure
    assert failure is not None
    assert failure.time == NOW


@pytest.mark.parametrize("readable", [True, False])
def test_pods_that_stay_do_not_hold_up_suspend(readable: bool) -> None:
    job = job_object(suspend=True) if readable else job_object(suspend=True, elastic="x")
    running = status_of(attempt=2, last_failure=failure_status())
    plan = decide(running, job=job, pods=(CRASHED, *running_gang(2, attempt=2)))
    assert [name for name, _ in deleted(plan)] == ["tiny-2-0-0", "tiny-2-1-0"]
    assert message(plan).startswith("2 pods")
    plan = decide(plan.status, job=job, pods=(CRASHED,))
    assert (reason(plan), plan.actions[:-1]) == ("Suspended", ())
    assert decide(plan.status, pods=(CRASHED,)).status.attempt == 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("exceeded quota: team, requested: count/pods=1", [CRASHED.name]),
        ("exceeded quota: team, requested: pods=1", []),
    ],
)
def test_quota_that_counts_ended_pods_is_given_room(text: str, names: list[str]) -> None:
    """P12: a log never keeps a job from going on."""
    refused = Refusal(kind="Pod", name="tiny-2-0-0", code=403, message=text, count=1, time=NOW)
    status = status_of(attempt=2, complete=False, last_failure=failure_status())
    plan = decide(status, pods=(CRASHED,), refusals={refused.key: refused})
    assert [name for name, _ in deleted(plan)] == names


@pytest.mark.parametrize(
    ("status", "suspend", "pods", "expected"),
    [
        ({"attempt": 0, "complete": False}, False, (), True),
        ({"complete": False}, False, GANG, True),
        ({"complete": True}, False, GANG, False),
        ({"complete": True}, False, (), False),
        ({"complete": False}, True, (), False),
        ({"complete": True, "state": Succeeded.COMPLETED}, False, (), False),
        ({"complete": False, "last_failure": failure_status()}, False, GANG, False),
        ({"complete": False, "last_failure": failure_status()}, False, (), True),
        ({"complete": False, "last_failure": failure_status()}, False, ENDED, True),
    ],
)
def test_children_are_read_only_when_some_may_be_made(
    status: dict[str, Any], suspend: bool, pods: tuple[ObservedPod, ...], expected: bool
) -> None:
    """A thousand running, suspended or ended jobs are two requests each."""
    job = job_object(suspend=suspend)
    assert may_make(job, status_of(**status), pods) is expected


def test_a_deleted_pod_that_saved_first_was_no_loss() -> None:
    """It is seen to go before it has ended; what it says in the end is told, and counted, then."""
    going = replace(PEER, is_deleting=True)
    status = decide(status_of(state=Succeeded.TRAINING), pods=(LEAD, going)).status
    assert status.last_failure is not None
    assert status.last_failure.failure_class is FailureClass.POD_LOST
    killed = decide(status, pods=(LEAD, ended(going, 137))).status
    assert killed.last_failure == status.last_failure, "that one saved nothing"
    told = {"failure_class": FailureClass.DISRUPTION, "reason": "Preempted", "step": 17}
    saved = replace(ended(going, 80, **told), is_deleting=True)
    plan = decide(status, pods=(LEAD, saved))
    failure = plan.status.last_failure
    assert failure is not None
    assert (failure.failure_class, failure.reason) == (FailureClass.DISRUPTION, "Preempted")
    assert (failure.step, failure.exit_code, failure.attempt) == (17, 80, 1)
    assert plan.status.restarts.by_reason == {FailureClass.DISRUPTION: 1}
    assert (plan.status.restarts.total, plan.status.restarts.counted) == (1, 0)
    again = decide(plan.status, pods=(LEAD, saved))
    assert (again.status.last_failure, again.status.restarts) == (failure, plan.status.restarts)
