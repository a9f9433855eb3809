"""Ranks that die or hang are started again inside their pods: no new pod, no operator."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode, FailureClass, TrainerReport
from lmtraining_trainer.files import read_json, write_json
from lmtraining_trainer.supervisor.hangs import HANGS
from tests.soak.rank import storm_directory
from tests.soak.storm import gang_of
from tests.trainer.rank_support import assert_equal_tensors
from tests.trainer.supervisor_gangs import (
    UNDISTURBED_STEPS,
    Tensors,
    exported,
    gang_of_two,
    rank_of,
    ranks_of,
    saved_step,
    start,
    until_step,
)
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec, until

pytestmark = pytest.mark.trainer

STEPS = 100_000
"""More than any test waits for."""
MENDS = {"roundsMax": 10}


def _until_round(lead: Pod, number: int) -> TrainerReport:
    """The report of the first step of that round."""

    def look() -> TrainerReport | None:
        report = lead.report()
        if report is None or report.round < number or report.first_step_time is None:
            return None
        return report

    return until(look, f"round {number}; the log:\n{lead.log.read_text()[-3000:]}")


def _stopped(*gang: Pod) -> None:
    for pod in gang:
        pod.process.terminate()
    assert [pod.wait() for pod in gang] == [ExitCode.PREEMPTED] * len(gang)


def test_p7_kills_in_place_cost_a_round_each_no_pod_and_no_bit(
    tmp_path: Path, undisturbed: Tensors
) -> None:
    gang = gang_of_two(tmp_path, stability=MENDS, budget={"steps": UNDISTURBED_STEPS})
    lead = gang[0]
    with pods(*gang):
        start(*gang)
        for number, (victim, step) in enumerate(((1, 20), (0, 60), (1, 100)), 2):
            until_step(lead, step)
            saved = until(lambda: saved_step(lead), "a checkpoint")
            os.kill(rank_of(gang[victim]), signal.SIGKILL)
            report = _until_round(lead, number)
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


def test_a_rank_that_hangs_is_found_and_its_stack_is_kept(tmp_path: Path) -> None:
    gang = gang_of_two(tmp_path, stability={**MENDS, "silenceSeconds": 2}, budget={"steps": STEPS})
    with pods(*gang):
        start(*gang)
        for number, victim in enumerate((1, 0), 2):
            until_step(gang[0], 20)
            os.kill(rank_of(gang[victim]), signal.SIGSTOP)
            assert _until_round(gang[0], number).last_fault is not None
            log = gang[victim].log.read_text()
            assert f"rank {victim} said nothing for" in log
            assert "it answered no signal" in log
            blamed = [f"rank {victim} said nothing" in pod.log.read_text() for pod in gang]
            assert blamed == [pod.replica == victim for pod in gang]
        _stopped(*gang)


def test_the_stacks_of_a_hang_are_in_the_run_directory(tmp_path: Path) -> None:
    job = spec(corpus(tmp_path / "corpus"), ranksPerReplica=2)
    job["stability"] = {**MENDS, "silenceSeconds": 2}
    job["training"]["budget"] = {"steps": STEPS}
    pod = Pod(tmp_path, None, job)
    with pods(pod):
        pod.intend()
        until_step(pod, 20)
        victim, other = ranks_of(pod)
        os.kill(victim, signal.SIGSTOP)
        fault = _until_round(pod, 2).last_fault
        assert fault is not None
        assert fault.rank is not None
        kept = {path.name: path for path in (pod.run_directory / HANGS / "1-1").iterdir()}
        stacks = {name for name in kept if not name.endswith(".py-spy.txt")}
        assert stacks == {f"rank-{1 - fault.rank}.txt"}, "the one that could answer"
        assert f"rank-{fault.rank}.py-spy.txt" in kept, "what was seen of the other, or why not"
        assert "Current thread" in kept[f"rank-{1 - fault.rank}.txt"].read_text()
        assert other not in pod.processes(), "all ranks start again"
        _stopped(pod)


def test_the_same_fault_at_the_same_step_is_not_tried_for_ever(tmp_path: Path) -> None:
    job_of = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    lead = Pod(tmp_path / "one", "raises", _in_one_pod(job_of[0]))
    with pods(lead):
        lead.intend()
        assert lead.wait() == ExitCode.CRASH
    assert lead.record().round == 3
    assert "RankRaised" in lead.record().reason


@pytest.mark.parametrize(("victim", "phase"), [(1, "Preparing"), (0, "Starting")])
def test_a_rank_that_dies_before_the_ranks_are_connected_costs_a_round_too(
    tmp_path: Path, victim: int, phase: str
) -> None:
    """No connection breaks then, and the others would wait for minutes: for rank 1 while rank 0
    prepares the data, or in the store of the lead's next round, which knows nothing of theirs."""
    job = spec(corpus(tmp_path / "corpus"), replicas=2)
    job["stability"] = MENDS
    gang = gang_of(tmp_path, job, attempt=1)
    storm = storm_directory(gang[0].run_directory)
    storm.mkdir(parents=True)
    plan = {"number": 1, "bad_positions": [], "instants": {phase: 1}}
    write_json(storm / "plan.json", plan)
    with pods(*gang):
        for pod in gang:
            pod.intend(*gang)
        until(lambda: (storm / "held-1.json").exists() and (storm / "life-1.json").exists(),
              "rank 0 is held, and rank 1 waits for it")  # fmt: skip
        write_json(storm / "plan.json", plan | {"number": 2, "instants": {}})
        os.kill(read_json(storm / f"life-{victim}.json")["rank"], signal.SIGKILL)  # type: ignore[index]
        (storm / "released-1").touch()
        assert [pod.wait() for pod in gang] == [ExitCode.FINISHED] * 2
    assert gang[0].record().round == 2


def test_a_rank_that_met_the_lead_of_the_round_before_is_not_waited_for(tmp_path: Path) -> None:
    job = spec(replicas=2) | {"stability": MENDS}
    gang = gang_of(tmp_path, job, attempt=1, function="misses_its_lead")
    with pods(*gang):
        for pod in gang:
            pod.intend(*gang)
        for pod in gang:
            pod.rank_process(pod.replica)  # noted in round 2 alone
        _stopped(*gang)
    assert [pod.record().round for pod in gang] == [2, 2]


def test_what_another_start_cannot_mend_is_not_tried(tmp_path: Path) -> None:
    gang = gang_of_two(tmp_path, stability=MENDS)
    pod = Pod(tmp_path / "one", "diverges", _in_one_pod(gang[0]))
    with pods(pod):
        pod.intend()
        assert pod.wait() == ExitCode.DIVERGED
    assert pod.record().round == 1


def test_a_lead_that_waits_for_a_lost_pod_stops_at_once(tmp_path: Path) -> None:
    """The operator replaces the gang then; a lead that went on waiting would hold it up."""
    lead, other = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until(lambda: saved_step(lead), "a checkpoint")
        other.process.kill()
        until(lambda: (r := lead.report()) is not None and r.round == 2, "round 2")
        lead.process.terminate()
        assert lead.process.wait(5.0) == ExitCode.PREEMPTED


def test_a_pod_whose_lead_is_gone_stops_at_once_too(tmp_path: Path) -> None:
    lead, other = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    with pods(lead, other):
        start(lead, other)
        until(lambda: saved_step(lead), "a checkpoint")
        lead.process.kill()
        until(lambda: "another round" in other.log.read_text(), "the other pod has noticed")
        other.process.terminate()
        assert other.process.wait(5.0) == ExitCode.PEER_LOST


def _in_one_pod(pod: Pod) -> dict[str, Any]:
    import json

    spec: dict[str, Any] = json.loads((pod.home / "job.json").read_text())["spec"]
    return spec | {"workers": {"ranksPerReplica": 2}}
