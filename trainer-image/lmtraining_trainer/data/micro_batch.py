"""What one forward pass reads, on the device of the rank.

Promise: every tensor of a micro-batch has one row per example, so that a part of it is a slice.
Trap avoided: a copy to a device that waits for the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Examples of one forward pass."""

    inputs: torch.Tensor
    """Tokens, int64 [sequences, length]."""
    targets: torch.Tensor
    """What the task is to say of them, int64 [sequences, ...]: of a language model the token after
    each."""
    more: tuple[torch.Tensor, ...] = ()
    """What else the loss of the task reads, each [sequences, ...]."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What a model with its loss is called with."""
        return (self.inputs, self.targets, *self.more)

    def first(self, sequences: int) -> "MicroBatch":
        """So many of its examples."""
        inputs, targets, *more = (tensor[:sequences] for tensor in self.tensors)
        return MicroBatch(inputs=inputs, targets=targets, more=tuple(more))


Batch = list[MicroBatch]
"""What one rank reads in one step: a micro-batch per accumulation."""


def on_device(rows: NDArray[Any], device: torch.device) -> torch.Tensor:
    """`rows` as a tensor on `device`."""
    tensor = torch.from_numpy(rows)
    if device.type == "cuda":  # pinned, so that the copy does not wait for the device
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
