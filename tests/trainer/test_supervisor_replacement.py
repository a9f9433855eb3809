"""Level 3: a pod is replaced alone, within the attempt; the others wait in place and rejoin.

The test is the operator: it writes the intents.
"""

from pathlib import Path

import pytest

from lmtraining_api import ExitCode, TrainerReport
from tests.trainer.supervisor_gangs import (
    STEPS,
    gang_of_two,
    reaped,
    replaced_pod,
    saved_step,
    start,
    successor_of,
    until_gang,
    until_step,
)
from tests.trainer.supervisor_pods import Pod, pods, until

pytestmark = pytest.mark.trainer

MENDS = {"roundsMax": 2}
"""Fewer than the pods that are replaced: they are not counted."""


def _stop(*gang: Pod) -> None:
    for pod in gang:
        pod.process.terminate()
    assert [pod.wait() for pod in gang] == [ExitCode.PREEMPTED] * len(gang)


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
        reaped(*made)


def _drained(pod: Pod, survivor: Pod) -> tuple[Pod, TrainerReport]:
    """Its successor, and the report of their first step."""
    pod.process.terminate()
    assert pod.wait() == ExitCode.PREEMPTED
    saved = pod.record().step
    successor = replaced_pod(pod, survivor)
    pair = sorted((survivor, successor), key=lambda one: one.replica)
    report = until_gang(pair[0], *pair)
    assert report.resumed_from_step == saved
    assert survivor.process.poll() is None
    return successor, report


def test_p1_a_pod_of_an_older_gang_is_not_met(tmp_path: Path) -> None:
    """A pod that was replaced and still lives, on a node that nobody reaches, knows the older table
    only: it asks the lead for a round, and is let into none."""
    lead, zombie = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    successor = successor_of(zombie)
    try:
        with pods(lead, zombie):
            start(lead, zombie)
            until(lambda: saved_step(lead), "a checkpoint")
            before = zombie.report()
            successor.start()
            for pod in (lead, successor):
                pod.intend(lead, successor)
            report = until_gang(lead, lead, successor)
            until_step(lead, report.step + 20)
            old = zombie.report()
            assert old is not None
            assert before is not None
            assert (old.round, old.gang) == (before.round, before.gang)
            assert zombie.process.poll() is None
            _stop(lead, successor)
            reaped(zombie)
    finally:
        reaped(lead, zombie, successor)
