"""The loop: what a bad step does, what is reported, how a run ends."""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lmtraining_api import FailureClass, TrainerReport
from lmtraining_trainer import loop
from lmtraining_trainer.evaluation import ValidationPlan, validate
from lmtraining_trainer.run.progress_mark import ProgressMark
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.tasks.causal import Windows
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    checkpoint_names,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer


def test_a_run_from_nothing_to_an_export(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    assert outcome.link.states == [
        "Starting", "Preparing", "Starting", "Loading", "Training", "Checkpointing", "Training",
        "Checkpointing", "Training", "Evaluating", "Training", "Checkpointing", "Training",
        "Evaluating", "Training", "Checkpointing", "Training", "Exporting", "Finished",
    ]  # fmt: skip
    report = outcome.link.report
    assert set(report) <= set(TrainerReport.model_fields)
    assert report["step"] == report["total_steps"] == 12
    assert report["tokens"] == 12 * 128
    assert report["validation_step"] == 12
    assert report["validation_loss"] < report["unigram_loss"] + 2
    assert report["checkpoint"].step == 12
    assert report["export_path"] == "export"
    assert "resumed_from_step" not in report
    assert checkpoint_names(job) == [
        f"step-{step:08d}"
        for step in (0, 4, 8, 12)  # the first one is where a rewind could go
    ]
    assert [entry["kind"] for entry in journal(tmp_path)] == [
        "Started", "Saved", "Saved", "Saved", "Saved", "Finished",
    ]  # fmt: skip


def test_p2_a_finished_run_ends_at_once_and_says_what_it_was(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    first = run_alone(job)
    again = run_alone(job, attempt=2)
    assert again.link.states == ["Starting", "Finished"]
    for name in ("step", "tokens", "loss", "validation_loss", "export_path", "parameters"):
        assert again.link.report[name] == first.link.report[name]


def test_p6_a_bad_step_changes_nothing_but_the_position(tmp_path: Path) -> None:
    """The run that skips a batch equals, bit for bit, the run that never had it: no moment, no
    weight and no rate of the schedule knows of it."""
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, model={"config": {"layers": 1, "hiddenSize": 16, "heads": 1}},
                     training={"budget": {"steps": 3}})  # fmt: skip
    bad, short = job_of(spec, tmp_path / "bad"), job_of(spec, tmp_path / "short")
    outcome = run_alone(bad, faults=Faults(poison={0: (0,)}))
    assert outcome.end == "finished"
    assert outcome.link.report["skipped_steps"] == 1
    assert outcome.link.report["step"] == 3
    flags = [update.fields["loss_is_finite"] for update in outcome.link.updates
             if "loss_is_finite" in update.fields]  # fmt: skip
    assert flags == [False, True, True, True]
    assert all(torch.isfinite(weight).all() for weight in exported(bad).values())

    with pytest.MonkeyPatch.context() as patch:  # the same data from the second batch on
        from lmtraining_trainer.data.batches import BatchPlan

        original = BatchPlan.batch
        patch.setattr(BatchPlan, "batch", lambda self, position: original(self, position + 8))
        assert run_alone(short).end == "finished"
    assert_equal_tensors(exported(bad), exported(short))


def test_p6_one_ranks_nan_is_every_ranks_skip(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2), tmp_path)
    outcomes = run_gang(job, 2, faults=Faults(poison={1: (16, 40)}))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    assert outcomes[0].link.report["skipped_steps"] == 2
    skipped = [entry for entry in journal(tmp_path) if entry["kind"] == "Skipped"]
    assert [(entry["step"], entry["detail"]["position"]) for entry in skipped] == [(2, 16), (4, 40)]
    assert all(torch.isfinite(weight).all() for weight in exported(job).values())


def test_too_many_bad_steps_stop_the_run_with_numbers_and_advice(tmp_path: Path) -> None:
    spec = tiny_spec(
        write_text(tmp_path / "text.jsonl"), stability={"skippedStepsMax": 2, "rewindsMax": 0}
    )
    outcome = run_alone(job_of(spec, tmp_path), faults=Faults(poison={0: (8, 24, 40)}))
    assert (outcome.failure_class, outcome.reason) == (FailureClass.DIVERGED, "RemediesSpent")
    assert outcome.step == 3
    for part in ("2 batches", "skippedStepsMax 2", "rewindsMax 0", "learningRate 0.003"):
        assert part in outcome.message
    again = run_alone(job_of(spec, tmp_path), attempt=2, faults=Faults(poison={0: (48,)}))
    assert again.failure_class is FailureClass.DIVERGED  # the count is the run's, not the attempt's


def test_p7_a_skipped_batch_stays_skipped_after_a_resume(tmp_path: Path) -> None:
    """Also where the fault was a passing one, or the resumed run would be another run."""
    uri = write_text(tmp_path / "text.jsonl")
    straight = job_of(tiny_spec(uri), tmp_path / "straight")
    run_alone(straight, faults=Faults(poison={0: (40,)}))
    broken = job_of(tiny_spec(uri), tmp_path / "broken")
    (killed,) = run_gang(broken, 1, faults=Faults(poison={0: (40,)}, kill_at={0: 7}))
    assert killed.end == "died"
    resumed = run_alone(broken, attempt=2)  # no fault now
    assert resumed.end == "finished"
    assert resumed.link.report["resumed_from_step"] == 4
    assert resumed.link.report["skipped_steps"] == 1
    assert_equal_tensors(exported(straight), exported(broken))


def test_speed_has_no_waits_and_no_first_step_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: by a clock that only the test moves: a step takes a second, the first ten, and one that
    a busy machine held up twelve; in the end the speed is that of all steps."""
    now = [0.0]
    held_up_seconds = {0: 10.0, 5: 12.0}
    done = itertools.count()

    def taking(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **fields: Any) -> Any:
            now[0] += seconds
            return work(*arguments, **fields)

        return slow

    def step(*arguments: Any) -> Any:
        now[0] += held_up_seconds.get(next(done), 1.0)
        return real(*arguments)

    real = loop.forward_backward
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop, "forward_backward", step)
    monkeypatch.setattr(loop, "validate", taking(1000.0, loop.validate))
    monkeypatch.setattr(Saver, "save", taking(1000.0, Saver.save))
    monkeypatch.setattr(Saver, "save_now", taking(1000.0, Saver.save_now))
    monkeypatch.setattr(ProgressMark, "record", taking(1000.0, ProgressMark.record))
    outcome = run_alone(job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path))
    speeds = [update.fields["tokens_per_second"] for update in outcome.link.updates
              if "tokens_per_second" in update.fields]  # fmt: skip
    assert speeds == [None] + [128.0] * 11 + [128.0 * 11 / 22]


def test_replayed_steps_are_those_done_before(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    run_gang(job, 1, faults=Faults(kill_at={0: 7}))
    (tmp_path / "run" / "progress").write_text("7\n")  # as a slower run would have left it
    resumed = run_alone(job, attempt=2)
    replayed = [update.fields["replayed_steps"] for update in resumed.link.updates
                if "replayed_steps" in update.fields]  # fmt: skip
    assert replayed == [1, 2, 3, 3, 3, 3, 3, 3]
    # P4: the speed of the attempt before is not this one's, and neither is its end in sight.
    report = resumed.link.report_before("replayed_steps", 2)
    assert (report["step"], report["loss"] > 0) == (5, True)
    assert (report["tokens_per_second"], report["eta_seconds"]) == (None, None)


def test_more_steps_for_a_finished_run_go_on_from_its_end(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    assert run_alone(job_of(tiny_spec(uri), tmp_path)).end == "finished"
    longer = tiny_spec(
        uri,
        training={"budget": {"steps": 16}},
        checkpoint={"path": "shared", "existingRun": "Resume"},
    )
    outcome = run_alone(job_of(longer, tmp_path, uid="uid-2"))
    assert outcome.end == "finished", outcome
    assert outcome.link.report["resumed_from_step"] == 12
    assert outcome.link.report["step"] == 16


def test_p4_fewer_steps_than_are_done_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    run_alone(job_of(tiny_spec(uri), tmp_path), faults=Faults(stop_at={0: 9}))
    for steps, end in ((8, "error"), (10, "finished")):
        fewer = job_of(tiny_spec(uri, training={"budget": {"steps": steps}}), tmp_path)
        outcome = run_alone(fewer, attempt=steps)
        assert outcome.end == end, outcome
        if end == "error":
            assert outcome.failure_class is FailureClass.CONFIGURATION
            for part in ("training.budget.steps is 8", "10 finished steps", "set it to 10"):
                assert part in outcome.message
    assert outcome.link.report["step"] == outcome.link.report["total_steps"] == 10


def test_the_same_samples_give_nearly_the_same_run_on_two_ranks(tmp_path: Path) -> None:
    """Without dropout the world size changes rounding only."""
    uri = write_text(tmp_path / "text.jsonl")
    config = {"config": {"layers": 2, "hiddenSize": 32, "heads": 2}}
    losses = {}
    for ranks in (1, 2):
        spec = tiny_spec(uri, world_size=ranks, model=config)
        outcomes = run_gang(job_of(spec, tmp_path / str(ranks)), ranks)
        losses[ranks] = outcomes[0].link.report["validation_loss"]
    assert math.isclose(losses[1], losses[2], rel_tol=1e-4)


def test_every_rank_validates_its_share() -> None:
    """No rank waits in a collective while another does all of it."""
    tokens = np.arange(71, dtype=np.uint16)
    plan = ValidationPlan(examples=Windows(tokens=tokens, length=10), numbers=np.arange(7))

    def read_by(rank: int, world_size: int) -> list[int]:
        model = FirstTokens()
        gang: Any = SimpleNamespace(rank=rank, world_size=world_size, sum=lambda values: values)
        validate(model, plan, micro_batch_sequences=2, gang=gang, device=torch.device("cpu"),
                 autocast=nullcontext, alive=lambda: None)  # type: ignore[arg-type]  # fmt: skip
        return model.seen

    shares = [read_by(rank, 3) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == read_by(0, 1) == list(range(0, 70, 10))
    assert [len(share) for share in shares] == [3, 2, 2]


class FirstTokens(torch.nn.Module):
    """Remembers the sequences that it is given by their first tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, inputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        self.seen += inputs[:, 0].tolist()
        return torch.zeros(())


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    config = {"config": {"layers": 2, "hiddenSize": 32, "heads": 2}}
    losses = {}
    for parts in (1, 4):
        spec = tiny_spec(uri, model=config, training={"gradientAccumulation": parts},
                         world_size=2)  # fmt: skip
        outcomes = run_gang(job_of(spec, tmp_path / str(parts)), 2)
        losses[parts] = outcomes[0].link.report["validation_loss"]
    assert math.isclose(losses[1], losses[4], rel_tol=1e-4)
