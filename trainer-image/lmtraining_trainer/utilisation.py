"""Model FLOP/s utilisation: what share of the devices' arithmetic goes into the model itself.

Promise: None where the peak of the device is not known, rather than a figure beside a guess.
Formula: Chowdhery et al. 2022 (PaLM, appendix B), per token 6·N + 12·L·d·s: forward 2 FLOPs and
backward 4 for each of N weights that a token is multiplied with, and the attention of L layers of
width d over s tokens, the whole square of it. A weight that is not trained takes 4, since its own
gradient is not computed; that the way back ends above the lowest frozen ones is not taken off. What
is computed again on the way back (activation checkpointing) does not count, nor does what a fused
attention saves by the causal mask.
Trap avoided: the figures on the first page of a datasheet are with sparsity, twice what a dense
model can reach.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

from lmtraining_trainer.device import device_name
from lmtraining_trainer.precision import Format

#: Dense TFLOP/s of one device by format. The first name that stands as a word in the device's own
#: counts. fp32 is without TF32, which the trainer leaves off. docs/goodput.md has their sources;
#: what nobody could be found to confirm is not here.
PEAK_TFLOPS: Final[Mapping[str, Mapping[Format, float]]] = {
    "B200": {"bf16": 2250.0, "fp32": 75.0},
    "H200 NVL": {"bf16": 835.5},
    "H200": {"bf16": 989.4, "fp32": 67.0},
    "H100 NVL": {"bf16": 835.5},
    "H100 PCIe": {"bf16": 756.0, "fp32": 51.0},
    "H100": {"bf16": 989.4, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp32": 19.5},
    "A40": {"bf16": 149.7, "fp32": 37.4},
    "A10": {"bf16": 125.0, "fp32": 31.2},
    "L40S": {"bf16": 362.0, "fp32": 91.6},
    "L40": {"bf16": 181.0, "fp32": 90.5},
    "L4": {"bf16": 121.0, "fp32": 30.3},
    "T4": {"fp32": 8.1},
    "V100S-PCIE": {"fp32": 16.4},
    "V100-PCIE": {"fp32": 14.0},
    "V100-SXM2": {"fp32": 15.7},
    "MI325X": {"bf16": 1307.4, "fp32": 163.4},
    "MI300X": {"bf16": 1307.4, "fp32": 163.4},
}
#: A part of a device has a part of its peak, and its name does not say which.
_PART: Final = re.compile(r"\bMIG\b")
_TERA: Final = 1e12


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """How much arithmetic a token takes, and how much the devices of all ranks can do."""

    flops_per_token: float
    peak_flops: float | None
    """FLOP/s of all ranks; None where the device is not in the table."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        *,
        sequence_length: int,
        device: torch.device,
        precision: Format,
        world_size: int,
    ) -> "Utilisation":
        """Of a model as it is trained from here on, on as many devices like this one as there are
        ranks."""
        peak = peak_flops(device_name(device), precision) if device.type == "cuda" else None
        return cls(
            flops_per_token=flops_per_token(model, sequence_length=sequence_length),
            peak_flops=None if peak is None else peak * world_size,
        )

    def at(self, tokens_per_second: float | None) -> float | None:
        """The share of the peak at that speed of all ranks, from 0 to 1."""
        if tokens_per_second is None or self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / self.peak_flops


def flops_per_token(model: PreTrainedModel, *, sequence_length: int) -> float:
    """FLOPs that a training step takes for each token, forward and backward."""
    looked_up = _looked_up(model)
    weights = [weight for weight in model.parameters() if weight not in looked_up]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    all_of_them = sum(weight.numel() for weight in weights)
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * sequence_length
    return float(4 * all_of_them + 2 * trained + attention)


def peak_flops(device: str, precision: Format) -> float | None:
    """Dense FLOP/s of a device of that name in that format, where they are known."""
    if _PART.search(device):
        return None
    for name, peaks in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b", device):
            peak = peaks.get(precision)
            return None if peak is None else peak * _TERA
    return None


def _looked_up(model: PreTrainedModel) -> set[torch.Tensor]:
    """Embeddings of which a token takes a row; one that is the output layer too is multiplied."""
    output: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    multiplied = None if output is None else output.weight
    return {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not multiplied
    }
