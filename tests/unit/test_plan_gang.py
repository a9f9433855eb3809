"""A gang that is not complete: what was refused, and what finds no place."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.status import ConditionType, LMTrainingJobStatus, Scheduled
from lmtraining_operator.plan import ObservedPod, Refusal, SetIntent
from lmtraining_operator.plan.attempts import OLD_READ_SECONDS_MAX
from lmtraining_operator.plan.decide import RESYNC_SECONDS
from lmtraining_operator.plan.gang import BROKEN_GANG_GRACE_SECONDS
from lmtraining_operator.plan.recovery import GANG_BACKOFF_SECONDS_MIN
from lmtraining_operator.plan.verdicts import Verdict, with_conditions
from tests.unit.operator_situations import (
    NOW,
    all_children,
    decide,
    deleted,
    ended,
    failure_status,
    made,
    message,
    reason,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("seconds", "again"), [(1.0, False), (2.0, True), (-3600.0, True)])
def test_refused_pod_is_tried_again_after_a_while(seconds: float, again: bool) -> None:
    """Also where the clock was set back meanwhile."""
    refused = Refusal(
        kind="Pod", name="tiny-1-0-0", code=403, message="exceeded quota", count=1, time=NOW
    )
    plan = decide(
        status_of(complete=False),
        refusals={"Pod/tiny-1-0-0": refused},
        now=NOW + timedelta(seconds=seconds),
    )
    assert ("Pod/tiny-1-0-0" in made(plan)) is again
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.QUOTA_EXCEEDED
    assert plan.look_again_seconds == (RESYNC_SECONDS if again else 1.0)


def test_refusal_of_what_is_there_by_now_does_not_matter() -> None:
    """A creation that took effect, and whose answer was lost, makes no hurry."""
    refused = Refusal(kind="Pod", name="tiny-1-1-0", code=403, message="", count=1, time=NOW)
    lead, peer = running_gang(2)
    pods = (lead, replace(peer, phase="Pending", node=""))
    later = NOW + timedelta(minutes=1)
    plan = decide(status_of(complete=False), pods=pods, refusals={refused.key: refused}, now=later)
    assert plan.look_again_seconds == RESYNC_SECONDS
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.STARTING


def test_refused_object_holds_up_what_comes_after_it() -> None:
    offers = [("ConfigMap", "tiny-job-file", 3), ("Pod", "tiny-1-0-0", 1)]
    found = [
        Refusal(kind=kind, name=name, code=403, message="", count=count, time=NOW)
        for kind, name, count in offers
    ]
    refused = {one.key: one for one in found}
    plan = decide(status_of(complete=False), refusals=refused, now=NOW + timedelta(seconds=5))
    assert made(plan) == []
    assert plan.look_again_seconds == 3.0


def waiting_gang(**waits: Any) -> tuple[ObservedPod, ...]:
    lead, peer = running_gang(2)
    places = {"phase": "Pending", "node": "", "created_at": NOW} | waits
    return replace(lead, created_at=NOW), replace(peer, **places)


@pytest.mark.parametrize(
    ("waits", "minutes", "given_up"),
    [
        ({"unschedulable_message": "no GPU"}, 10, True),
        ({"unschedulable_message": "no GPU"}, 9, False),
        ({"node": "node-2", "waiting_reason": "ImagePullBackOff"}, 60, False),
    ],
)
def test_gang_that_finds_no_place_gives_back_its_devices(
    waits: dict[str, Any], minutes: int, given_up: bool
) -> None:
    """Two gangs that each hold half of a cluster would wait for each other for ever."""
    now = NOW + timedelta(minutes=minutes)
    plan = decide(status_of(complete=False), pods=waiting_gang(**waits), now=now)
    assert len(deleted(plan)) == (2 if given_up else 0)
    failure = plan.status.last_failure
    assert (failure is not None) is given_up
    if failure is not None:
        assert (failure.failure_class, failure.reason) == ("Disruption", "GangIncomplete")
        assert "no GPU" in message(plan)
        assert plan.status.next_attempt_time is not None
        wait = (plan.status.next_attempt_time - now).total_seconds()
        assert GANG_BACKOFF_SECONDS_MIN <= wait < 2 * GANG_BACKOFF_SECONDS_MIN


def test_gang_over_quota_gives_back_its_devices() -> None:
    lead, _ = waiting_gang()
    refused = Refusal(
        kind="Pod", name="tiny-1-1-0", code=403, message="exceeded quota", count=9, time=NOW
    )
    plan = decide(
        status_of(complete=False),
        pods=(lead,),
        config_map=True,
        network_policy=True,
        refusals={refused.key: refused},
        now=NOW + timedelta(minutes=10),
    )
    assert deleted(plan) == [("tiny-1-0-0", BROKEN_GANG_GRACE_SECONDS)]


@pytest.mark.parametrize("name", ["tiny-1-0-0", "tiny-2-0-0"])
def test_gang_is_told_to_go_only_when_no_other_pod_is_left(name: str) -> None:
    """P1: an old list of pods may have hidden one when the gang was made; it goes first."""
    gang = running_gang(2, attempt=2)
    other = replace(running_gang(1)[0], name=name)
    pods = (*gang, other) if name not in {pod.name for pod in gang} else gang
    plan = decide(status_of(attempt=2, complete=False), pods=pods)
    told = [action.name for action in plan.actions if isinstance(action, SetIntent)]
    assert bool(told) is (other not in pods)
    assert deleted(plan) == [(name, BROKEN_GANG_GRACE_SECONDS)] * (other in pods)


@pytest.mark.parametrize(("attempt", "number"), [(2, 0), (1, 1)])
def test_pod_that_is_newer_than_the_status_is_left_alone(attempt: int, number: int) -> None:
    """P10: the list of pods is younger than the job that was read before it."""
    newer = replace(
        running_gang(1, attempt=attempt)[0], name=f"tiny-{attempt}-0-{number}", uid="newer"
    )
    plan = decide(status_of(attempt=1), pods=(*running_gang(2), newer))
    assert deleted(plan) == []


def test_pod_whose_label_was_edited_is_in_nobodys_way_for_ever() -> None:
    """P12: its name, which nobody can edit, tells where it belongs."""
    pod = replace(running_gang(1)[0], attempt=7)
    for watched_seconds, told in ((0.0, 0), (OLD_READ_SECONDS_MAX + 1, 1)):
        known = replace(pod, watched_seconds=watched_seconds)
        assert len(deleted(decide(status_of(attempt=2), pods=(known,)))) == told


def test_pods_of_a_status_that_was_lost_train_on() -> None:
    """P10, P12: somebody has wiped the status, or put back an older one."""
    gang = running_gang(2, attempt=3)
    gang = (gang[0], replace(gang[1], name="tiny-3-1-2"))
    known = tuple(replace(pod, watched_seconds=OLD_READ_SECONDS_MAX + 1) for pod in gang)
    for lost in (LMTrainingJobStatus(), status_of(attempt=2)):
        assert deleted(decide(lost, pods=gang)) == [], "maybe an old read"
    for lost in (LMTrainingJobStatus(), status_of(attempt=2), status_of(attempt=3)):
        plan = decide(lost, pods=known, **all_children())
        assert (deleted(plan), made(plan)) == ([], [])
        assert (plan.status.attempt, plan.status.replaced_pods) == (3, {"1": 2})
        told = [action.name for action in plan.actions if isinstance(action, SetIntent)]
        assert told == [pod.name for pod in gang]


@pytest.mark.parametrize("mark", [Scheduled.SUSPENDED, Scheduled.STOPPING])
@pytest.mark.parametrize("attempt", [0, 2])
def test_pods_train_on_under_a_status_of_a_time_at_which_others_were_stopped(
    mark: Scheduled, attempt: int
) -> None:
    """P10, P12: put back by a hand from when the job was suspended."""
    said = status_of(attempt=attempt, complete=False)
    lost = with_conditions(said, [Verdict("False", mark)], generation=1, now=NOW)
    gang = tuple(
        replace(pod, watched_seconds=OLD_READ_SECONDS_MAX + 1) for pod in running_gang(2, attempt=3)
    )
    plan = decide(lost, pods=gang)
    assert (plan.status.attempt, deleted(plan), made(plan)) == (3, [], [])
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.SCHEDULED


@pytest.mark.parametrize(("minutes", "is_left"), [(0, True), (1, False), (-60, False)])
def test_pod_that_is_ending_is_left_to_the_kubelet_for_a_moment(
    minutes: int, is_left: bool
) -> None:
    """Whichever way the clock has been set meanwhile: a sidecar may keep the pod running."""
    lead, peer = running_gang(2)
    lead = replace(ended(lead, 89), phase="Running")
    status = status_of(last_failure=failure_status())
    plan = decide(status, pods=(lead, peer), now=NOW + timedelta(minutes=minutes))
    assert [name for name, _ in deleted(plan)] == [lead.name] * (not is_left) + [peer.name]
