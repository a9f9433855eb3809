"""The life of a job, decision by decision."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import FailureClass
from lmtraining_api.records import CheckpointReport, Intent
from lmtraining_api.status import (
    ConditionType,
    LMTrainingJobStatus,
    Progress,
    Restarts,
    Succeeded,
)
from lmtraining_operator.plan import (
    Create,
    Delete,
    Leftover,
    ObservedClaim,
    ObservedPod,
    ObservedReport,
    SetIntent,
)
from lmtraining_operator.plan.decide import RESYNC_SECONDS, STARTING_SECONDS
from lmtraining_operator.plan.ending import FINISH_LINGER_SECONDS
from lmtraining_operator.plan.gang import BROKEN_GANG_GRACE_SECONDS
from tests.unit.operator_situations import (
    NOW,
    all_children,
    decide,
    deleted,
    ended,
    events,
    failure_status,
    job_object,
    made,
    message,
    reason,
    report_of,
    running_gang,
    status_of,
)

pytestmark = pytest.mark.unit


def test_first_visit_starts_attempt_one() -> None:
    """P1: the plan's status, which is written before its actions, has the attempt of its pods."""
    plan = decide()
    assert plan.status.attempt == 1
    assert made(plan) == [
        "ConfigMap/tiny-job-file",
        "PersistentVolumeClaim/tiny-checkpoints",
        "NetworkPolicy/tiny",
        "Pod/tiny-1-0-0",
        "Pod/tiny-1-1-0",
    ]
    assert reason(plan) == "Pending"
    assert len(plan.status.conditions) == len(ConditionType)
    assert plan.status.start_time == NOW
    assert plan.status.artifacts.claim == "tiny-checkpoints"
    assert plan.status.artifacts.run_directory == "runs/tiny-01234567"
    assert events(plan) == ["AttemptStarted"]


def test_same_view_gives_the_same_plan() -> None:
    """P12: what has been said is not said again, and a still world needs no action."""
    gang = running_gang(2)
    status = decide(status_of(), pods=gang).status
    intents = intents_of(gang)
    armed = tuple(replace(pod, intent=text) for pod, text in zip(gang, intents, strict=True))
    plan = decide(status, pods=armed, now=NOW + timedelta(minutes=1))
    assert plan.status == status
    assert plan.actions == ()


def intents_of(gang: tuple[ObservedPod, ...]) -> list[str]:
    plan = decide(status_of(), pods=gang)
    return [action.intent for action in plan.actions if isinstance(action, SetIntent)]


def test_what_is_there_is_not_made_again() -> None:
    (lead, _) = running_gang(2)
    plan = decide(status_of(complete=False), pods=(lead,), **all_children())
    assert made(plan) == ["Pod/tiny-1-1-0"]


def test_starting_gun_only_when_all_run() -> None:
    """P1: the peer table is complete, or it is not given."""
    lead, peer = running_gang(2)
    starting = replace(peer, phase="Pending")
    assert decide(status_of(complete=False), pods=(lead, starting), **all_children()).actions == ()
    plan = decide(status_of(complete=False), pods=(lead, peer))
    assert reason(plan, ConditionType.SCHEDULED) == "Scheduled", "said before the gun is fired"
    intents = [Intent.model_validate_json(text) for text in intents_of((lead, peer))]
    assert len(intents) == 2
    assert [(p.replica, p.pod_uid, p.address) for p in intents[0].peers] == [
        (0, "pod-1-0", "127.1.0.1"),
        (1, "pod-1-1", "127.1.0.2"),
    ]


def test_stray_pod_is_removed_before_anything_is_made() -> None:
    """P1: a pod of another attempt is never beside this one."""
    (stray,) = running_gang(1, attempt=1)
    plan = decide(status_of(attempt=2, complete=False), pods=(stray,))
    assert made(plan) == []
    assert deleted(plan) == [("tiny-1-0-0", BROKEN_GANG_GRACE_SECONDS)]


def test_failure_is_said_and_the_broken_gang_released() -> None:
    """P1: no pod of the next attempt while one of this is left."""
    lead, peer = running_gang(2)
    plan = decide(status_of(state=Succeeded.TRAINING), pods=(lead, ended(peer, 89)))
    assert plan.status.attempt == 1
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.failure_class is FailureClass.CRASH
    assert reason(plan) == "Recovering"
    assert deleted(plan) == [("tiny-1-0-0", BROKEN_GANG_GRACE_SECONDS)], "the ended one has a log"
    assert made(plan) == []
    assert plan.status.restarts == Restarts(total=1, counted=1, by_reason={FailureClass.CRASH: 1})
    assert "AttemptFailed" in events(plan)


def test_peers_of_a_drained_pod_may_save() -> None:
    lead, peer = running_gang(2)
    pods = (lead, replace(peer, is_deleting=True))
    plan = decide(status_of(), pods=pods)
    assert deleted(plan) == [("tiny-1-0-0", None)], "the grace it was made with"
    plan = decide(plan.status, pods=pods)
    assert deleted(plan) == [("tiny-1-0-0", None)], "also when the pass before broke off"


def test_next_attempt_waits_for_pods_then_for_the_backoff() -> None:
    """P1, and what is waited for is said."""
    failure = failure_status()
    failed = status_of(last_failure=failure, next_attempt_time=NOW + timedelta(seconds=8))
    leaving = replace(running_gang(1)[0], is_deleting=True)
    plan = decide(failed, pods=(leaving,))
    assert (plan.status.attempt, plan.actions) == (1, ())
    assert "tiny-1-0-0 on node node-1" in message(plan)

    plan = decide(failed)
    assert (plan.status.attempt, plan.actions) == (1, ())
    assert plan.look_again_seconds == 8

    plan = decide(failed, now=NOW + timedelta(seconds=8))
    assert plan.status.attempt == 2
    assert plan.status.next_attempt_time is None
    assert reason(plan) == "Recovering"
    assert "Pod/tiny-2-0-0" in made(plan)


def test_pod_on_an_unreachable_node_is_waited_for_and_said() -> None:
    """P4: with what a person can do; P1: until its ranks have surely stopped, and then for good,
    but once."""
    failed = status_of(last_failure=failure_status(FailureClass.DISRUPTION))
    stuck = replace(running_gang(1)[0], is_deleting=True, grace_seconds=5, deleting_seconds=90)
    plan = decide(failed, pods=(stuck,), now=NOW + timedelta(minutes=5))
    assert plan.actions == ()
    assert "node.kubernetes.io/out-of-service" in message(plan)
    late = replace(stuck, deleting_seconds=96)
    assert deleted(decide(failed, pods=(late,))) == [(stuck.name, 0)]
    for other in (replace(late, grace_seconds=0), replace(late, phase="Failed")):
        assert deleted(decide(failed, pods=(other,))) == []


def test_lost_pod_of_one_is_answered_in_one_pass() -> None:
    """Speed: the failure, the next attempt and its pods come of one look."""
    job = job_object(workers__replicas=1)
    plan = decide(status_of(state=Succeeded.TRAINING), job=job)
    assert plan.status.attempt == 2
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.failure_class is FailureClass.POD_LOST
    assert plan.status.restarts.counted == 0
    assert "Pod/tiny-2-0-0" in made(plan)


def test_step_does_not_go_back_while_an_attempt_starts() -> None:
    """P3: until the new attempt has stepped, the figures of the old one stay."""
    status = status_of(attempt=2, progress=Progress(step=130), last_failure=failure_status())
    gang = running_gang(2, attempt=2)
    loading = report_of(attempt=2, state="Loading", step=0, first_step_time=None, step_time=None)
    plan = decide(status, pods=gang, report=ObservedReport(report=loading))
    assert plan.status.progress.step == 130
    first = NOW + timedelta(seconds=9)
    broken = "checkpoints passed over: step 120 (model.safetensors is missing)"
    stepped = report_of(
        attempt=2, step=101, resumed_from_step=100, first_step_time=first, passed_over=broken
    )
    plan = decide(status, pods=gang, report=ObservedReport(report=stepped))
    assert plan.status.progress.step == 101
    assert "CheckpointPassedOver" in events(plan)
    assert plan.status.last_recovery is not None
    assert plan.status.last_recovery.resumed_from_step == 100
    assert plan.status.last_recovery.seconds == "9.0"
    assert plan.status.last_recovery.passed_over == broken
    again = decide(plan.status, pods=gang, report=ObservedReport(report=stepped))
    assert not events(again), "told once"


def test_step_that_goes_back_without_a_failure_is_explained() -> None:
    """P3: a pod that was told to suspend did not come to save."""
    before = NOW - timedelta(seconds=60)
    progress = Progress(step=130, step_time=before)
    status = status_of(attempt=2, progress=progress)
    gang = running_gang(2, attempt=2)
    stepped = report_of(attempt=2, step=101, resumed_from_step=100, replayed_steps=1)
    status = decide(status, pods=gang, report=ObservedReport(report=stepped)).status
    assert status.progress.step == 101
    recovered = status.last_recovery
    assert recovered is not None
    assert (recovered.resumed_from_step, recovered.fault_time) == (100, before)
    later = report_of(
        attempt=2, step=140, resumed_from_step=100, step_time=NOW + timedelta(seconds=9)
    )
    status = decide(status, pods=gang, report=ObservedReport(report=later)).status
    assert status.last_recovery == recovered, "said once"


def test_image_is_fixed_when_the_job_begins() -> None:
    """P7, P10: an upgrade of the operator changes nothing for a job that has begun."""
    assert decide().status.trainer_image == "registry.example/trainer:1"
    job = job_object(workers__image="registry.example/own:2")
    assert decide(job=job).status.trainer_image == "registry.example/own:2"
    begun = status_of(trainer_image="registry.example/trainer:0", last_failure=failure_status())
    plan = decide(begun)
    images = [
        action.body["spec"]["containers"][0]["image"]
        for action in plan.actions
        if isinstance(action, Create) and action.kind == "Pod"
    ]
    assert plan.status.attempt == 2
    assert images == ["registry.example/trainer:0"] * 2


def speed_of(status: LMTrainingJobStatus) -> tuple[str, str]:
    return status.progress.eta, status.metrics.tokens_per_second


@pytest.mark.parametrize(
    ("job", "crashes", "state"),
    [
        ({"suspend": True}, False, "Suspended"),
        ({"suspend": True, "elastic": "x"}, False, "Suspended"),
        ({}, True, "Recovering"),
        ({"recovery__restartsMax": 0}, True, "Failed"),
    ],
)
def test_no_speed_is_said_while_no_pod_trains(
    job: dict[str, Any], crashes: bool, state: str
) -> None:
    """P4: no old value without its age; what was reached stays."""
    lead, peer = running_gang(2)
    saved = CheckpointReport(step=10, path="c/10", time=NOW, size_bytes=1, sha256="")
    old = ObservedReport(report=report_of(eta_seconds=90, checkpoint=saved))
    status = decide(status_of(state=Succeeded.TRAINING), pods=(lead, peer), report=old).status
    assert speed_of(status) == ("1m30s", "2048")

    body = job_object(**job)
    pods = (lead, ended(peer, 89)) if crashes else (lead, peer)
    for left in (pods, ()):
        plan = decide(status, job=body, pods=left, report=old)
        status = plan.status
        assert speed_of(status) == ("", "")
    assert reason(plan) == state
    assert (status.progress.step, status.metrics.loss) == (12, "3.25")
    assert status.checkpoint is not None
    assert status.progress.report_time == NOW, "their age"


def test_speed_of_a_finished_run_is_the_last_reported() -> None:
    lead, peer = running_gang(2)
    old = ObservedReport(report=report_of(eta_seconds=90))
    plan = decide(status_of(state=Succeeded.TRAINING), pods=(ended(lead, 0), peer), report=old)
    assert reason(plan) == "Completed"
    assert speed_of(plan.status) == ("", "2048")


@pytest.mark.parametrize(
    ("failure_class", "code", "expected"),
    [(FailureClass.DIVERGED, 83, "Diverged"), (FailureClass.CONFIGURATION, 81, "Failed")],
)
def test_end_without_another_attempt(failure_class: FailureClass, code: int, expected: str) -> None:
    lead, peer = running_gang(2)
    plan = decide(status_of(), pods=(lead, ended(peer, code)))
    assert reason(plan) == expected
    assert plan.status.is_terminal
    assert plan.status.completion_time == NOW
    assert deleted(plan) == [("tiny-1-0-0", BROKEN_GANG_GRACE_SECONDS)], "the ended one has a log"
    assert plan.status.last_failure is not None
    assert plan.status.last_failure.failure_class is failure_class


def test_a_pod_that_has_just_failed_keeps_its_log() -> None:
    """Its trainer has ended; the kubelet calls the pod Running for a moment longer."""
    lead, peer = running_gang(2)
    just_failed = replace(ended(peer, 81), phase="Running")
    plan = decide(status_of(), pods=(lead, just_failed))
    assert [name for name, _ in deleted(plan)] == [lead.name]
    after = decide(plan.status, pods=(lead, just_failed))
    assert [name for name, _ in deleted(after)] == [lead.name]
    late = NOW + timedelta(seconds=FINISH_LINGER_SECONDS)
    plan = decide(plan.status, pods=(just_failed,), now=late)
    assert [name for name, _ in deleted(plan)] == [peer.name], "its sidecar would live for ever"


def test_finished_when_the_lead_says_so() -> None:
    lead, peer = running_gang(2)
    plan = decide(status_of(state=Succeeded.TRAINING), pods=(ended(lead, 0), peer))
    assert reason(plan) == "Completed"
    assert plan.status.progress.step == plan.status.progress.total_steps == 20
    assert not plan.is_done, "the other pod may end by itself"
    beside_sidecar = replace(ended(lead, 0), phase="Running")
    assert reason(decide(status_of(), pods=(beside_sidecar, peer))) == "Completed"
    assert deleted(plan) == []
    plan = decide(status_of(state=Succeeded.TRAINING), pods=(lead, ended(peer, 0)))
    assert reason(plan) != "Completed", "only the lead knows that the export is written"


def test_finish_goes_before_a_failure_seen_with_it() -> None:
    """P2: a finished run is finished, also when another pod fell over at the end."""
    lead, peer = running_gang(2)
    assert reason(decide(status_of(), pods=(ended(lead, 0), ended(peer, 89)))) == "Completed"
    failed = status_of(last_failure=failure_status())
    assert reason(decide(failed, pods=(ended(lead, 0),))) == "Completed"


@pytest.mark.parametrize("state", [Succeeded.COMPLETED, Succeeded.FAILED, Succeeded.DIVERGED])
@pytest.mark.parametrize("gone", [True, False])
def test_end_stays(state: Succeeded, gone: bool) -> None:
    """P2: whatever happens to the children; nothing is made."""
    status = status_of(state=state, completion_time=NOW)
    pods = () if gone else running_gang(2)
    plan = decide(status, pods=pods, now=NOW + timedelta(seconds=FINISH_LINGER_SECONDS))
    assert plan.status is status
    assert made(plan) == []
    assert plan.is_done is gone
    assert len(deleted(plan)) == len(pods), "what still runs is stopped"


def test_pods_that_still_stop_are_waited_for_before_the_rest_goes() -> None:
    status = status_of(state=Succeeded.FAILED, completion_time=NOW)
    job, later = job_object(keepPodsSeconds=5), NOW + timedelta(seconds=6)
    rest = (Leftover(kind="ConfigMap", name="tiny-job-file", uid="1"),)
    left = (ended(running_gang(2)[0], 89), replace(running_gang(2)[1], is_deleting=True))
    plan = decide(status, job=job, now=later, pods=left, leftovers=rest)
    assert (plan.actions, plan.is_done) == ((), False)
    plan = decide(status, job=job, now=later, pods=left[:1], leftovers=rest)
    assert deleted(plan) == [(left[0].name, 5)]
    assert Delete(kind="ConfigMap", name="tiny-job-file", uid="1") in plan.actions
    assert not plan.is_done


def test_existing_claim_is_waited_for() -> None:
    job = job_object(checkpoint__storage={"existingClaim": "later"})
    plan = decide(job=job)
    assert plan.status.attempt == 0
    assert reason(plan, ConditionType.SCHEDULED) == "VolumeNotReady"
    assert "later" in message(plan)
    claim = ObservedClaim(name="later", access_modes=("ReadWriteMany",))
    plan = decide(plan.status, job=job, claim=claim)
    assert plan.status.attempt == 1
    assert "PersistentVolumeClaim/tiny-checkpoints" not in made(plan)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"node": ""}, RESYNC_SECONDS),  # the scheduler's word wakes us
        ({"created_at": NOW}, STARTING_SECONDS),
        ({"created_at": NOW - timedelta(minutes=2)}, 12.0),
        ({"created_at": NOW - timedelta(hours=2)}, RESYNC_SECONDS),
    ],
)
def test_pods_that_start_are_looked_at_often_and_then_less(
    changes: dict[str, Any], seconds: float
) -> None:
    """A thousand jobs in a queue are not a thousand jobs every three seconds."""
    lead, peer = running_gang(2)
    pods = (lead, replace(peer, phase="Pending", **changes))
    assert decide(status_of(complete=False), pods=pods).look_again_seconds == seconds


def test_long_backoff_is_looked_at_on_the_way() -> None:
    """A job that is never looked at would make the operator unhealthy."""
    waits = status_of(last_failure=failure_status(), next_attempt_time=NOW + timedelta(hours=5))
    assert decide(waits).look_again_seconds == RESYNC_SECONDS


@pytest.mark.parametrize(
    ("observed", "address"),
    [
        ({"pods": running_gang(2)}, "127.1.0.1"),
        ({"pods": (replace(running_gang(1)[0], phase="Pending"),)}, ""),
        ({"pods": ()}, ""),
    ],
)
def test_whose_report_is_asked_for(observed: dict[str, Any], address: str) -> None:
    assert decide(status_of(complete=False), **observed).report_from == address
