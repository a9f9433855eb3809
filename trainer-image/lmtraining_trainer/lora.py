"""Low-rank adapters beside frozen weights (Hu et al., arXiv 2106.09685), by peft.

Promise: only the adapters are trained; every rank draws the same ones from training.seed; what is
exported is a plain model of transformers, the adapters added to its weights.
Trap avoided: a target that matches nothing trains nothing; it is refused with layers that exist.
(peft is imported where it is used: the import takes a second that only these jobs should wait for.)
"""
# ruff: noqa: PLC0415

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmtraining_api import FailureClass
from lmtraining_api.job import Lora
from lmtraining_trainer.errors import TrainerError, shown
from lmtraining_trainer.model import blocks

#: What a task puts on top of the blocks: new weights, which are trained whole.
CLASSIFIERS = ("classifier.",)


def add_adapters(model: PreTrainedModel, spec: Lora, *, seed: int) -> None:
    """Freeze `model`, but for a classifier, and put adapters beside the layers that `spec` names.
    Leaves the generators seeded. Raises TrainerError(CONFIGURATION)."""
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for block in blocks(model) for module in block.modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }
    chosen = _chosen(list(layers), spec.targets)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=chosen,
        # Conv1D keeps its matrix the other way round.
        fan_in_fan_out=isinstance(layers[chosen[0]], Conv1D),
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(CLASSIFIERS))


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights and take them out of `model`."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, module.get_base_layer())


def _chosen(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The layers that the targets name: by the last part of a name, or by a pattern for all of
    it."""
    for index, target in enumerate(targets):
        if not any(_names(target, name) for name in names):
            raise TrainerError(
                FailureClass.CONFIGURATION,
                "NothingMatches",
                f"training.fineTuning.lora.targets[{index}] {target} matches no linear layer of a "
                f"block: they are named {shown(names)}",
            )
    return [name for name in names if not targets or any(_names(t, name) for t in targets)]


def _names(target: str, name: str) -> bool:
    return name.rpartition(".")[2] == target or fnmatchcase(name, target)
