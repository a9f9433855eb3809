"""One optimizer step, and the guard before it.

Promise: nothing that is not finite reaches parameters or optimizer state (P6), and every rank takes
the same decision before any of them acts: one small all-reduce per step carries the loss, the
non-finite flag and the wishes to stop, to save and to follow a person's.
Where the host reads the verdict late, the device has already left out a bad update, by the flag
that torch's fused optimizers take: parameters, moments and step counts stay as they were.
Trap avoided: a branch on a rank's own loss leaves the ranks at different steps; multiplying a bad
update by zero leaves NaN.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_

from lmtraining_trainer.data.micro_batch import Batch
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.sharding import is_sharded, total_norm


class Moment:
    """A moment of this rank, on its device where that works through what it was given later."""

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def seconds_since(self, earlier: "Moment") -> float:
        """Of a device: once it has come to this moment."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1000.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a forward and backward pass gave on this rank."""

    loss: torch.Tensor
    """Mean over this rank's tokens, nats per token."""
    gradient_norm: torch.Tensor
    """Global norm of the averaged gradients, before clipping, as this rank has it."""
    own_seconds: Callable[[], float]
    """Until the backward pass in which the ranks wait for each other; to be asked once the device
    has come there."""


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
    news: bool = False
    """The lead was told of wishes that all must follow after this step."""

    @classmethod
    def of(cls, sums: Sequence[float], world_size: int) -> "Verdict":
        """From the sums over the ranks of what `_numbers` gives."""
        loss, norms, bad, stops, saves, news = sums
        return cls(
            loss=loss / world_size,
            gradient_norm=norms / world_size,
            is_finite=bad == 0.0,
            stop=stops > 0.0,
            save=saves > 0.0,
            news=news > 0.0,
        )


class Asked:
    """A verdict on its way from the device."""

    def __init__(
        self, gang: Gang, measured: Measured, *, stop: bool, save: bool, news: bool
    ) -> None:
        self._sums = gang.added(_numbers(measured, stop, save, news))
        self._world_size = gang.world_size
        is_far = self._sums.device.type == "cuda"
        self._copy = torch.empty_like(self._sums, device="cpu", pin_memory=is_far)
        self._copy.copy_(self._sums, non_blocking=True)
        self._copied: Any = torch.cuda.Event() if is_far else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    @property
    def gradient_norm(self) -> torch.Tensor:
        """What the verdict will say of it, on the device."""
        return self._sums[1] / self._world_size

    def skips(self, *, center: float, rise_max: float) -> torch.Tensor:
        """1 where the gradients must not be used, as the guard will find, else 0, on the device.
        `rise_max`: how far the loss may be above `center`."""
        rise = self._sums[0] / self._world_size - center
        accepts = (self._sums[2] == 0.0) & (self.gradient_norm > 0.0) & (rise <= rise_max)
        return (~accepts).float()

    def read(self) -> Verdict:
        """Waits until the device has come to it, and not for what it was given to do since."""
        if self._copied is not None:
            self._copied.synchronize()
        return Verdict.of(self._copy.tolist(), self._world_size)


def forward_backward(
    model: nn.Module, batch: Batch, autocast: Callable[[], AbstractContextManager[None]]
) -> Measured:
    """Gradients of the mean loss over `batch`, averaged over the ranks by the last micro-batch; by
    each where they are sharded, since what is not exchanged would be held whole."""
    losses = []
    device = batch[0].inputs.device
    began = joined = Moment(device)
    for index, micro_batch in enumerate(batch):
        is_last = index == len(batch) - 1
        with nullcontext() if is_last else _without_sync(model):
            with autocast():
                loss = model(*micro_batch.tensors)
            if is_last and not is_sharded(model):  # ranks that gather weights wait from the start
                joined = Moment(device)
            (loss / len(batch)).backward()
        losses.append(loss.detach())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Measured(
        loss=torch.stack(losses).mean(),
        gradient_norm=total_norm(gradients),
        own_seconds=partial(joined.seconds_since, began),
    )


def agree(gang: Gang, measured: Measured, *, stop: bool, save: bool, news: bool = False) -> Verdict:
    """One verdict from what the ranks measured."""
    sums = gang.sum(_numbers(measured, stop, save, news).tolist())
    return Verdict.of(sums, gang.world_size)


def _numbers(measured: Measured, *wanted: bool) -> torch.Tensor:
    """Loss, gradient norm, whether either is not finite, and what this rank wants, in one
    vector."""
    figures = torch.stack([measured.loss, measured.gradient_norm]).double()
    is_bad = ~figures.isfinite().all()
    # Filled on the device: a copy from the host would wait for it.
    wishes = [figures.new_full((1,), float(wish)) for wish in wanted]
    return torch.cat([figures, is_bad.double().reshape(1), *wishes])


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    learning_rate: float,
    clip_norm: float,
    gradient_norm: float | torch.Tensor,
    skips: torch.Tensor | None = None,
) -> None:
    """Clip the gradients, take the step, drop the gradients. `gradient_norm` is the agreed one: a
    rank that clips by its own leaves the others where a device fails. Where `skips` is 1 the device
    leaves the step out."""
    norm = torch.as_tensor(gradient_norm, dtype=torch.float32)
    clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_share", 1.0)
    flagged: Any = optimizer
    flagged.found_inf = skips
    optimizer.step()
    del flagged.found_inf
    optimizer.zero_grad(set_to_none=True)


def _without_sync(model: Any) -> AbstractContextManager[None]:
    no_sync = getattr(model, "no_sync", None)  # only DistributedDataParallel has it
    return nullcontext() if no_sync is None else no_sync()


def reads_late(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a host that waits for a verdict would keep the device waiting, and the optimizer's
    step takes the flag (torch's GradScaler asks the same)."""
    takes_flag: bool = getattr(optimizer, "_step_supports_amp_scaling", False)
    return device.type == "cuda" and takes_flag
