"""What a token costs, against torch's own count of it; and which peak a device has."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmtraining_api import TrainingSpec
from lmtraining_trainer.lora import add_adapters
from lmtraining_trainer.model import build_model
from lmtraining_trainer.precision import Format
from lmtraining_trainer.utilisation import PEAK_TFLOPS, Utilisation, flops_per_token, peak_flops
from tests.trainer.rank_support import tiny_spec

pytestmark = pytest.mark.trainer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "goodput.md"
SEQUENCES, TOKENS = 2, 64
ADAPTERS = {"fineTuning": {"lora": {"rank": 4}}}


def model_of(spec: TrainingSpec) -> Any:
    """With its adapters, where it has some."""
    model, lora = build_model(spec), spec.training.fine_tuning.lora
    if lora is not None:
        add_adapters(model, lora, seed=spec.training.seed)
    return model


def of_model(architecture: str, training: dict[str, Any]) -> tuple[float, float]:
    """FLOPs per token: ours, and what torch counts in a forward and backward pass."""
    config = {"architecture": architecture, "layers": 3, "hiddenSize": 64, "heads": 2, "dropout": 0}
    spec = tiny_spec(
        "file:///unused.jsonl",
        model={"config": config},
        data={"sequenceLength": TOKENS},
        training={**training, "batchTokens": SEQUENCES * TOKENS},
    )
    model = model_of(spec)
    model.set_attn_implementation("eager")  # torch counts no fused attention on a CPU
    tokens = torch.randint(0, model.config.vocab_size, (SEQUENCES, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    ours = flops_per_token(model, sequence_length=TOKENS)
    return ours, counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_flops_per_token_are_those_that_torch_counts(architecture: str) -> None:
    ours, counted = of_model(architecture, {})
    assert ours == pytest.approx(counted, rel=0.03)  # norms and biases are no products


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_frozen_weights_take_four_and_never_fewer_than_torch_counts(architecture: str) -> None:
    """The first of three blocks needs no gradient of its frozen input, which is not taken off."""
    ours, counted = of_model(architecture, ADAPTERS)
    assert counted < ours < 1.05 * counted


def test_attention_costs_by_the_length_of_a_sequence() -> None:
    spec = tiny_spec("file:///unused.jsonl")
    model = model_of(spec)
    shorter, longer = (flops_per_token(model, sequence_length=s) for s in (100, 200))
    assert longer - shorter == 12 * 2 * 32 * 100, "12 L d s"


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA H200 NVL", "bf16", 835.5e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7e12),
        ("Tesla V100-PCIE-16GB", "fp32", 14e12),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4e12),
        ("NVIDIA H200 NVL", "fp32", None),
        ("NVIDIA GH200 480GB", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307.4e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Some other device", "bf16", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(
    device: str, precision: Format, peak: float | None
) -> None:
    assert peak_flops(device, precision) == pytest.approx(peak)


def test_utilisation_is_the_share_of_all_ranks_peak() -> None:
    two = Utilisation(flops_per_token=6e9, peak_flops=2 * 100e12)
    assert two.at(10_000.0) == pytest.approx(0.3)
    assert two.at(None) is None
    assert Utilisation(flops_per_token=6e9, peak_flops=None).at(10_000.0) is None


def test_the_page_has_the_table_that_is_used() -> None:
    lines = re.findall(
        r"^\| ([^|]+) \| ([\d.]+|–) \| ([\d.]+|–) \| [^|]+ \|$", PAGE.read_text(), re.M
    )
    said = {
        name: {k: float(v) for k, v in (("bf16", bf16), ("fp32", fp32)) if v != "–"}
        for name, bf16, fp32 in lines
    }
    assert said == PEAK_TFLOPS
    assert [name for name, *_ in lines] == list(PEAK_TFLOPS), "the first that matches counts"
