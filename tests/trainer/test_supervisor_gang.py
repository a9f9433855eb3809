"""Two pods with real ranks, without a cluster: the whole way of a job, faults included."""

import os
import signal
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, FailureClass
from tests.trainer.supervisor_gangs import (
    STEPS,
    gang_of_two,
    rank_of,
    saved_step,
    start,
    until_step,
)
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec, until

pytestmark = pytest.mark.trainer


def test_a_gang_of_two_pods_trains_to_the_end_and_stays_finished(tmp_path: Path) -> None:
    lead, other = gang_of_two(tmp_path)
    with pods(lead, other):
        lead.until_state("Waiting")
        lead.intend(lead)  # one of two
        until(lambda: "1 of 2" in (lead.report() or pytest.fail()).message, "replica 1 is missed")
        start(lead, other)
        assert lead.wait() == other.wait() == ExitCode.FINISHED
    assert (lead.run_directory / "export" / "config.json").exists()
    again = gang_of_two(tmp_path, attempt=2)
    with pods(*again):
        start(*again)
        assert [pod.wait() for pod in again] == [ExitCode.FINISHED] * 2  # P2


def test_a_stopped_gang_saves_exits_80_everywhere_and_goes_on_from_there(tmp_path: Path) -> None:
    lead, other = gang_of_two(tmp_path, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until_step(lead, 10)
        other.process.terminate()  # one pod is told; all of the gang must act on the same step
        assert lead.wait() == other.wait() == ExitCode.PREEMPTED
    saved = lead.record().step
    assert saved
    assert other.record().step == saved
    after = gang_of_two(tmp_path, attempt=2, budget={"steps": STEPS})
    with pods(*after):
        start(*after)
        report = until_step(after[0], saved + 1)
        assert report.resumed_from_step == saved
        assert report.last_exit is not None
        assert report.last_exit.reason == "Preempted"
        for pod in after:
            pod.process.terminate()
        assert [pod.wait() for pod in after] == [ExitCode.PREEMPTED] * 2


def test_a_lost_pod_is_the_others_consequence(tmp_path: Path) -> None:
    lead, other = gang_of_two(tmp_path, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until(lambda: saved_step(lead), "a checkpoint")
        other.process.kill()
        assert lead.wait() == ExitCode.PEER_LOST
    record = lead.record()
    assert record.failure_class is FailureClass.PEER_LOST


def test_a_killed_rank_is_the_cause_and_the_next_lead_says_so(tmp_path: Path) -> None:
    lead, other = gang_of_two(tmp_path, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until(lambda: saved_step(lead), "a checkpoint")
        os.kill(rank_of(other), signal.SIGKILL)
        assert other.wait() == ExitCode.CRASH
        assert lead.wait() == ExitCode.PEER_LOST
    after = gang_of_two(tmp_path, attempt=2, budget={"steps": STEPS})
    with pods(*after):
        start(*after)
        report = until_step(after[0], 1)
        assert report.last_exit == other.record()  # the cause, though the lead had a record too
        assert report.resumed_from_step
        for pod in after:
            pod.process.terminate()
        for pod in after:
            pod.wait()


def test_the_start_of_the_ranks_costs_a_fork_and_not_an_import(tmp_path: Path) -> None:
    """From the starting gun to a rank's first word; the libraries were there before."""
    job = spec(corpus(tmp_path / "corpus"))
    pod = Pod(tmp_path, None, job)
    with pods(pod):
        until(lambda: "libraries imported" in pod.log.read_text(), "the libraries")
        pod.intend()
        assert pod.wait() == ExitCode.FINISHED
    lines = [
        line
        for line in pod.log.read_text().splitlines()
        if line.endswith("Starting: 1 rank, round 1")
    ]
    assert len(lines) == 1
    assert "importing torch" not in pod.log.read_text()
