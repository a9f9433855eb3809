"""Ranks that hang in a phase of a real step: found, named with it, and nobody else."""

import re
from pathlib import Path

import pytest

from lmtraining_api import FailureClass, FaultReport
from lmtraining_trainer.supervisor.hangs import HANGS as KEPT
from tests.trainer.hanging_rank import ENV_PLAN, HANGS, VICTIM
from tests.trainer.supervisor_gangs import STEPS, ranks_of, until_round
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec
from tests.trainer.test_supervisor_rounds import MENDS, _stopped

pytestmark = pytest.mark.trainer

PLAN = (
    ("data", "stopped"),
    ("forward", "stopped"),
    ("collective", "stopped"),
    ("optimizer", "stopped"),
    ("eval", "stopped"),
    ("data", "spinning"),
    ("forward", "spinning"),
)


def test_a_rank_that_hangs_is_found_in_time_with_its_phase(tmp_path: Path) -> None:
    """In one pod, so that all evidence is at hand; one hang a round."""
    job = spec(corpus(tmp_path / "corpus"), ranksPerReplica=2)
    job["stability"] = {**MENDS, "silenceSeconds": 2}
    job["training"]["budget"] = {"steps": STEPS}
    pod = Pod(tmp_path, HANGS, job)
    pod.environment[ENV_PLAN] = ",".join(f"{phase}:{how}" for phase, how in PLAN)
    pod.environment["PATH"] = py_spy(tmp_path / "bin")
    with pods(pod):
        pod.intend()
        before: set[int] = set()
        for number, (phase, how) in enumerate(PLAN, 1):
            fault = until_round(pod, number + 1).last_fault
            assert fault is not None
            assert_told(fault, phase, answers=how == "spinning")
            evidence = pod.run_directory / KEPT / f"1-{number}"
            kept = {path.name for path in evidence.iterdir()}
            stacks = {"rank-0.txt", "rank-1.txt"} if how == "spinning" else {"rank-0.txt"}
            assert kept == {*stacks, "rank-0.py-spy.txt", "rank-1.py-spy.txt"}
            assert all("Current thread" in (evidence / name).read_text() for name in stacks)
            now = set(ranks_of(pod))
            assert not now & before, "all ranks start again"
            before = now
        _stopped(pod)


def assert_told(fault: FaultReport, phase: str, *, answers: bool) -> None:
    """That the victim is blamed, with its phase, and where all ranks were."""
    assert (fault.failure_class, fault.rank) == (FailureClass.HANG, VICTIM), fault.message
    words = rf"rank {VICTIM} said nothing for ([\d.]+) s in {phase}; limit ([\d.]+) s"
    told = re.search(words, fault.message)
    assert told is not None, fault.message
    seconds, limit = (float(number) for number in told.groups())
    assert seconds >= limit  # how soon after it is a figure, not a promise
    phases = {each.rank: each.phase for each in fault.ranks}
    frames = {each.rank: each.frame for each in fault.ranks}
    assert phases[VICTIM] == phase
    assert bool(frames[VICTIM]) == answers
    assert re.fullmatch(r"\S+:\d+ \S+", frames[1 - VICTIM])


def py_spy(directory: Path) -> str:
    """A PATH with a py-spy that sees nothing."""
    directory.mkdir()
    executable = directory / "py-spy"
    executable.write_text("#!/bin/sh\necho Permission denied; exit 1\n")
    executable.chmod(0o755)
    return f"{directory}:/usr/bin:/bin"
