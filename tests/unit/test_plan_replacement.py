"""Level 3: a lost pod is replaced alone, and the others wait in place."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from lmtraining_api.exits import FailureClass
from lmtraining_api.names import POD_REPLACED
from lmtraining_api.records import FaultReport, Intent, Peer, gang_digest
from lmtraining_api.status import (
    ConditionType,
    LMTrainingJobStatus,
    Progress,
    Restarts,
    Scheduled,
    Succeeded,
)
from lmtraining_api.wishes import Wishes
from lmtraining_operator.plan import Disruption, ObservedPod, ObservedReport, Plan, SetIntent
from lmtraining_operator.plan.model import GANG_INCOMPLETE
from lmtraining_operator.plan.replacement import WAIT_SECONDS_MAX
from tests.unit.operator_situations import (
    NOW,
    UID,
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

DONE = Progress(step=12, step_time=NOW)


def armed(*pods: ObservedPod) -> tuple[ObservedPod, ...]:
    """The same pods, as told that they are each other's peers."""
    peers = [Peer(replica=p.replica, pod_uid=p.uid, address=p.address) for p in pods]
    wishes = Wishes(generation=1, budget_steps=20)
    told = Intent(job_uid=UID, attempt=1, generation=1, peers=peers, wishes=wishes)
    return tuple(replace(pod, intent=told.model_dump_json(by_alias=True)) for pod in pods)


LEAD, PEER = armed(*running_gang(2))
REPORT = ObservedReport(
    report=report_of(gang=gang_digest([LEAD.uid, PEER.uid])), address=LEAD.address
)
CRASHED = ended(PEER, 89, failure_class=FailureClass.CRASH, reason="RankRaised")
SECOND = replace(PEER, name="tiny-1-1-1", uid="pod-1-1b", address="127.1.1.2", intent="")


def training(**changes: Any) -> LMTrainingJobStatus:
    return status_of(state=Succeeded.TRAINING, progress=DONE, **changes)


def answer(*pods: ObservedPod, **observed: Any) -> Plan:
    """What is done when these are the pods of a gang of two that trained."""
    return decide(training(), pods=pods, **{"report": REPORT} | observed)


def told(plan: Plan) -> dict[str, list[str]]:
    """The peer tables that are written, by pod."""
    return {
        action.name: [peer.pod_uid for peer in Intent.model_validate_json(action.intent).peers]
        for action in plan.actions
        if isinstance(action, SetIntent)
    }


@pytest.mark.parametrize(
    ("pods", "failed"),
    [
        ((LEAD,), "tiny-1-1-0"),
        ((PEER,), "tiny-1-0-0"),  # the lead too
        ((LEAD, CRASHED), "tiny-1-1-0"),
        ((LEAD, ended(PEER, 137)), "tiny-1-1-0"),
    ],
)
def test_lost_pod_is_replaced_and_the_other_told_to_wait(
    pods: tuple[ObservedPod, ...], failed: str
) -> None:
    plan = answer(*pods, now=NOW + timedelta(seconds=1))
    failure = plan.status.last_failure
    assert failure is not None
    assert (failure.pod, failure.replaced_by) == (failed, failed[:-1] + "1")
    assert plan.status.attempt == 1
    assert plan.status.replaced_pods == {failed[-3]: 1}
    assert plan.status.restarts.total == 1
    assert deleted(plan) == []
    assert list(told(plan).values()) == [[pods[0].uid]], "who is left, which is not all"
    assert reason(plan) == "Recovering"
    assert f"pod {failure.replaced_by} takes the place of {failed}" in message(plan)
    assert (POD_REPLACED in events(plan), "AttemptFailed" in events(plan)) == (True, False)
    assert plan.status.metrics.tokens_per_second == "", "P4"


def test_pod_that_is_still_there_is_waited_for() -> None:
    """P1: a pod that was drained may still write."""
    reason_ = Disruption(reason="EvictionByEvictionAPI", since=NOW)
    leaving = replace(PEER, is_deleting=True, disruption=reason_)
    plan = answer(LEAD, leaving)
    assert (made(plan), deleted(plan)) == ([], [])
    assert message(plan, ConditionType.SCHEDULED) == (
        "waiting until pod tiny-1-1-0 on node node-1 is gone"
    )
    later = NOW + timedelta(minutes=3)
    plan = decide(plan.status, pods=(LEAD, leaving), now=later, report=REPORT)
    assert made(plan) == []
    assert "out-of-service" in message(plan)
    plan = decide(plan.status, pods=(LEAD,), now=later, report=REPORT)
    assert "Pod/tiny-1-1-1" in made(plan)
    assert "Pod/tiny-1-0-0" not in made(plan)
    assert plan.status.restarts.counted == 0


def test_log_of_the_replaced_pod_stays_beside_its_successor() -> None:
    plan = answer(LEAD, CRASHED, now=NOW)
    assert (made(plan), plan.status.next_attempt_time) == ([], NOW + timedelta(seconds=1))
    later = NOW + timedelta(seconds=1)
    plan = decide(plan.status, pods=(LEAD, CRASHED), now=later, report=REPORT)
    assert "Pod/tiny-1-1-1" in made(plan)
    assert plan.status.next_attempt_time is None
    assert deleted(plan) == []
    assert plan.status.restarts == Restarts(total=1, counted=1, by_reason={FailureClass.CRASH: 1})


def test_new_gang_is_told_its_peers_once_all_run() -> None:
    status = answer(LEAD).status
    pending = replace(SECOND, phase="Pending", address="")
    waiting = answer(LEAD)
    (survivor,) = armed(LEAD)
    plan = decide(status, pods=(survivor, pending), report=REPORT)
    assert told(plan) == {}
    assert told(waiting) == {"tiny-1-0-0": [LEAD.uid]}
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.STARTING
    plan = decide(status, pods=(survivor, SECOND), report=REPORT)
    peers = [LEAD.uid, SECOND.uid]
    assert told(plan) == {"tiny-1-0-0": peers, "tiny-1-1-1": peers}
    assert reason(plan, ConditionType.SCHEDULED) == Scheduled.SCHEDULED
    pods = armed(LEAD, SECOND)
    assert decide(plan.status, pods=pods, report=REPORT).actions == ()


@pytest.mark.parametrize(
    ("pods", "observed", "job"),
    [
        ((CRASHED,), {}, {}),  # nobody is left who knows the rounds
        ((replace(LEAD, intent=""),), {}, {}),  # who is left has not trained
        ((LEAD,), {"report": ObservedReport(report=report_of())}, {}),  # an older trainer image
        ((LEAD,), {"report": ObservedReport()}, {}),
        ((LEAD,), {}, {"stability__roundsMax": 0}),
        ((LEAD, CRASHED), {}, {"recovery__backoffSeconds": int(WAIT_SECONDS_MAX) + 1}),
    ],
)
def test_new_attempt_where_the_others_cannot_wait(
    pods: tuple[ObservedPod, ...], observed: dict[str, Any], job: dict[str, Any]
) -> None:
    changed = {"recovery__backoffSecondsMax": 3600} | job
    plan = answer(*pods, job=job_object(**changed), **observed)
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.replaced_by == ""
    assert plan.status.replaced_pods == {}
    assert told(plan) == {}
    assert "AttemptFailed" in events(plan)


@pytest.mark.parametrize("survivor", [LEAD, PEER])
def test_new_operator_that_has_had_no_report_replaces_too(survivor: ObservedPod) -> None:
    """P10: the lead may be the pod that was lost while it was down."""
    status = answer(LEAD, PEER).status
    assert status.waits_in_place
    plan = decide(status, pods=(survivor,))
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.replaced_by == f"tiny-1-{1 - survivor.replica}-1"


@pytest.mark.parametrize(
    ("failure_class", "code", "expected"),
    [(FailureClass.DIVERGED, 83, "Diverged"), (FailureClass.CONFIGURATION, 81, "Failed")],
)
def test_what_cannot_be_mended_is_not_replaced(
    failure_class: FailureClass, code: int, expected: str
) -> None:
    plan = answer(LEAD, ended(PEER, code, failure_class=failure_class, reason="No"))
    assert reason(plan) == expected


def test_spent_budget_is_spent_for_pods_too() -> None:
    job = job_object(recovery__restartsMax=1)
    plan = answer(LEAD, CRASHED, job=job)
    again = replace(SECOND, intent=LEAD.intent)
    crashed = ended(again, 89, failure_class=FailureClass.CRASH, reason="RankRaised")
    complete = decide(plan.status, job=job, pods=(LEAD, again), report=REPORT)
    plan = decide(complete.status, job=job, pods=(LEAD, crashed), report=REPORT)
    assert reason(plan) == "Failed"
    assert "recovery.restartsMax 1" in message(plan)


@pytest.mark.parametrize(
    "pod",
    [
        ended(LEAD, 88, failure_class=FailureClass.PEER_LOST, reason="PeerLost"),
        ended(LEAD, 80, failure_class=FailureClass.DISRUPTION, reason="Preempted"),
    ],
)
def test_pod_that_ends_for_want_of_the_other_is_not_charged(pod: ObservedPod) -> None:
    job = job_object(recovery__restartsMax=1, workers__replicas=3, training__batchTokens=1920)
    lead, peer, third = armed(*running_gang(3))
    plan = decide(
        training(),
        job=job,
        pods=(lead, ended(peer, 89, failure_class=FailureClass.CRASH, reason="No"), third),
        report=REPORT,
    )
    charged = plan.status.restarts
    failure = plan.status.last_failure
    plan = decide(plan.status, job=job, pods=(pod, third), report=REPORT)
    assert plan.status.restarts == charged
    assert plan.status.last_failure == failure
    assert plan.status.replaced_pods == {"0": 1, "1": 1}
    plan = decide(plan.status, job=job, pods=(ended(third, 88),), report=REPORT)
    assert plan.status.restarts == charged
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.replaced_by == "", "nobody is left: a new attempt"


@pytest.mark.parametrize("limit", [None, 120])
def test_replacement_that_does_not_start_gives_the_attempt_up(limit: int | None) -> None:
    """Level 4: the others do not hold their devices for ever; for how long, the job says."""
    job = job_object(**({"recovery__gangTimeoutSeconds": limit} if limit else {}))
    patience = limit or 600
    lead = replace(LEAD, created_at=NOW - timedelta(hours=5))
    status = answer(lead).status
    pending = replace(SECOND, phase="Pending", node="", address="", created_at=NOW)

    def at(seconds: float) -> Plan:
        now = NOW + timedelta(seconds=seconds)
        return decide(status, job=job, pods=(lead, pending), now=now, report=REPORT)

    assert at(patience - 1).status.last_failure == status.last_failure
    failure = at(patience).status.last_failure
    assert failure is not None
    assert (failure.reason, failure.replaced_by) == (GANG_INCOMPLETE, "")
    assert "tiny-1-1-1 has not started" in failure.message
    assert len(deleted(at(patience))) == 2


def test_next_attempt_begins_with_first_pods() -> None:
    lead, second = armed(LEAD, SECOND)
    replaced = training(replaced_pods={"1": 1})
    plan = decide(replaced, pods=(ended(lead, 89), ended(second, 89)), report=REPORT)
    plan = decide(plan.status, now=NOW + timedelta(seconds=1))
    assert (plan.status.attempt, plan.status.replaced_pods) == (2, {})
    assert "Pod/tiny-2-1-0" in made(plan)


def fault(reason: str, time: datetime) -> FaultReport:
    return FaultReport(round=1, failure_class=FailureClass.CRASH, reason=reason, step=3, time=time)


@pytest.mark.parametrize(
    ("last_fault", "words", "seconds"),
    [
        (None, "PodLost: Pod tiny-1-1-0", "5"),  # a new lead knows of no fault
        (fault(POD_REPLACED, NOW), "PodLost: Pod tiny-1-1-0", "5"),
        (fault("RankKilled", NOW + timedelta(seconds=4)), "Crash", "1"),  # a later one
    ],
)
def test_recovery_is_told_with_what_was_lost(
    last_fault: FaultReport | None, words: str, seconds: str
) -> None:
    status = answer(LEAD).status
    pods = armed(LEAD, SECOND)
    status = decide(status, pods=pods, report=REPORT).status
    report = report_of(
        gang=gang_digest(pod.uid for pod in pods),
        first_step_time=NOW + timedelta(seconds=5),
        last_fault=last_fault,
        resumed_from_step=10,
    )
    plan = decide(status, pods=pods, report=ObservedReport(report=report))
    found = plan.status.last_recovery
    assert found is not None
    assert found.fault.startswith(words)
    assert found.seconds.startswith(seconds)
    assert reason(plan) == "Training"


def test_report_of_the_lost_lead_says_nothing_of_the_new_one() -> None:
    """P4: it trained; the new one has not said anything yet."""
    status = answer(PEER).status
    lead = replace(SECOND, name="tiny-1-0-1", replica=0, address="127.1.1.1")
    for _ in range(2):
        plan = decide(status, pods=(lead, PEER), report=REPORT)
        assert reason(plan) == "Recovering"
        assert plan.status.last_recovery is None
        status = plan.status


def test_report_of_the_lost_lead_takes_no_step_back() -> None:
    """P3: what an old lead still says at an address that is used again is not told."""
    status = answer(PEER).status
    status = status.model_copy(update={"progress": DONE.model_copy(update={"step": 15})})
    lead = replace(SECOND, name="tiny-1-0-1", replica=0, address=LEAD.address)
    plan = decide(status, pods=(lead, PEER), report=REPORT)
    assert plan.status.progress.step == 15


def test_pod_that_finishes_before_the_new_lead_has_met_it_ends_the_attempt() -> None:
    """P12: both ran at the same time, and the new one would wait for ever."""
    status = answer(PEER).status
    lead = replace(SECOND, name="tiny-1-0-1", replica=0, address="127.1.1.1")
    status = decide(status, pods=(lead, PEER)).status
    waiting = report_of(state="Waiting", gang="", first_step_time=None)
    report = ObservedReport(report=waiting, address=lead.address)
    plan = decide(status, pods=(lead, ended(PEER, 0)), report=report)
    failure = plan.status.last_failure
    assert failure is not None
    assert (failure.reason, failure.replaced_by) == ("PeerFinished", "")


def test_first_failure_is_not_the_pod_that_was_told_to_stop_by_its_peers() -> None:
    """Its record is the earlier one: it saved and left while the other one died."""
    told_ = ended(LEAD, 80, failure_class=FailureClass.DISRUPTION, reason="Preempted")
    later = NOW + timedelta(seconds=2)
    died = ended(PEER, 89, failure_class=FailureClass.CRASH, reason="RankRaised", time=later)
    for pods in ((told_, died), (died, told_)):
        failure = answer(*pods, now=later).status.last_failure
        assert failure is not None
        assert failure.failure_class is FailureClass.CRASH
    assert answer(told_, PEER).status.last_failure is None, "the cause may still show"
    alone = answer(told_, PEER, now=NOW + timedelta(seconds=5)).status.last_failure
    assert alone is not None


THREE = job_object(workers__replicas=3, training__batchTokens=1920)


def with_a_finished_pod() -> tuple[ObservedPod, ...]:
    """A gang of three whose lead is lost: one has finished, one still runs."""
    _, peer, third = armed(*running_gang(3))
    return ended(peer, 0), third


def test_lost_pod_is_not_replaced_alone_once_another_has_finished() -> None:
    """It can never join again: the others would wait for it until the attempt is given up."""
    finished, third = with_a_finished_pod()
    plan = decide(training(), job=THREE, pods=(finished, third), report=REPORT)
    assert plan.status.last_failure is not None
    assert (plan.status.last_failure.pod, plan.status.last_failure.replaced_by) == (
        "tiny-1-0-0",
        "",
    )
    assert [name for name, _ in deleted(plan)] == [third.name], "the finished one stays for its log"
    plan = decide(plan.status, job=THREE, pods=(finished,))
    assert plan.status.attempt == 2
    assert made(plan)[-3:] == ["Pod/tiny-2-0-0", "Pod/tiny-2-1-0", "Pod/tiny-2-2-0"]
    assert deleted(plan) == []
    assert plan.status.restarts.total == 1


def test_pod_that_finishes_while_another_is_replaced_ends_the_attempt_uncharged() -> None:
    finished, third = with_a_finished_pod()
    running = armed(*running_gang(3))[1]
    status = decide(training(), job=THREE, pods=(running, third), report=REPORT).status
    assert status.replaced_pods == {"0": 1}
    plan = decide(status, job=THREE, pods=(finished, third), report=REPORT)
    assert plan.status.last_failure is not None
    assert (plan.status.last_failure.pod, plan.status.last_failure.replaced_by) == (
        "tiny-1-0-0",
        "",
    )
    assert plan.status.restarts == status.restarts
    plan = decide(plan.status, job=THREE, pods=(finished,))
    assert plan.status.attempt == 2


def test_finished_lead_is_the_end_of_the_job_whoever_is_lost() -> None:
    plan = answer(ended(LEAD, 0))
    assert reason(plan) == "Completed"


@pytest.mark.parametrize("takes_all", [False, True])
def test_no_pod_takes_the_place_of_one_whose_whole_group_is_taken(takes_all: bool) -> None:
    """Kueue deletes one pod after the other; the first is no reason to replace it alone."""
    taken = Disruption(reason="WorkloadEvicted", since=NOW, takes_all=takes_all)
    lost = replace(PEER, is_deleting=True, grace_seconds=30, disruption=taken)
    plan = decide(training(waits_in_place=True), pods=(LEAD, lost), report=REPORT)
    assert bool(plan.status.replaced_pods) != takes_all
    assert plan.status.restarts.by_reason == {FailureClass.DISRUPTION: 1}


def test_a_pod_is_replaced_alone_in_its_queue_while_only_its_name_is_left() -> None:
    """Kueue keeps the lost pod until the new one is there."""
    job = job_object(queue={"name": "team"})
    lost = replace(CRASHED, is_deleting=True, is_held=True)
    status = training(waits_in_place=True)
    plan = decide(status, job=job, pods=(LEAD, lost), report=REPORT)
    assert plan.status.replaced_pods == {"1": 1}
    assert deleted(plan) == []
    later = NOW + timedelta(minutes=1)
    again = decide(plan.status, job=job, pods=(LEAD, lost), report=REPORT, now=later)
    assert "Pod/tiny-1-1-1" in made(again)


@pytest.mark.parametrize(
    ("group", "role", "is_alone"),
    [
        ("", "", True),
        ("tiny-1", "main", True),
        ("tiny-1", "5054a0b1", False),
        ("tiny-1", "", False),
    ],
)
def test_no_pod_waits_in_a_queue_that_has_no_place_for_its_role(
    group: str, role: str, is_alone: bool
) -> None:
    """The group of an attempt that an older operator began has one place, for the digest that Kueue
    took of its pods: a new attempt, and a new group, follows at once."""
    job = job_object(queue={"name": "team"}, recovery__backoffSeconds=0)
    lead = replace(LEAD, group=group, role=role)
    plan = decide(training(waits_in_place=True), job=job, pods=(lead,), report=REPORT)
    assert bool(plan.status.replaced_pods) is is_alone
    later = decide(plan.status, job=job, pods=(lead,) * is_alone, now=NOW + timedelta(seconds=9))
    assert later.status.attempt == (1 if is_alone else 2)
