"""Ranks that die or hang are started again inside their pods: no new pod, no operator."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode
from lmtraining_trainer.files import read_json, write_json
from tests.soak.rank import storm_directory
from tests.soak.storm import gang_of
from tests.trainer.supervisor_gangs import (
    STEPS,
    gang_of_two,
    rank_of,
    saved_step,
    start,
    until_round,
    until_step,
)
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec, until
from tests.trainer.supervisor_ranks import PEER_LOST

pytestmark = pytest.mark.trainer

MENDS = {"roundsMax": 10}


def _stopped(*gang: Pod) -> None:
    for pod in gang:
        pod.process.terminate()
    assert [pod.wait() for pod in gang] == [ExitCode.PREEMPTED] * len(gang)


def test_a_rank_that_hangs_is_found_and_its_stack_is_kept(tmp_path: Path) -> None:
    gang = gang_of_two(tmp_path, stability={**MENDS, "silenceSeconds": 2}, budget={"steps": STEPS})
    with pods(*gang):
        start(*gang)
        for number, victim in enumerate((1, 0), 2):
            until_step(gang[0], 20)
            os.kill(rank_of(gang[victim]), signal.SIGSTOP)
            assert until_round(gang[0], number).last_fault is not None
            log = gang[victim].log.read_text()
            assert f"rank {victim} said nothing for" in log
            assert "it answered no signal" in log
            blamed = [f"rank {victim} said nothing" in pod.log.read_text() for pod in gang]
            assert blamed == [pod.replica == victim for pod in gang]
        _stopped(*gang)


def test_the_same_fault_at_the_same_step_is_not_tried_for_ever(tmp_path: Path) -> None:
    job_of = gang_of_two(tmp_path, stability=MENDS, budget={"steps": STEPS})
    lead = Pod(tmp_path / "one", "raises", _in_one_pod(job_of[0]))
    with pods(lead):
        lead.intend()
        assert lead.wait() == ExitCode.CRASH
    assert lead.record().round == 3
    assert "RankRaised" in lead.record().reason


STRIKES = ((0, "Starting"), (1, "Preparing"))
"""Which rank is killed in which phase of rank 0, a round each."""


def test_a_rank_that_dies_before_the_ranks_are_connected_costs_a_round_too(tmp_path: Path) -> None:
    """No connection breaks then, and the others would wait for minutes: in the store of the lead's
    next round, which knows nothing of theirs, or for rank 1 while rank 0 prepares the data."""
    job = spec(corpus(tmp_path / "corpus"), replicas=2)
    job["stability"] = MENDS
    gang = gang_of(tmp_path, job, attempt=1)
    storm = storm_directory(gang[0].run_directory)
    storm.mkdir(parents=True)

    def aim(number: int) -> None:
        instants = {STRIKES[number - 1][1]: 1} if number <= len(STRIKES) else {}
        plan = {"number": number, "bad_positions": [], "instants": instants}
        write_json(storm / "plan.json", plan)

    def life(rank: int, number: int) -> dict[str, Any] | None:
        """Of the rank in that round, once it is there."""
        path = storm / f"life-{rank}.json"
        found: Any = read_json(path) if path.exists() else None
        return found if found and found["gang"] == [1, number] else None

    aim(1)
    with pods(*gang):
        start(*gang)
        for number, (victim, phase) in enumerate(STRIKES, 1):
            until((storm / f"held-{number}.json").exists, f"rank 0 is held, {phase}")
            waiting = until(lambda number=number: life(1, number), "rank 1 waits for it")  # type: ignore[misc]
            struck = waiting if victim else life(0, number)
            assert struck is not None
            aim(number + 1)
            os.kill(struck["rank"], signal.SIGKILL)
            (storm / f"released-{number}").touch()
        assert [pod.wait() for pod in gang] == [ExitCode.FINISHED] * 2
    assert gang[0].record().round == 1 + len(STRIKES)


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
    lead, other = _gang_that_can_lose_a_pod(tmp_path)
    with pods(lead, other):
        _lost(lead, start_of=(lead, other))
        until(lambda: "another round" in other.log.read_text(), "the other pod has noticed")
        other.process.terminate()
        assert other.process.wait(5.0) == ExitCode.PEER_LOST


def test_a_pod_waits_while_the_operator_replaces_its_lead(tmp_path: Path) -> None:
    """The operator says who is left: that is no lead, and the pod says what it waits for."""
    lead, other = _gang_that_can_lose_a_pod(tmp_path)
    with pods(lead, other):
        _lost(lead, start_of=(lead, other))
        other.intend(other)
        report = other.until_state("Waiting")
        assert "waiting for 1 of 2 pods: replica 0" in report.message
        other.process.terminate()
        assert other.wait() in (ExitCode.PEER_LOST, ExitCode.PREEMPTED)


def _gang_that_can_lose_a_pod(directory: Path) -> tuple[Pod, ...]:
    job = spec(replicas=2) | {"stability": MENDS}
    return gang_of(directory, job, attempt=1, function="hears_of_a_lost_peer")


def _lost(pod: Pod, *, start_of: tuple[Pod, Pod]) -> None:
    """Kill the pod once all train; the other's rank hears of it."""
    start(*start_of)
    for each in start_of:
        each.until_state("Training")
    pod.process.kill()
    pod.process.wait()
    (pod.run_directory / PEER_LOST).touch()


def _in_one_pod(pod: Pod) -> dict[str, Any]:
    import json

    spec: dict[str, Any] = json.loads((pod.home / "job.json").read_text())["spec"]
    return spec | {"workers": {"ranksPerReplica": 2}}
