"""What does the end of a pod mean? And which of several ends was the first?"""

from dataclasses import replace
from datetime import timedelta

import pytest

from lmtraining_api.exits import CODE_OF_CLASS, ExitCode, FailureClass
from lmtraining_api.records import ExitRecord
from lmtraining_operator.plan import ContainerExit, Disruption, ObservedPod
from lmtraining_operator.plan.failures import (
    ROOT_CAUSE_WAIT_SECONDS,
    all_failures,
    exit_record_of,
    failure_of,
    first_failure,
)
from tests.unit.operator_situations import NOW, UID, report_of, running_gang, situation

pytestmark = pytest.mark.unit

C = FailureClass

POD = ObservedPod(
    name="tiny-1-0-0", uid="p0", attempt=1, replica=0, phase="Running", address="127.1.0.1"
)
EVICTED = Disruption(reason="EvictionByEvictionAPI", since=NOW)


def ended(code: int, message: str = "", reason: str = "Error") -> ContainerExit:
    return ContainerExit(code=code, reason=reason, termination_message=message, finished_at=NOW)


def record(failure_class: FailureClass, **values: object) -> str:
    base = {
        "job_uid": UID,
        "attempt": 1,
        "round": 1,
        "replica": 0,
        "exit_code": CODE_OF_CLASS[failure_class],
        "failure_class": failure_class,
        "reason": str(failure_class),
        "message": "told by the trainer",
        "time": NOW,
    }
    return ExitRecord.model_validate(base | values).model_dump_json(by_alias=True)


FINISHED = ExitRecord.model_validate(
    {
        "job_uid": UID,
        "attempt": 1,
        "round": 1,
        "replica": 0,
        "exit_code": ExitCode.FINISHED,
        "reason": "Finished",
        "time": NOW,
    }
).model_dump_json(by_alias=True, exclude_none=True)


def evicted(message: str) -> dict[str, object]:
    return {"phase": "Failed", "reason": "Evicted", "message": message}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"phase": "Pending"}, None),
        ({"phase": "Succeeded", "exit": ended(0, FINISHED)}, None),
        ({"exit": ended(0, FINISHED)}, None),  # a sidecar lives on
        # Any image may exit 0: only the record says that the run is finished.
        ({"phase": "Succeeded", "exit": ended(0)}, FailureClass.UNKNOWN),
        # A disruption comes first: the kubelet reports 137 then, too.
        ({"phase": "Failed", "exit": ended(137), "disruption": EVICTED}, FailureClass.DISRUPTION),
        ({"is_deleting": True, "disruption": EVICTED}, FailureClass.DISRUPTION),
        # A preemption that was announced and did not come is no failure.
        ({"disruption": EVICTED}, None),
        ({"phase": "Failed", "reason": "Evicted"}, FailureClass.DISRUPTION),
        ({"phase": "Failed", "reason": "NodeShutdown"}, FailureClass.DISRUPTION),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, FailureClass.DISRUPTION),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "shared-memory" exceeds the limit "512Mi".',
            },
            FailureClass.OUT_OF_MEMORY,
        ),
        (evicted('Usage of EmptyDir volume "tmp" exceeds the limit "2Gi".'), FailureClass.CRASH),
        (
            evicted("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."),
            FailureClass.CRASH,
        ),
        (
            evicted('Container trainer exceeded its local ephemeral storage limit "1Gi".'),
            FailureClass.CRASH,
        ),
        (evicted("The node was low on resource: memory."), FailureClass.DISRUPTION),
        ({"is_deleting": True}, FailureClass.POD_LOST),
        # Seen only after its time to stop was over, it is the same pod that somebody deletes.
        ({"is_deleting": True, "exit": ended(137)}, FailureClass.POD_LOST),
        ({"is_deleting": True, "exit": ended(143)}, FailureClass.POD_LOST),
        ({"is_deleting": True, "exit": ended(1)}, FailureClass.CRASH),
        (
            {"is_deleting": True, "exit": ended(137, reason="OOMKilled")},
            FailureClass.OUT_OF_MEMORY,
        ),
        (
            {"is_deleting": True, "exit": ended(137, record(FailureClass.CRASH))},
            FailureClass.CRASH,
        ),
        ({"phase": "Failed"}, FailureClass.POD_LOST),
        ({"phase": "Failed", "exit": ended(137, reason="OOMKilled")}, FailureClass.OUT_OF_MEMORY),
        ({"phase": "Failed", "exit": ended(137)}, FailureClass.CRASH),
        ({"phase": "Failed", "exit": ended(1)}, FailureClass.CRASH),
        ({"phase": "Failed", "exit": ended(7)}, FailureClass.UNKNOWN),
        ({"phase": "Failed", "exit": ended(80)}, FailureClass.DISRUPTION),
        ({"phase": "Failed", "exit": ended(85)}, FailureClass.HANG),
        (
            {"phase": "Failed", "exit": ended(89, record(FailureClass.CRASH))},
            FailureClass.CRASH,
        ),
    ],
)
def test_failure_of_a_pod(changes: dict[str, object], expected: FailureClass | None) -> None:
    failure = failure_of(replace(POD, **changes), job_uid=UID, now=NOW)  # type: ignore[arg-type]
    assert (failure.failure_class if failure else None) is expected


def test_end_without_a_record_names_the_image() -> None:
    pod = replace(POD, phase="Succeeded", exit=ended(0, reason="Completed"))
    failure = failure_of(pod, job_uid=UID, now=NOW)
    assert failure is not None
    assert failure.reason == "FinishedWithoutRecord"
    assert "workers.image" in failure.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback (most recent call last): secret text",
        "{}",
        record(FailureClass.CRASH, job_uid="another job"),
        record(FailureClass.CRASH, attempt=2),
        record(FailureClass.HANG),  # its code is not the container's
        " " * 5000 + record(FailureClass.CRASH),
    ],
)
def test_record_of_something_else_is_not_taken(text: str) -> None:
    """P11: what is not our record reaches no status."""
    exit_89 = ended(89, text)
    assert exit_record_of(replace(POD, exit=exit_89), exit_89, UID) is None
    failure = failure_of(replace(POD, phase="Failed", exit=exit_89), job_uid=UID, now=NOW)
    assert failure is not None
    assert failure.failure_class is FailureClass.CRASH
    assert "secret" not in failure.message


def test_record_is_kept_as_evidence() -> None:
    text = record(FailureClass.CRASH, rank=3, step=120, frames=["loop.py:10 step"])
    pod = replace(POD, phase="Failed", node="node-7", exit=ended(89, text))
    failure = failure_of(pod, job_uid=UID, now=NOW)
    assert failure is not None
    said = failure.as_status(situation())
    assert (said.rank, said.step, said.frames) == (3, 120, ["loop.py:10 step"])
    assert (said.node, said.exit_code, said.attempt) == ("node-7", 89, 1)
    assert said.message == "Pod tiny-1-0-0 on node node-7: told by the trainer"
    assert said.advice.startswith("Look at the frames and the pod's log; lastFailure.message")


def test_numbers_of_a_lying_record_are_bounded() -> None:
    text = record(FailureClass.CRASH, rank=-5, step=2**70)
    failure = failure_of(replace(POD, phase="Failed", exit=ended(89, text)), job_uid=UID, now=NOW)
    assert failure is not None
    said = failure.as_status(situation())
    assert said.rank == 0
    assert said.step is not None


def test_first_failure_is_the_cause_and_not_what_followed() -> None:
    """The pod that lost its peer is seen first; the peer's own record is the older one."""
    later = NOW + timedelta(seconds=1)
    lead, peer = running_gang(2)
    lead = replace(lead, phase="Failed", exit=ended(88, record(FailureClass.PEER_LOST, time=later)))
    peer = replace(
        peer, phase="Failed", exit=ended(86, record(FailureClass.HARDWARE, replica=1, time=later))
    )
    failure = first_failure(situation(pods=(lead, peer)))
    assert failure is not None
    assert failure.failure_class is FailureClass.HARDWARE


def test_earliest_of_two_causes_is_reported() -> None:
    earlier = NOW - timedelta(seconds=2)
    lead, peer = running_gang(2)
    lead = replace(lead, phase="Failed", exit=ended(89, record(FailureClass.CRASH)))
    hang = record(FailureClass.HANG, replica=1, time=earlier)
    peer = replace(peer, phase="Failed", exit=ended(85, hang))
    failure = first_failure(situation(pods=(lead, peer)))
    assert failure is not None
    assert failure.pod == peer.name


@pytest.mark.parametrize(
    ("seconds", "peer_lives", "is_told"),
    [
        (0.0, True, False),
        (ROOT_CAUSE_WAIT_SECONDS, True, True),
        (-3600.0, True, True),  # the clock of the operator was set back, or a node's is ahead
        (0.0, False, True),
    ],
)
def test_consequence_is_held_back_while_the_cause_may_show(
    seconds: float, peer_lives: bool, is_told: bool
) -> None:
    lead, peer = running_gang(2)
    lead = replace(lead, phase="Failed", exit=ended(88, record(FailureClass.PEER_LOST)))
    if not peer_lives:
        peer = replace(peer, phase="Failed", exit=ended(88))
    now = NOW + timedelta(seconds=seconds)
    found = situation(pods=(lead, peer), now=now)
    assert (first_failure(found) is not None) is is_told
    assert all_failures(found)


def test_absent_pod_is_lost_only_if_the_gang_was_complete() -> None:
    """A pod that was never made is made; one that ran and is not there has failed."""
    (lead, _) = running_gang(2)
    assert first_failure(situation(pods=(lead,), complete=False)) is None
    failure = first_failure(situation(pods=(lead,), complete=True))
    assert failure is not None
    assert failure.failure_class is FailureClass.POD_LOST
    assert failure.pod == "tiny-1-1-0"


@pytest.mark.parametrize(("answers", "expected"), [(False, C.POD_LOST), (True, C.PEER_LOST)])
def test_pod_that_its_peers_have_lost_is_the_cause(answers: bool, expected: C) -> None:
    """A node that is down says nothing; what its neighbours say of it is not the job's fault."""
    lead, peer = running_gang(2)
    lost = record(FailureClass.PEER_LOST, replica=1)
    peer = replace(peer, phase="Failed", exit=ended(88, lost))
    failure = first_failure(
        situation(
            pods=(lead, peer),
            report=report_of() if answers else None,
            now=NOW + timedelta(seconds=ROOT_CAUSE_WAIT_SECONDS),
        )
    )
    assert failure is not None
    assert failure.failure_class is expected
    assert failure.pod == (peer.name if answers else lead.name)
