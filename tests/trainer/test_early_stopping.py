"""A run that no longer improves ends well, with the weights that were best."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lmtraining_api import JobFile, RollbackWish, Wishes
from lmtraining_trainer import loop
from lmtraining_trainer.evaluation import Validated
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

#: What validation says, every two steps: the best at step 6, hardly better at step 10.
LOSSES = (5.0, 4.0, 3.0, 3.5, 2.99, 3.2, 1.0, 1.0)


def job_in(directory: Path, stopping: dict[str, Any] | None, **how: Any) -> JobFile:
    training = {
        "budget": {"steps": 16},
        "evaluation": {"everySteps": 2, "sequences": 2},
        "earlyStopping": stopping,
        "regularisation": how.pop("regularisation", {}),
    }
    spec = tiny_spec(
        write_text(directory.parent / "text.jsonl"),
        model={"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        training=training,
        checkpoint={"everySteps": 2, "keepLast": 100},
        **how,
    )
    return job_of(spec, directory)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation that says what the table says, whatever is validated."""
    real = loop._validation

    def validation(trainer: Any) -> Any:
        real(trainer)
        step = trainer.state.counters.step
        return lambda **_: Validated(loss=LOSSES[step // 2 - 1], figures={})

    monkeypatch.setattr(loop, "_validation", validation)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("stopping", "end", "best"),
    [
        (None, 16, 16),
        ({"patience": 1}, 8, 6),
        ({"patience": 2}, 16, 14),
        ({"patience": 2, "gainMin": 0.1}, 10, 6),
        ({"patience": 9, "gainMin": 2.5}, 16, 14),
        ({"patience": 9, "gainMin": 4.5}, 16, 2),
    ],
)
def test_it_ends_when_patience_does_and_exports_the_best(
    tmp_path: Path, stopping: dict[str, Any] | None, end: int, best: int
) -> None:
    job = job_in(tmp_path / "run", stopping)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    report = outcome.link.report
    assert (report["step"], report["total_steps"]) == (end, 16)
    assert report["notice"].startswith("stopped early at step") == (end < 16)
    assert ("weights are exported" in report["notice"]) == (best != end)
    validated = (report["validation_loss"], report["validation_step"])
    assert validated == (LOSSES[best // 2 - 1], best), "P4: of what is exported"
    checkpoints = Path(job.run_directory) / "checkpoints"
    weights = load_file(checkpoints / f"step-{best:08d}" / "model.safetensors")
    assert_equal_tensors(exported(job), weights)
    again = run_alone(job, attempt=2)  # P2
    assert again.link.states == ["Starting", "Finished"]


def test_p4_where_no_validation_is_finite_the_newest_weights_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not those that were drawn at the start."""
    nothing = Validated(loss=None, figures={})
    monkeypatch.setattr(loop, "_validation", lambda _: lambda **_: nothing)
    job = job_in(tmp_path / "run", {"patience": 3})
    outcome = run_alone(job)
    assert (outcome.end, outcome.link.report["step"]) == ("finished", 6)
    assert outcome.link.report["notice"] == (
        "stopped early at step 6: no validation was finite, so the newest weights are exported"
    )
    newest = Path(job.run_directory) / "checkpoints" / "step-00000006" / "model.safetensors"
    assert_equal_tensors(exported(job), load_file(newest))


@pytest.mark.usefixtures("told")
def test_p7_a_stop_and_a_kill_forget_neither_the_best_nor_the_patience(tmp_path: Path) -> None:
    stopping = {"patience": 2, "gainMin": 0.1}
    how = {"regularisation": {"averageDecay": 0.5}}
    straight = job_in(tmp_path / "straight", stopping, **how)
    broken = job_in(tmp_path / "broken", stopping, **how)
    assert run_alone(straight).end == "finished"
    assert run_alone(broken, faults=Faults(stop_at={0: 7})).end == "preempted"
    assert run_alone(broken, attempt=2, faults=Faults(stop_at={0: 8})).end == "preempted"
    resumed = run_alone(broken, attempt=3)
    assert (resumed.end, resumed.link.report["step"]) == ("finished", 10)
    assert_equal_tensors(exported(straight), exported(broken))


def test_p7_a_validation_that_a_stop_left_out_is_made_after_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all steps, the one that was the best."""
    losses = {2: 3.0, 4: 1.0}

    def validation(trainer: Any) -> Any:
        loss = losses.get(trainer.state.counters.step, 2.0)
        return lambda **_: Validated(loss=loss, figures={})

    monkeypatch.setattr(loop, "_validation", validation)
    straight, broken = (job_in(tmp_path / name, {"patience": 9}) for name in ("straight", "broken"))
    assert run_alone(straight).end == "finished"
    assert run_alone(broken, faults=Faults(stop_at={0: 3})).step == 4
    first, back = (
        Wishes(generation=n, budget_steps=16, checkpoint_every_steps=2, rollback=rollback)
        for n, rollback in ((1, None), (2, RollbackWish(name="back", to_step=4)))
    )
    resumed = run_alone(broken, attempt=2, faults=Faults(wishes={0: first, 6: back}))
    assert (resumed.end, resumed.link.report["validation_step"]) == ("finished", 4)
    assert resumed.link.report["applied"].rollback_step == 4
    assert_equal_tensors(exported(straight), exported(broken))


def test_sharded_ranks_stop_together(tmp_path: Path) -> None:
    """A gain that nobody can have."""
    how = {"parallelism": {"layout": "fsdp"}, "world_size": 2}
    job = job_in(tmp_path / "run", {"patience": 2, "gainMin": 10.0}, **how)
    outcomes = run_gang(job, 2)
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    assert outcomes[0].link.report["step"] == 6
    parts = [
        load_file(
            Path(job.run_directory) / f"checkpoints/step-00000002/model-0000{rank}.safetensors"
        )
        for rank in (0, 1)
    ]
    whole = exported(job)
    for name, part in parts[0].items():
        assert (whole[name][: len(part)] == part).all()
