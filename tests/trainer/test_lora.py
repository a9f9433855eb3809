"""LoRA: what is trained, what is exported, and that a resume agrees."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lmtraining_api import FailureClass, JobFile
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

CONFIG = {"layers": 2, "hiddenSize": 16, "heads": 2}


def job_in(
    directory: Path, *, architecture: str = "gpt2", world_size: int = 1, **lora: Any
) -> JobFile:
    spec = tiny_spec(
        write_text(directory.parent / "text.jsonl"),
        world_size=world_size,
        model={"config": {**CONFIG, "architecture": architecture}},
        training={
            "budget": {"steps": 6},
            "optimizer": {"learningRate": 0.01},
            "fineTuning": {"lora": lora},
        },
    )
    return job_of(spec, directory)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_only_adapters_are_trained_and_the_export_is_plain_with_them_merged(
    tmp_path: Path, architecture: str
) -> None:
    job = job_in(tmp_path / "run", architecture=architecture, rank=3, alpha=6)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    first, last = (
        load_file(Path(job.run_directory) / f"checkpoints/step-{step:08d}/model.safetensors")
        for step in (0, 6)
    )
    adapters = {name for name in last if "lora_" in name}
    assert {name for name in last if not torch.equal(first[name], last[name])} <= adapters
    assert outcome.link.report["parameters"] == sum(last[name].numel() for name in adapters)
    weights = exported(job)
    assert not any("lora" in name or "base_layer" in name for name in weights)
    merged = 0
    for name in adapters:
        if "lora_A" not in name:
            continue
        layer = name.partition(".lora_A")[0]
        down, up = last[name], last[name.replace("lora_A", "lora_B")]
        added = 6.0 / 3 * up @ down  # [out, in]
        base = last[f"{layer}.base_layer.weight"]
        wanted = base + (added.T if architecture == "gpt2" else added)
        assert torch.allclose(weights[f"{layer}.weight"], wanted, atol=1e-6)
        merged += not torch.equal(weights[f"{layer}.weight"], base)
    assert merged == 2 * (4 if architecture == "gpt2" else 7)
    model = AutoModelForCausalLM.from_pretrained(Path(job.run_directory) / "export")
    assert_equal_tensors(
        dict(model.named_parameters()), {n: weights[n] for n, _ in model.named_parameters()}
    )


@pytest.mark.parametrize(
    "option", [{"rank": 2}, {"alpha": 2}, {"dropout": 0.5}, {"targets": ["c_attn"]}]
)
def test_each_option_has_an_effect(tmp_path: Path, option: dict[str, Any]) -> None:
    plain, other = job_in(tmp_path / "plain"), job_in(tmp_path / "other", **option)
    assert run_alone(plain).end == run_alone(other).end == "finished"
    ours, theirs = exported(plain), exported(other)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_p7_two_ranks_that_are_stopped_end_with_the_same_export(tmp_path: Path) -> None:
    straight = job_in(tmp_path / "straight", world_size=2, dropout=0.1)
    broken = job_in(tmp_path / "broken", world_size=2, dropout=0.1)
    outcomes = run_gang(straight, 2)
    assert outcomes[0].end == "finished", outcomes
    assert run_gang(broken, 2, faults=Faults(stop_at={1: 3}))[0].end == "preempted"
    assert run_gang(broken, 2, attempt=2)[0].end == "finished"
    assert_equal_tensors(exported(straight), exported(broken))


def test_a_target_that_matches_nothing_is_refused_with_layers_that_exist(tmp_path: Path) -> None:
    outcome = run_alone(job_in(tmp_path / "run", targets=["c_attn", "q_proj"]))
    assert (outcome.failure_class, outcome.reason) == (
        FailureClass.CONFIGURATION,
        "NothingMatches",
    )
    for part in ("lora.targets[1] q_proj", "transformer.h.0.attn.c_attn", "mlp.c_proj"):
        assert part in outcome.message
