"""Level 3: a pod is replaced alone, within the attempt; the others wait in place and rejoin.

The test is the operator: it writes the intents.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lmtraining_api import ExitCode, FailureClass, TrainerReport
from lmtraining_api.names import POD_REPLACED
from lmtraining_api.records import gang_digest
from tests.trainer.rank_support import assert_equal_tensors
from tests.trainer.supervisor_pods import Pod, pods, until
from tests.trainer.test_supervisor_gang import STEPS, _gang, _saved_step, _start, _until_step

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


def test_p7_lost_pods_end_in_the_same_weights(tmp_path: Path) -> None:
    """The worker, then the lead, then the worker again; the others stay and rejoin."""
    straight = _gang(tmp_path / "straight", budget={"steps": 150})
    with pods(*straight):
        _start(*straight)
        assert [pod.wait() for pod in straight] == [ExitCode.FINISHED] * 2
    lead, other = _gang(tmp_path / "lost", stability=MENDS, budget={"steps": 150})
    made = [lead, other]
    try:
        with pods(lead, other):
            _start(lead, other)
            rounds = [_until_step(lead, 20).round]
            other.process.kill()
            second = _replace(other, lead)
            made.append(second)
            report = _until_gang(lead, lead, second)
            rounds.append(report.round)
            assert report.last_fault is not None
            assert report.last_fault.reason == POD_REPLACED
            assert report.last_fault.failure_class is FailureClass.POD_LOST
            assert (report.resumed_from_step or 0) > 0

            _until_step(lead, 60)
            lead.process.kill()
            third = _replace(lead, second)
            made.append(third)
            rounds.append(_until_gang(third, third, second).round)

            _until_step(third, 100)
            second.process.kill()
            fourth = _replace(second, third, replaced=2)
            made.append(fourth)
            rounds.append(_until_gang(third, third, fourth).round)
            assert rounds == sorted(set(rounds)), "P1: a round is never gone back to"
            assert [pod.wait() for pod in (third, fourth)] == [ExitCode.FINISHED] * 2
    finally:
        _reaped(*made)
    assert_equal_tensors(
        *(
            load_file(gang[0].run_directory / "export" / "model.safetensors")
            for gang in (straight, (lead, other))
        )
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_drained_pod_saves_and_the_other_stays(tmp_path: Path, victim: int) -> None:
    """Nothing is done twice: the checkpoint of the drain is what its successor goes on from."""
    gang = _gang(tmp_path, stability=MENDS, budget={"steps": STEPS})
    drained, survivor = gang[victim], gang[1 - victim]
    made = list(gang)
    try:
        with pods(*gang):
            _start(*gang)
            _until_step(gang[0], 10)
            drained.process.terminate()
            assert drained.wait() == ExitCode.PREEMPTED
            saved = drained.record().step
            successor = _replace(drained, survivor)
            made.append(successor)
            pair = (survivor, successor)
            report = _until_gang(survivor if victim else successor, *pair)
            assert report.resumed_from_step == saved
            assert survivor.process.poll() is None
            _stop(*pair)
    finally:
        _reaped(*made)


def test_p1_a_pod_of_an_older_gang_is_not_met(tmp_path: Path) -> None:
    """A pod that was replaced and still lives, on a node that nobody reaches, knows the older table
    only: it asks the lead for a round, and is let into none."""
    lead, zombie = _gang(tmp_path, stability=MENDS, budget={"steps": STEPS})
    successor = _successor(zombie)
    try:
        with pods(lead, zombie):
            _start(lead, zombie)
            until(lambda: _saved_step(lead), "a checkpoint")
            before = zombie.report()
            successor.start()
            for pod in (lead, successor):
                pod.intend(lead, successor)
            report = _until_gang(lead, lead, successor)
            _until_step(lead, report.step + 20)
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
    lead, other = _gang(tmp_path, stability=MENDS, budget={"steps": STEPS})
    with pods(lead, other):
        _start(lead, other)
        until(lambda: _saved_step(lead), "a checkpoint")
        lead.process.kill()
        other.intend(other)
        report = other.until_state("Waiting")
        assert "waiting for 1 of 2 pods: replica 0" in report.message
        other.process.terminate()
        assert other.wait() in (ExitCode.PEER_LOST, ExitCode.PREEMPTED)
