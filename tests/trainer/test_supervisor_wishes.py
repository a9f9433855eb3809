"""A wish in the intent reaches rank 0 of a pod that trains; real processes."""

import os
import signal
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, TrainerReport
from tests.trainer.supervisor_pods import Pod, pods, spec, until

pytestmark = pytest.mark.trainer


def test_a_wish_reaches_the_lead_rank_and_outlives_it(tmp_path: Path) -> None:
    """No rank is started anew for it; the ranks of the next round know it from the beginning."""
    job = spec(ranksPerReplica=1) | {"stability": {"roundsMax": 1}}
    pod = Pod(tmp_path, "says_what_is_wanted", job)

    def told(steps: int, number: int) -> TrainerReport:
        def look() -> TrainerReport | None:
            report = pod.report()
            is_so = report is not None and (report.total_steps, report.round) == (steps, number)
            return report if is_so else None

        return until(look, f"{steps} steps in round {number}")

    with pods(pod):
        pod.intend(wishes={"generation": 1, "budgetSteps": 40})
        told(40, 1)
        rank = pod.rank_process(0)
        pod.intend(wishes={"generation": 2, "budgetSteps": 50})
        told(50, 1)
        assert pod.rank_process(0) == rank
        os.kill(rank, signal.SIGKILL)
        told(50, 2)
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED
