"""Checkpoints at an interval that the lead chooses and all ranks agree on."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtraining_api import IntervalReport
from lmtraining_trainer import interval as interval_module
from lmtraining_trainer.accounts import Accounts
from lmtraining_trainer.interval import SaveClock, interval
from lmtraining_trainer.run import claim_run
from lmtraining_trainer.step import Measured, agree
from tests.trainer.rank_support import (
    Faults,
    checkpoint_names,
    job_of,
    place_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

OPEN = {"everySteps": None, "keepLast": 100}


def test_the_numbers_are_those_of_the_run_and_outlive_a_kill(tmp_path: Path) -> None:
    spec = tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2, checkpoint=OPEN)
    job = job_of(spec, tmp_path)
    killed = run_gang(job, 2, faults=Faults(kill_at={1: 9}))
    assert killed[1].end == "died"
    outcomes = run_gang(job, 2, attempt=2)
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    chosen = outcomes[0].link.report["checkpoint_interval"]
    assert chosen.cost_seconds > 0.0
    assert chosen.seconds >= 20 * chosen.cost_seconds - 0.05
    assert chosen.fault_seconds < 3600.0, "this run has seen a fault"
    starts = [entry["detail"] for entry in journal(tmp_path) if entry["kind"] == "Started"]
    assert [start["after_fault"] for start in starts] == [False, True]  # type: ignore[index]
    assert {"step-00000000", "step-00000012"} <= set(checkpoint_names(job))


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, list(range(13))), (1e9, [0, 12])])
def test_a_checkpoint_is_made_where_it_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: list[int]
) -> None:
    def chosen(**measured: Any) -> IntervalReport:
        return interval(**measured).model_copy(update={"seconds": seconds})

    monkeypatch.setattr(interval_module, "interval", chosen)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), checkpoint=OPEN), tmp_path)
    assert run_alone(job).end == "finished"
    assert [int(name[-8:]) for name in checkpoint_names(job)] == steps


def test_a_given_interval_is_kept(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job)
    assert "checkpoint_interval" not in outcome.link.report
    assert [int(name[-8:]) for name in checkpoint_names(job)] == [0, 4, 8, 12]


def test_the_cost_is_what_saving_took_from_the_loop(tmp_path: Path) -> None:
    now = [100.0]
    began = datetime.now(UTC)
    accounts = Accounts(monotonic=lambda: now[0], wall_time=lambda: began)
    run = claim_run(job_of(tiny_spec("file:///x"), tmp_path), place_of(), now=lambda: began)
    accounts.open(run)
    clock = SaveClock(run, accounts, ranks=1, clock=lambda: now[0])
    for seconds in (2.0, 4.0):
        with accounts.during("checkpoint"):
            now[0] += seconds
        run.journal.append("Saved", 1)
    clock.restart()
    assert (clock.interval.cost_seconds, clock.interval.seconds) == (3.0, 300.0)
    assert not clock.is_due(early=True)
    now[0] += 150.0
    assert clock.is_due(early=True)
    assert not clock.is_due(early=False)
    now[0] += 150.0
    assert clock.is_due(early=False)


@pytest.mark.parametrize("wished", [(), ("save",), ("news",), ("stop", "save", "news")])
def test_the_wish_of_one_rank_is_that_of_all(wished: tuple[str, ...]) -> None:
    """The rank that does not wish would train on while the others wait for it in a save."""
    wishes = ("stop", "save", "news")

    class Pair:
        world_size = 2

        def sum(self, values: list[float]) -> list[float]:
            figures, ours = values[:3], values[3:]
            theirs = [float(wish in wished) for wish in wishes]
            return [*(2 * v for v in figures), *(a + b for a, b in zip(ours, theirs, strict=True))]

    one = torch.tensor(1.0)
    measured = Measured(loss=one, gradient_norm=one, own_seconds=float)
    verdict = agree(Pair(), measured, stop=False, save=False)  # type: ignore[arg-type]
    assert {wish for wish in wishes if getattr(verdict, wish)} == set(wished)
    assert (verdict.loss, verdict.is_finite) == (1.0, True)
