"""The figures that only some steps are asked for: true, and without a trace in the training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtraining_api import TrainingSpec
from lmtraining_trainer import loop
from lmtraining_trainer.model import build_model
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.sampling import adam_sums, moved_sums, update_figures, watched
from tests.trainer.rank_support import (
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

SHAPE = {"layers": 2, "hiddenSize": 32, "heads": 2}
TOKENS = torch.arange(24).reshape(2, 12)


def spec_in(directory: Path, **blocks: Any) -> TrainingSpec:
    return tiny_spec(write_text(directory / "text.jsonl"), **blocks)


def test_p7_a_sampled_run_is_the_run_that_was_not_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is on: a probe that draws from the generators would show."""
    weights = []
    for name, steps in (("often", 3), ("never", 10**9)):
        monkeypatch.setattr(loop, "SAMPLE_STEPS", steps)
        job = job_of(spec_in(tmp_path / name), tmp_path / name)
        outcome = run_alone(job)
        assert outcome.end == "finished"
        assert ("update_ratio" in outcome.link.report) == (name == "often")
        weights.append(exported(job))
    assert_equal_tensors(*weights)


def test_the_probe_measures_the_gradients_that_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch that is probed whole, while most blocks are frozen: the noise scale compares the
    norm of a part with that of the whole."""
    norms = []
    judge_update = loop.judge_update

    def judged(trainer: Any, probed: Any, verdict: Any, rate: float) -> Any:
        norms.append((probed.gradient_norm, verdict.gradient_norm))
        return judge_update(trainer, probed, verdict, rate)

    monkeypatch.setattr(loop, "judge_update", judged)
    monkeypatch.setattr(loop, "SAMPLE_STEPS", 1)
    training = {
        "budget": {"steps": 6},
        "batchTokens": 16,
        "fineTuning": {"unfreezeEverySteps": 2},
        "evaluation": {"everySteps": 6, "sequences": 2},
    }
    spec = spec_in(tmp_path, model={"config": SHAPE}, training=training)
    assert run_alone(job_of(spec, tmp_path)).end == "finished"
    assert len(norms) == 6
    assert all(part == pytest.approx(whole, rel=1e-5) for part, whole in norms)


def test_all_ranks_get_the_same_figures(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, world_size=2, training={"budget": {"steps": 50}})
    outcomes = run_gang(job_of(spec, tmp_path), 2)
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    lead, other = (outcome.link.report for outcome in outcomes)
    names = ("update_ratio", "update_rms", "attention_logit_bound", "activation_max")
    assert [lead[name] for name in names] == [other[name] for name in names]
    assert all(0.0 < lead[name] < math.inf for name in names)
    assert 0.0 <= lead["swallowed_share"] <= 1.0
    assert lead["notice"] == other["notice"]


def test_the_update_is_the_one_that_was_made(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    model = build_model(spec)
    optimizer = build_optimizer(model, spec.training.optimizer)
    rate = spec.training.optimizer.peak_rate
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(3):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    after = list(model.parameters())
    squares = sum(
        float(((old - new.detach()) / rate).square().sum())
        for old, new in zip(before, after, strict=True)
    )
    count = sum(parameter.numel() for parameter in after)
    update_rms, weight_rms, swallowed = update_figures([adam_sums(optimizer)])
    assert update_rms == pytest.approx(math.sqrt(squares / count), rel=1e-2)
    assert weight_rms == pytest.approx(
        math.sqrt(sum(float(p.detach().square().sum()) for p in after) / count), rel=1e-5
    )
    # The four positions behind the text have moments of exactly zero.
    assert 4 * SHAPE["hiddenSize"] / count <= swallowed < 0.02
    old_of = dict(zip(after, before, strict=True))
    old = [old_of[p] for group in optimizer.param_groups for p in group["params"]]
    moved = update_figures([moved_sums(optimizer, old, rate)])  # as of any other optimizer
    assert moved == pytest.approx((update_rms, weight_rms, 0.0), rel=1e-2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_attention_logit_is_above_the_bound(tmp_path: Path, architecture: str) -> None:
    """Held against the weights that attention computes: softmax keeps differences of logits."""
    spec = spec_in(tmp_path, model={"config": {"architecture": architecture, **SHAPE}})
    model = build_model(spec)
    model.train(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits of some size
        with watched(model) as extremes:
            states = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
        model.set_attn_implementation("eager")
        attentions = model(input_ids=TOKENS, output_attentions=True).attentions
    width = SHAPE["hiddenSize"] // SHAPE["heads"]
    bound = extremes.logit_bound(width)
    last_rows = torch.stack([layer[:, :, -1, :].clamp_min(1e-38).log() for layer in attentions])
    spread = float((last_rows.amax(-1) - last_rows.amin(-1)).max())
    assert 0.0 < spread <= 2 * bound
    assert len(extremes.activations) == SHAPE["layers"]
    assert extremes.activation_max() >= max(float(state.abs().max()) for state in states[1:-1])


def test_no_hook_is_left_behind(tmp_path: Path) -> None:
    model = build_model(spec_in(tmp_path))
    with watched(model):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
