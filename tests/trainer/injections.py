"""Faults that are put into a training step: into its data, its gradients, the weights, the moments.

Trap avoided: two trainers that are compared must meet the same fault, so a fault knows nothing of
the trainer.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from lmtraining_trainer.data.micro_batch import Batch, MicroBatch
from lmtraining_trainer.step import Measured

DATA_FAULTS = frozenset({"random-labels", "random-tokens", "one-token"})


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What befalls one rank at the batch that begins at `position`."""

    position: int
    what: Literal[
        "nan",
        "inf-gradient",
        "minus-inf-loss",
        "zero-gradient",
        "huge-gradient",
        "gradient-bit",
        "reversed-gradient",
        "spike",
        "norm",
        "bit-flip",
        "nan-weight",
        "nan-moment",
        "huge-moment",
        "random-labels",
        "random-tokens",
        "one-token",
    ]
    factor: float = 5.0
    """Of a spike: what loss and gradients are multiplied by; of a norm: what it alone is; of a
    huge moment: what it is."""
    times: int = 1 << 30
    """How often the batch may be computed before the fault is gone."""


def damaged(
    model: Any, optimizer: torch.optim.Optimizer | None, measured: Measured, injection: Injection
) -> Measured:
    """What a step measured after the fault has been put into it."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    of_gradients, of_loss, of_norm = _factors(injection)
    for parameter in parameters:
        parameter.grad.mul_(of_gradients)
    first = parameters[0]
    match injection.what:
        case "inf-gradient":
            _here(first.grad)[0] = math.inf
        case "gradient-bit":
            _here(first.grad).view(torch.int32)[0, 0] ^= 1 << 30
        case "bit-flip":
            _here(first.detach()).view(torch.int32)[0, 0] ^= 1 << 20
        case "nan-weight":
            _here(first.detach())[0, 0] = math.nan
        case "nan-moment" if optimizer is not None:
            _here(optimizer.state[first]["exp_avg"])[0, 0] = math.nan
        case "huge-moment" if optimizer is not None:
            for parameter in parameters:
                optimizer.state[parameter]["exp_avg"].mul_(injection.factor)
    loss, norm = measured.loss * of_loss, measured.gradient_norm * of_norm
    return replace(measured, loss=loss, gradient_norm=norm)


def _here(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _factors(injection: Injection) -> tuple[float, float, float]:
    """What gradients, loss and norm are multiplied by."""
    factor = injection.factor
    return {
        "nan": (math.nan, math.nan, math.nan),
        "inf-gradient": (1.0, 1.0, math.inf),
        "gradient-bit": (1.0, 1.0, math.inf),
        "minus-inf-loss": (1.0, -math.inf, 1.0),
        "zero-gradient": (0.0, 1.0, 0.0),
        "huge-gradient": (1e12, 1.0, 1e12),
        "reversed-gradient": (-1.0, 1.0, 1.0),
        "spike": (factor, factor, factor),
        "norm": (1.0, 1.0, factor),
    }.get(injection.what, (1.0, 1.0, 1.0))


def poisoned(batch: Batch, injection: Injection, vocabulary: int) -> Batch:
    """The batch after the fault has been put into its data."""
    return [_poisoned(part, injection, vocabulary) for part in batch]


def _poisoned(part: MicroBatch, injection: Injection, vocabulary: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(injection.position)
    shape = part.inputs.shape
    noise = torch.randint(vocabulary, (shape[0], shape[1] + 1), generator=generator)
    match injection.what:
        case "random-labels":
            return MicroBatch(inputs=part.inputs, targets=noise[:, 1:])
        case "random-tokens":
            return MicroBatch(inputs=noise[:, :-1], targets=noise[:, 1:])
        case "one-token":
            return MicroBatch(
                inputs=noise[:1, :1].expand(shape), targets=noise[:1, :1].expand(shape)
            )
    return part
