"""The model, which knows nothing of ranks, precision or devices.

Promise: the same config and seed give the same weights on every rank; what is exported is a plain
model of the transformers library.
Trap avoided: a checkpoint of another shape is refused by its fingerprint, in words, before a tensor
is read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.files import json_bytes, sha256_of
from lmtraining_trainer.tasks import task_of


def build_model(spec: TrainingSpec, labels: Sequence[str] = ()) -> PreTrainedModel:
    """A new model on the CPU, its weights drawn from training.seed; `labels` are those of its data.

    The generators of torch are left seeded: the caller restores or seeds them next.
    """
    torch.manual_seed(spec.training.seed)
    model = task_of(spec).model(spec, labels)
    model.train()
    return model


def empty_model(spec: TrainingSpec, labels: Sequence[str] = ()) -> PreTrainedModel:
    """The same on the CPU without a value in it, at once: every parameter is to be written before
    it is exported. It cannot compute: its buffers, which no export holds, have no values either."""
    with torch.device("meta"):
        model = build_model(spec, labels)
    model.to_empty(device="cpu")
    model.tie_weights()  # each user of a tied weight was given memory of its own
    return model


def blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Its transformer blocks, first to last."""
    body: Any = model.base_model
    match model.config.model_type:
        case "gpt2":
            return list(body.h)
        case "bert":
            return list(body.encoder.layer)
        case _:
            return list(body.layers)


def parameter_count(model: torch.nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shape_of(spec: TrainingSpec) -> dict[str, str | int]:
    """What decides the names and shapes of the weights."""
    config = spec.model.config
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
