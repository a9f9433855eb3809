"""Frozen weights, rates by layer, gradual unfreezing: what changes, and when."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmtraining_api import FailureClass, JobFile
from lmtraining_api.job import FineTuning, Optimizer
from lmtraining_trainer import loop
from lmtraining_trainer.freezing import depths
from lmtraining_trainer.model import build_model
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.step import update
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

TWO_BLOCKS = {"layers": 2, "hiddenSize": 16, "heads": 2}
EMBEDDINGS, FIRST, LAST, TOP = "transformer.wte", "transformer.h.0", "transformer.h.1", "ln_f"


def job_in(directory: Path, tuning: dict[str, Any], **how: Any) -> JobFile:
    training = {
        "budget": {"steps": 6},
        "optimizer": {"name": how.pop("optimizer", "adamw")},
        "fineTuning": tuning,
        "regularisation": how.pop("regularisation", {}),
    }
    blocks = {
        "model": {"config": TWO_BLOCKS},
        "training": training,
        "checkpoint": {"everySteps": 1, "keepLast": 100},
    }
    uri = write_text(directory.parent / "text.jsonl")
    return job_of(tiny_spec(uri, **{**blocks, **how}), directory)


def weights_at(job: JobFile, step: int) -> dict[str, torch.Tensor]:
    checkpoint = Path(job.run_directory) / "checkpoints" / f"step-{step:08d}"
    return load_file(checkpoint / "model.safetensors")


def changed_parts(job: JobFile, before: int, after: int) -> set[str]:
    """Which parts of the model are not at one step what they were at another."""
    old, new = weights_at(job, before), weights_at(job, after)
    different = [name for name in old if not torch.equal(old[name], new[name])]
    parts = (EMBEDDINGS, FIRST, LAST, TOP)
    return {part for part in parts if any(part in name for name in different)}


def test_what_is_frozen_stays_and_the_rest_moves(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run", {"freeze": ["transformer.w?e.*", "transformer.h.0.*"]})
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    assert changed_parts(job, 0, 6) == {LAST, TOP}
    trained = sum(w.numel() for name, w in exported(job).items() if LAST in name or TOP in name)
    assert outcome.link.report["parameters"] == trained


def test_what_is_frozen_stays_where_each_rank_has_its_part(tmp_path: Path) -> None:
    how = {"parallelism": {"layout": "fsdp"}, "world_size": 2}
    job = job_in(tmp_path / "run", {"freeze": ["transformer.h.0.*"]}, **how)
    alone = job_in(tmp_path / "alone", {"freeze": ["transformer.h.0.*"]})
    outcomes = run_gang(job, 2)
    assert outcomes[0].end == run_alone(alone).end == "finished", outcomes
    ours, theirs, before = exported(job), exported(alone), weights_at(alone, 0)
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=1e-4), name
        if FIRST in name:
            assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("patterns", "parts"),
    [
        (
            ["*.ln_f.*", "transfomer.*"],
            ["freeze[1] transfomer.*", "transformer.wte.weight", "ln_f"],
        ),
        (["*"], ["freeze * leaves no weight to train"]),
    ],
)
def test_a_pattern_that_does_nothing_or_everything_is_refused(
    tmp_path: Path, patterns: list[str], parts: list[str]
) -> None:
    outcome = run_alone(job_in(tmp_path / "run", {"freeze": patterns}))
    assert (outcome.failure_class, outcome.reason) == (
        FailureClass.CONFIGURATION,
        "NothingMatches",
    )
    for part in parts:
        assert part in outcome.message


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_each_block_has_its_share_of_the_rate(architecture: str) -> None:
    """By what a step of plain SGD does to equal gradients."""
    config = {**TWO_BLOCKS, "architecture": architecture}
    model = build_model(tiny_spec("file:///x", model={"config": config}))
    optimizer = build_optimizer(
        model,
        Optimizer(name="sgd", momentum=0.0, weight_decay=0.0),
        FineTuning(layer_rate_decay=0.5),
    )
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(model, optimizer, learning_rate=1.0, clip_norm=1e6, gradient_norm=1.0)
    depth_of = depths(model)
    assert set(depth_of.values()) == {0, 1, 2, 3}
    for name, parameter in model.named_parameters():
        moved = float((before[name] - parameter.detach()).mean())
        assert moved == pytest.approx(0.5 ** (3 - depth_of[id(parameter)]), rel=1e-3), name


@pytest.mark.parametrize(
    "tuning",
    [
        {"freeze": ["transformer.h.1.*", "transformer.ln_f.*"]},
        {"lora": {"targets": ["transformer.h.0.*"]}},
    ],
)
def test_p4_unfreezing_that_has_nothing_to_begin_with_is_refused(
    tmp_path: Path, tuning: dict[str, Any]
) -> None:
    """A gradient of zero looks like divergence, and the advice for that would not help."""
    outcome = run_alone(job_in(tmp_path / "run", {**tuning, "unfreezeEverySteps": 2}))
    assert (outcome.failure_class, outcome.reason) == (FailureClass.CONFIGURATION, "NothingToTrain")
    assert "unfreezeEverySteps" in outcome.message


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_block_more_is_trained_each_so_many_steps(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a decay or a proximal step moves what is frozen; a sample is taken on the way."""
    monkeypatch.setattr(loop, "SAMPLE_STEPS", 2)
    job = job_in(
        tmp_path / "run",
        {"unfreezeEverySteps": 2},
        optimizer=optimizer,
        regularisation={"proximalL1": 0.1, "l1": 0.001},
    )
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    assert outcome.link.report["update_rms"] > 0.0
    assert changed_parts(job, 0, 2) == {LAST, TOP}
    assert changed_parts(job, 2, 4) == {FIRST, LAST, TOP}
    assert changed_parts(job, 4, 6) == {EMBEDDINGS, FIRST, LAST, TOP}


@pytest.mark.parametrize("optimizer", ["adamw", "adabelief"])
def test_p7_a_stop_on_the_way_leaves_no_trace(tmp_path: Path, optimizer: str) -> None:
    tuning = {"unfreezeEverySteps": 2, "layerRateDecay": 0.8, "freeze": ["*.bias"]}
    how = {"optimizer": optimizer, "regularisation": {"averageDecay": 0.5, "proximalL1": 0.01}}
    straight = job_in(tmp_path / "straight", tuning, **how)
    broken = job_in(tmp_path / "broken", tuning, **how)
    assert run_alone(straight, faults=Faults(poison={0: (8,)})).end == "finished"
    assert run_alone(broken, faults=Faults(poison={0: (8,)}, stop_at={0: 2})).step == 3
    assert run_alone(broken, attempt=2, faults=Faults(poison={0: (8,)})).end == "finished"
    assert_equal_tensors(exported(straight), exported(broken))
