"""Which weights are trained, from when, and how fast beside the others.

Promise: what is frozen has no gradient, no moment and no part in the gradient norm; which weights
those are is a pure function of the job and the step, so a resume cannot get it wrong (P7).
Trap avoided: a pattern that matches nothing freezes nothing, and nobody notices for a week; it is
refused with names that exist. Ranks that change what requires a gradient in the midst of a run wait
for gradients that never come: all are computed, and those of frozen weights dropped.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import TrainerError, shown
from lmtraining_trainer.model import blocks
from lmtraining_trainer.sharding import total_norm
from lmtraining_trainer.step import Measured


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train no weight whose name one of `patterns` matches. Raises TrainerError(CONFIGURATION)."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for index, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise _refused(
                f"training.fineTuning.freeze[{index}] {pattern} matches no weight: weights are "
                f"named {shown(names)}"
            )
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise _refused(
            f"training.fineTuning.freeze {', '.join(patterns)} leaves no weight to train: remove "
            "one of the patterns"
        )


def check_unfreezing(model: PreTrainedModel, unfreeze_every_steps: int | None) -> None:
    """Before the first step: whether there is anything to begin with. Raises
    TrainerError(CONFIGURATION)."""
    if unfreeze_every_steps is None:
        return
    depth_of = depths(model)
    begins = max(depth_of.values()) - 1
    if not any(p.requires_grad and depth_of[id(p)] >= begins for p in model.parameters()):
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "NothingToTrain",
            "training.fineTuning.unfreezeEverySteps begins with the last block and what follows "
            "it, and training.fineTuning.freeze or lora.targets leave no weight to train there: "
            "leave out unfreezeEverySteps, or leave some of those weights to train",
        )


def depths(model: PreTrainedModel) -> dict[int, int]:
    """How far up in the model each parameter is, by its id: 0 for the embeddings (and a head that
    shares them), 1 and up for the blocks, one more for what follows."""
    found: dict[int, int] = {}
    layers = blocks(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            found |= {id(parameter): 0 for parameter in module.parameters()}
    for depth, block in enumerate(layers, start=1):
        found |= {id(parameter): depth for parameter in block.parameters()}
    return {id(p): found.get(id(p), len(layers) + 1) for p in model.parameters()}


def drop_frozen(
    optimizer: torch.optim.Optimizer, measured: Measured, *, step: int, unfreeze_every_steps: int
) -> Measured:
    """After `step` steps: drop the gradients of what is not yet trained, and measure the rest. At
    first only the last block and what follows it is trained, then one block more each so many
    steps, the embeddings last (Howard & Ruder, arXiv 1801.06146, section 3.3)."""
    last_block = max(group["depth"] for group in optimizer.param_groups) - 1
    for group in optimizer.param_groups:
        group["frozen"] = group["depth"] < last_block - step // unfreeze_every_steps
        for parameter in group["params"] if group["frozen"] else ():
            parameter.grad = None
    trained = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return replace(measured, gradient_norm=total_norm(trained))


def _refused(message: str) -> TrainerError:
    return TrainerError(FailureClass.CONFIGURATION, "NothingMatches", message)
