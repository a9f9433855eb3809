"""The model, which knows nothing of ranks, precision or devices.

Promise: the same config and seed give the same weights on every rank; what is exported is a plain
model of the transformers library.
Trap avoided: a checkpoint of another shape is refused by its fingerprint, in words, before a tensor
is read.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from lmtraining_api import FailureClass
from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.architectures import new_config
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import json_bytes, sha256_of
from lmtraining_trainer.loading import unloaded
from lmtraining_trainer.tasks import task_of


def build_model(
    spec: TrainingSpec, labels: Sequence[str] = (), base: BaseModel | None = None
) -> PreTrainedModel:
    """A new model on the CPU, its weights drawn from training.seed, or `base`, in fp32; `labels`
    are those of its data. Raises TrainerError(DATA) where `base` does not load.

    The generators of torch are left seeded: the caller restores or seeds them next.
    """
    torch.manual_seed(spec.training.seed)
    model = task_of(spec).model(spec, labels, base)
    model.train()
    return model


def empty_model(
    spec: TrainingSpec, labels: Sequence[str] = (), base: BaseModel | None = None
) -> PreTrainedModel:
    """The same on the CPU without a value in it, at once: every parameter is to be written before
    it is exported. It cannot compute: its buffers, which no export holds, have no values either."""
    with torch.device("meta"):
        model = build_model(spec, labels) if base is None else unloaded(base)
    model.to_empty(device="cpu")
    model.tie_weights()  # each user of a tied weight was given memory of its own
    return model


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Its transformer blocks, first to last."""
    layers = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return list(module)
    raise TrainerError(
        FailureClass.CONFIGURATION,
        "ArchitectureUnknown",
        f"model.pretrained is of model_type {model.config.model_type}, whose {layers} blocks are "
        "not in one list: choose another checkpoint",
    )


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shape_of(spec: TrainingSpec, base: BaseModel | None = None) -> dict[str, str | int]:
    """What decides the names and shapes of the weights; of a base also which weights they were."""
    if base is not None:
        return {
            "task": spec.model.task,
            "architecture": base.architecture,
            "vocabSize": base.vocab_size,
            "pretrained": base.sha256,
        }
    config = new_config(spec)
    return {
        "task": spec.model.task,
        "architecture": config.architecture,
        "layers": config.layers,
        "hiddenSize": config.hidden_size,
        "heads": config.heads,
        "vocabSize": spec.data.tokenizer.vocab_size,
        "sequenceLength": spec.data.sequence_length,
    }


def fingerprint(shape: dict[str, str | int]) -> str:
    """A name for a shape: checkpoints of equal fingerprints are interchangeable."""
    return sha256_of(json_bytes(shape))
