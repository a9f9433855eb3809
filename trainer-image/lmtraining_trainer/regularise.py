"""What keeps the weights small, few, or smooth over the steps, beside the update rule.

Promise: each touches only the weights that decay (the average: all that are trained), and only at a
step that was taken: where the device leaves a bad update out, it leaves these out too (P6).
Trap avoided: the L1 penalty alone never gives a zero, it swings around it; the proximal step does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lmtraining_trainer.sharding import local

#: The average follows faster at first: (1 + steps) / (10 + steps), as in TensorFlow's
#: ExponentialMovingAverage; it would remember the random weights for long otherwise.
WARMUP_STEPS = 10


def penalise(optimizer: torch.optim.Optimizer, l1: float) -> None:
    """Add the slope of `l1` times the sum of absolute weights to their gradients, whose norm was
    taken before: the guard judges the data, and the penalty is scaled down with it."""
    if l1:
        for parameter, _ in _decaying(optimizer):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach().sign(), alpha=l1)


def shrink(
    optimizer: torch.optim.Optimizer, proximal_l1: float, *, skips: torch.Tensor | None
) -> None:
    """After a step at the rates of the groups: pull each weight towards zero by rate times
    `proximal_l1`, and not beyond (Parikh & Boyd 2014, "Proximal Algorithms", section 6.5.2)."""
    if proximal_l1:
        for parameter, rate in _decaying(optimizer):
            weights = local(parameter.detach())
            limit: Any = _unless_skipped(rate * proximal_l1, skips)
            weights.sub_(weights.clamp(-limit, limit))


def _unless_skipped(value: float, skips: torch.Tensor | None) -> float | torch.Tensor:
    """`value`, which is 0 where `skips` is 1. A number goes to the device with the kernel; a tensor
    of it would make the host wait for each weight."""
    return value if skips is None else (1.0 - skips) * value


def zero_share(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """How many of the weights that decay are exactly zero, and how many there are, in what this
    rank holds."""
    held = [local(parameter.detach()) for parameter, _ in _decaying(optimizer)]
    zeros = sum(int((weights == 0.0).sum()) for weights in held)
    return zeros, sum(weights.numel() for weights in held)


def _decaying(optimizer: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, float]]:
    """The weights that decay, with their rate; those that are frozen for now left out."""
    for group in optimizer.param_groups:
        if group["decays"] and not group.get("frozen", False):
            for parameter in group["params"]:
                yield parameter, group["lr"]


class Best:
    """The weights that had the lowest validation loss."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = trained_copy(model)
        """By name, cut as the weights are."""

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Those that `model` has now."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                local(self.weights[name]).copy_(local(parameter))


def trained_copy(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the weights that are trained, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class Average:
    """An exponential moving average of the trained weights (Polyak & Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = trained_copy(model)
        """By name, cut as the weights are."""

    @torch.no_grad()
    def follow(self, model: nn.Module, *, steps: int, skips: torch.Tensor | None) -> None:
        """Move towards the weights of `model`, to which `steps` led before this one."""
        share = 1.0 - min(self._decay, (1 + steps) / (WARMUP_STEPS + steps))
        weight: Any = _unless_skipped(share, skips)
        for name, parameter in model.named_parameters():
            if name in self.weights:
                local(self.weights[name]).lerp_(local(parameter.detach()), weight)


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A context in which `model` has these weights, where they name one; the same bits as before
    after it."""
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if name in weights
    }
    kept = {name: local(parameter.detach()).clone() for name, parameter in parameters.items()}
    _copy(weights, parameters)
    try:
        yield
    finally:
        _copy(kept, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        local(parameter).copy_(local(values[name]))


def set_dropout(model: nn.Module, probability: float) -> None:
    """Drop with this probability wherever `model` can drop at all."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability  # type: ignore[assignment]
