"""How long a run is, whichever unit its budget has."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.rank_support import Faults, job_of, run_alone, tiny_spec, write_text

pytestmark = pytest.mark.trainer

SMALL = {"config": {"layers": 1, "hiddenSize": 16, "heads": 2}}


def job_in(directory: Path, budget: dict[str, Any]) -> Any:
    uri = write_text(directory / "text.jsonl", documents=20)
    return job_of(tiny_spec(uri, model=SMALL, training={"budget": budget}), directory)


def test_tokens_are_rounded_up_to_steps_and_may_grow(tmp_path: Path) -> None:
    outcome = run_alone(job_in(tmp_path, {"tokens": 3 * 128 + 1}))
    assert (outcome.end, outcome.link.report["step"]) == ("finished", 4)
    assert outcome.link.report["total_steps"] == 4
    longer = run_alone(job_in(tmp_path, {"tokens": 6 * 128}), attempt=2)
    assert (longer.link.report["resumed_from_step"], longer.link.report["step"]) == (4, 6)


def test_an_epoch_reads_each_sequence_once_and_a_stop_keeps_its_length(tmp_path: Path) -> None:
    job = job_in(tmp_path, {"epochs": 1.5})
    stopped = run_alone(job, faults=Faults(stop_at={0: 2}))
    total, step = stopped.link.report["total_steps"], stopped.step
    resumed = run_alone(job, attempt=2)
    assert (resumed.link.report["total_steps"], step) == (total, 3)
    (tokens,) = {int(path.stat().st_size / 2) for path in tmp_path.rglob("train.bin")}
    sequences = (tokens - 1) // 16
    assert resumed.link.report["step"] == total == -(-3 * sequences // (2 * 8))


def test_p4_a_smaller_budget_is_refused_in_the_unit_that_all_know(tmp_path: Path) -> None:
    run_alone(job_in(tmp_path, {"tokens": 4 * 128}))
    outcome = run_alone(job_in(tmp_path, {"tokens": 2 * 128}), attempt=2)
    for part in ("training.budget in steps is 2", "4 finished steps", "set it to 4"):
        assert part in outcome.message
