"""Ranks that hang in a phase of a real step: found in time, named with it, and nobody else."""

import re
from pathlib import Path

import pytest

from lmtraining_api import FailureClass, FaultReport
from lmtraining_trainer.supervisor.hang_watch import TOGETHER_SECONDS
from lmtraining_trainer.supervisor.hangs import HANGS as KEPT
from tests.trainer.hanging_rank import ENV_HOW, ENV_PHASE, HANGS, VICTIM
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec
from tests.trainer.test_supervisor_rounds import MENDS, STEPS, _stopped, _until_round

pytestmark = pytest.mark.trainer

FOUND_WITHIN_SECONDS = 1.0
"""After the limit."""
assert TOGETHER_SECONDS < FOUND_WITHIN_SECONDS


def hung(directory: Path, phase: str, how: str) -> tuple[FaultReport, Pod]:
    """Two ranks of a pod, of which one hangs; what the report says of it once they go on."""
    job = spec(corpus(directory / "corpus"), ranksPerReplica=2)
    job["stability"] = {**MENDS, "silenceSeconds": 2}
    job["training"]["budget"] = {"steps": STEPS}
    pod = Pod(directory, HANGS, job)
    pod.environment |= {ENV_PHASE: phase, ENV_HOW: how}
    with pods(pod):
        pod.intend()
        fault = _until_round(pod, 2).last_fault
        assert fault is not None
        _stopped(pod)
    return fault, pod


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("data", "stopped"),
        ("forward", "stopped"),
        ("collective", "stopped"),
        ("optimizer", "stopped"),
        ("eval", "stopped"),
        ("data", "spinning"),
        ("forward", "spinning"),
    ],
)
def test_a_rank_that_hangs_is_found_in_time_with_its_phase(
    tmp_path: Path, phase: str, how: str
) -> None:
    fault, pod = hung(tmp_path, phase, how)
    assert (fault.failure_class, fault.rank) == (FailureClass.HANG, VICTIM), fault.message
    said = re.search(rf"rank 1 said nothing for ([\d.]+) s in {phase}; limit ([\d.]+) s",
                     fault.message)  # fmt: skip
    assert said is not None, fault.message
    seconds, limit = (float(number) for number in said.groups())
    assert limit <= seconds <= limit + FOUND_WITHIN_SECONDS
    assert {each.rank: each.phase for each in fault.ranks}[VICTIM] == phase
    frames = {each.rank: each.frame for each in fault.ranks}
    assert bool(frames[VICTIM]) == (how == "spinning")
    assert re.fullmatch(r"\S+:\d+ \S+", frames[1 - VICTIM])
    kept = {path.name for path in (pod.run_directory / KEPT / "1-1").iterdir()}
    assert "rank-0.txt" in kept
