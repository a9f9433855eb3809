"""One optimizer step, and the guard before it.

Promise: nothing that is not finite reaches parameters or optimizer state (P6), and every rank takes
the same decision before any of them acts: one small all-reduce per step carries the loss, the
non-finite flag and the wishes to stop and to save.
Trap avoided: a branch on a rank's own loss leaves the ranks at different steps; multiplying a bad
update by zero leaves NaN.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lmtraining_trainer.data.batches import Batch
from lmtraining_trainer.gang import Gang


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a forward and backward pass gave on this rank."""

    loss: float
    """Mean over this rank's tokens, nats per token."""
    gradient_norm: torch.Tensor
    """Global norm of the averaged gradients, before clipping, as this rank has it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What all ranks do next."""

    loss: float
    """Mean over all ranks' tokens."""
    gradient_norm: float
    """Mean over the ranks, which is what each has unless a device fails."""
    is_finite: bool
    stop: bool
    """Some rank was asked to stop."""
    save: bool
    """The lead wants a checkpoint of this step."""


def forward_backward(
    model: nn.Module, batch: Batch, autocast: Callable[[], AbstractContextManager[None]]
) -> Measured:
    """Gradients of the mean loss over `batch`, averaged over the ranks by the last micro-batch."""
    losses = []
    for index, micro_batch in enumerate(batch):
        is_last = index == len(batch) - 1
        with nullcontext() if is_last else _without_sync(model):
            with autocast():
                loss = model(micro_batch.inputs, micro_batch.targets)
            (loss / len(batch)).backward()
        losses.append(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Measured(loss=float(torch.stack(losses).mean()), gradient_norm=get_total_norm(gradients))


def agree(gang: Gang, measured: Measured, *, stop: bool, save: bool) -> Verdict:
    """One verdict from what the ranks measured."""
    norm = float(measured.gradient_norm)
    is_bad = not (math.isfinite(measured.loss) and math.isfinite(norm))
    own = [measured.loss, norm, float(is_bad), float(stop), float(save)]
    loss, norms, bad, stops, saves = gang.sum(own)
    return Verdict(
        loss=loss / gang.world_size,
        gradient_norm=norms / gang.world_size,
        is_finite=bad == 0.0,
        stop=stops > 0.0,
        save=saves > 0.0,
    )


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    clip_norm: float,
    gradient_norm: float,
) -> None:
    """Clip the gradients, take the step, drop the gradients. `gradient_norm` is the agreed one: a
    rank that clips by its own leaves the others where a device fails."""
    clip_grads_with_norm_(model.parameters(), clip_norm, torch.tensor(gradient_norm))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _without_sync(model: Any) -> AbstractContextManager[None]:
    no_sync = getattr(model, "no_sync", None)  # only DistributedDataParallel has it
    return nullcontext() if no_sync is None else no_sync()
