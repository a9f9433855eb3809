"""Level 3: a pod is replaced alone, within the attempt; the others wait in place and rejoin.

The test is the operator: it writes the intents.
"""

import json
import os
import signal
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, FailureClass, TrainerReport
from lmtraining_api.names import POD_REPLACED
from lmtraining_api.records import gang_digest
from tests.trainer.rank_support import assert_equal_tensors
from tests.trainer.supervisor_gangs import (
    STEPS,
    UNDISTURBED_STEPS,
    Tensors,
    exported,
    gang_of_two,
    saved_step,
    start,
    until_step,
)
from tests.trainer.supervisor_pods import Pod, pods, until

pytestmark = pytest.mark.trainer

MENDS = {"roundsMax": 2}
"""Fewer than the pods that are replaced: they are not counted."""


def _successor(pod: Pod, replaced: int = 1) -> Pod:
    """A pod of the same replica and attempt, as the operator makes it."""
    words = pod.command
    return Pod(
        pod.home.parent,
        None,
        json.loads((pod.home / "job.json").read_text())["spec"],
        replica=pod.replica,
        rendezvous_port=int(words[words.index("--rendezvous-port") + 1]),
        report_port=pod.port,
        replaced=replaced,
    )


def _replace(lost: Pod, survivor: Pod, replaced: int = 1) -> Pod:
    """What the operator does: tell who is left, make a pod, tell both."""
    lost.process.wait()
    survivor.intend(survivor)
    successor = _successor(lost, replaced)
    successor.start()
    for pod in (survivor, successor):
        pod.intend(survivor, successor)
    return successor


def _until_gang(lead: Pod, *gang: Pod) -> TrainerReport:
    """The report of the first step of exactly these pods."""
    digest = gang_digest(pod.uid for pod in gang)

    def look() -> TrainerReport | None:
        report = lead.report()
        trains = report is not None and report.first_step_time is not None
        return report if report is not None and trains and report.gang == digest else None

    return until(look, f"a step; the log:\n{lead.log.read_text()[-3000:]}")


def _stop(*gang: Pod) -> None:
    for pod in gang:
        pod.process.terminate()
    assert [pod.wait() for pod in gang] == [ExitCode.PREEMPTED] * len(gang)


def _reaped(*gang: Pod) -> None:
    for pod in gang:
        for process in pod.processes():
            os.kill(process, signal.SIGKILL)
        pod.process.wait()


def test_p7_lost_pods_end_in_the_same_weights(tmp_path: Path, undisturbed: Tensors) -> None:
    """The worker, then the lead; the other stays and rejoins."""
    lead, other = gang_of_two(tmp_path, stability=MENDS, budget={"steps": UNDISTURBED_STEPS})
    made = [lead, other]
    try:
        with pods(lead, other):
            start(lead, other)
            rounds = [until_step(lead, 20).round]
            other.process.kill()
            second = _replace(other, lead)
            made.append(second)
            report = _until_gang(lead, lead, second)
            rounds.append(report.round)
            assert report.last_fault is not None
            assert report.last_fault.reason == POD_REPLACED
            assert report.last_fault.failure_class is FailureClass.POD_LOST
            assert (report.resumed_from_step or 0) > 0

            until_step(lead, 60)
            lead.process.kill()
            third = _replace(lead, second)
            made.append(third)
            rounds.append(_until_gang(third, third, second).round)
            assert rounds == sorted(set(rounds)), "P1: a round is never gone back to"
            assert [pod.wait() for pod in (third, second)] == [ExitCode.FINISHED] * 2
    finally:
        _reaped(*made)
    assert_equal_tensors(undisturbed, exported(lead))


def test_a_drained_pod_saves_and_the_other_stays(tmp_path: Path) -> None:
    """Nothing is done twice: the checkpoint of the drain is what its successor goes on from. First
    the worker, then the lead."""
    lead, other = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    made = [lead, other]
    try:
        with pods(lead, other):
            start(lead, other)
            until_step(lead, 10)
            successor, resumed = _drained(other, lead)
            made.append(successor)
            until_step(lead, resumed.step + 1)
            new_lead, _ = _drained(lead, successor)
            made.append(new_lead)
            _stop(new_lead, successor)
    finally:
        _reaped(*made)


def _drained(pod: Pod, survivor: Pod) -> tuple[Pod, TrainerReport]:
    """Its successor, and the report of their first step."""
    pod.process.terminate()
    assert pod.wait() == ExitCode.PREEMPTED
    saved = pod.record().step
    successor = _replace(pod, survivor)
    pair = sorted((survivor, successor), key=lambda one: one.replica)
    report = _until_gang(pair[0], *pair)
    assert report.resumed_from_step == saved
    assert survivor.process.poll() is None
    return successor, report


def test_p1_a_pod_of_an_older_gang_is_not_met(tmp_path: Path) -> None:
    """A pod that was replaced and still lives, on a node that nobody reaches, knows the older table
    only: it asks the lead for a round, and is let into none."""
    lead, zombie = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    successor = _successor(zombie)
    try:
        with pods(lead, zombie):
            start(lead, zombie)
            until(lambda: saved_step(lead), "a checkpoint")
            before = zombie.report()
            successor.start()
            for pod in (lead, successor):
                pod.intend(lead, successor)
            report = _until_gang(lead, lead, successor)
            until_step(lead, report.step + 20)
            old = zombie.report()
            assert old is not None
            assert before is not None
            assert (old.round, old.gang) == (before.round, before.gang)
            assert zombie.process.poll() is None
            _stop(lead, successor)
            _reaped(zombie)
    finally:
        _reaped(lead, zombie, successor)


def test_a_pod_waits_while_the_operator_replaces_its_lead(tmp_path: Path) -> None:
    """The operator says who is left: that is no lead, and the pod says what it waits for."""
    lead, other = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until(lambda: saved_step(lead), "a checkpoint")
        lead.process.kill()
        other.intend(other)
        report = other.until_state("Waiting")
        assert "waiting for 1 of 2 pods: replica 0" in report.message
        other.process.terminate()
        assert other.wait() in (ExitCode.PEER_LOST, ExitCode.PREEMPTED)
