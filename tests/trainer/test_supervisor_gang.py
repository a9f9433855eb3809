"""Two pods with real ranks, without a cluster: the whole way of a job, faults included."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, ExitRecord, FailureClass, TrainerReport
from tests.trainer.supervisor_gangs import (
    STEPS,
    gang_of_two,
    rank_of,
    saved_step,
    start,
    until_round,
)
from tests.trainer.supervisor_pods import Pod, pods, until

pytestmark = pytest.mark.trainer


def test_a_gang_of_two_pods_trains_to_the_end_and_stays_finished(tmp_path: Path) -> None:
    """The libraries are there before the starting gun, which costs a fork and not an import."""
    lead, other = gang_of_two(tmp_path)
    with pods(lead, other):
        lead.until_state("Waiting")
        lead.intend(lead)  # one of two
        until(lambda: "1 of 2" in (lead.report() or pytest.fail()).message, "replica 1 is missed")
        until(lambda: "libraries imported" in lead.log.read_text(), "the libraries")
        start(lead, other)
        assert lead.wait() == other.wait() == ExitCode.FINISHED
    lines = lead.log.read_text().splitlines()
    assert len([line for line in lines if line.endswith("Starting: 1 rank, round 1")]) == 1
    assert not [line for line in lines if "importing torch" in line]
    assert (lead.run_directory / "export" / "config.json").exists()
    again = gang_of_two(tmp_path, attempt=2)
    with pods(*again):
        start(*again)
        assert [pod.wait() for pod in again] == [ExitCode.FINISHED] * 2  # P2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One attempt of two pods, to its end."""

    first: TrainerReport
    """Of its first step."""
    codes: tuple[int, int]
    """Of the lead and of the other pod."""
    lead: ExitRecord
    other: ExitRecord | None
    """None where the pod was killed before it could leave one."""


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended, Ended]:
    """One run in three attempts: a rank is killed, one pod is told to stop, a pod is lost."""
    directory = tmp_path_factory.mktemp("attempts")

    def attempt(number: int, befall: Callable[[Pod], None]) -> Ended:
        lead, other = gang_of_two(directory, attempt=number, budget={"steps": STEPS})
        with pods(lead, other):
            start(lead, other)
            first = until_round(lead, 1)
            saved = first.resumed_from_step or 0
            until(lambda: (saved_step(lead) or 0) > saved, "a checkpoint of this attempt")
            befall(other)
            codes = lead.wait(), other.wait()
        record = other.record() if other.termination_log.read_bytes() else None
        return Ended(first=first, codes=codes, lead=lead.record(), other=record)

    return (
        attempt(1, lambda other: os.kill(rank_of(other), signal.SIGKILL)),
        attempt(2, lambda other: other.process.terminate()),
        attempt(3, lambda other: other.process.kill()),
    )


def test_a_killed_rank_is_the_cause_and_the_next_lead_says_so(
    attempts: tuple[Ended, Ended, Ended],
) -> None:
    killed, after, _ = attempts
    assert killed.codes == (ExitCode.PEER_LOST, ExitCode.CRASH)
    assert after.first.last_exit == killed.other  # the cause, though the lead had a record too
    assert after.first.resumed_from_step


def test_a_stopped_gang_saves_exits_80_everywhere_and_goes_on_from_there(
    attempts: tuple[Ended, Ended, Ended],
) -> None:
    """One pod is told; all of the gang must act on the same step."""
    _, stopped, after = attempts
    assert stopped.codes == (ExitCode.PREEMPTED, ExitCode.PREEMPTED)
    assert stopped.other is not None
    assert stopped.other.step == stopped.lead.step
    assert stopped.lead.step
    assert after.first.resumed_from_step == stopped.lead.step
    assert after.first.last_exit is not None
    assert after.first.last_exit.reason == "Preempted"


def test_a_lost_pod_is_the_others_consequence(attempts: tuple[Ended, Ended, Ended]) -> None:
    _, _, lost = attempts
    assert lost.codes == (ExitCode.PEER_LOST, -signal.SIGKILL)
    assert lost.lead.failure_class is FailureClass.PEER_LOST
