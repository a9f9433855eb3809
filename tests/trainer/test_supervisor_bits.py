"""P7: whatever is killed, a gang ends with the weights of one that nothing happens to."""

import os
import signal
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, FailureClass
from lmtraining_api.names import POD_REPLACED
from tests.trainer.rank_support import assert_equal_tensors
from tests.trainer.supervisor_gangs import (
    Tensors,
    exported,
    gang_of_two,
    rank_of,
    reaped,
    replaced_pod,
    saved_step,
    start,
    until_gang,
    until_round,
    until_step,
)
from tests.trainer.supervisor_pods import pods, until

pytestmark = pytest.mark.trainer

STEPS = 200


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """What two pods end with that nothing happens to."""
    gang = gang_of_two(tmp_path_factory.mktemp("undisturbed"), budget={"steps": STEPS})
    with pods(*gang):
        start(*gang)
        assert [pod.wait() for pod in gang] == [ExitCode.FINISHED] * 2
    return exported(gang[0])


def test_p7_kills_in_place_cost_a_round_each_no_pod_and_no_bit(
    tmp_path: Path, undisturbed: Tensors
) -> None:
    gang = gang_of_two(tmp_path, stability={"roundsMax": 10}, budget={"steps": STEPS})
    lead = gang[0]
    with pods(*gang):
        start(*gang)
        for number, (victim, step) in enumerate(((1, 20), (0, 60), (1, 100)), 2):
            until_step(lead, step)
            saved = until(lambda: saved_step(lead), "a checkpoint")
            os.kill(rank_of(gang[victim]), signal.SIGKILL)
            report = until_round(lead, number)
            assert report.resumed_from_step is not None
            assert report.resumed_from_step >= saved
            assert report.last_fault is not None
            assert (report.attempt, report.last_fault.round) == (1, number - 1)
            assert report.last_fault.failure_class is FailureClass.CRASH  # wherever it was
            assert f"rank {victim} was killed by SIGKILL" in report.last_fault.message
            assert gang[1].report().round == number  # type: ignore[union-attr]
        assert [pod.wait() for pod in gang] == [ExitCode.FINISHED] * 2
    assert lead.record().round == 4
    assert_equal_tensors(undisturbed, exported(lead))


def test_p7_lost_pods_end_in_the_same_weights(tmp_path: Path, undisturbed: Tensors) -> None:
    """The worker, then the lead; the other stays and rejoins."""
    lead, other = gang_of_two(tmp_path, stability={"roundsMax": 2}, budget={"steps": STEPS})
    made = [lead, other]
    try:
        with pods(lead, other):
            start(lead, other)
            rounds = [until_step(lead, 20).round]
            other.process.kill()
            second = replaced_pod(other, lead)
            made.append(second)
            report = until_gang(lead, lead, second)
            rounds.append(report.round)
            assert report.last_fault is not None
            assert report.last_fault.reason == POD_REPLACED
            assert report.last_fault.failure_class is FailureClass.POD_LOST
            assert (report.resumed_from_step or 0) > 0

            until_step(lead, 60)
            lead.process.kill()
            third = replaced_pod(lead, second)
            made.append(third)
            rounds.append(until_gang(third, third, second).round)
            assert rounds == sorted(set(rounds)), "P1: a round is never gone back to"
            assert [pod.wait() for pod in (third, second)] == [ExitCode.FINISHED] * 2
    finally:
        reaped(*made)
    assert_equal_tensors(undisturbed, exported(lead))
