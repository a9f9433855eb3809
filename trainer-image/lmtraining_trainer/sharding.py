"""The sharded layout: each rank holds its part of every weight, gradient and moment.

Promise: the model is cut from outside and knows nothing of it; whoever asks here gets the same
answer for a tensor that is whole. Between two passes every parameter is its rank's part.
Trap avoided: torch leaves the weights of the root whole after a forward pass without gradients, and
a save or a comparison right after a validation would find those; the root is cut again after each
pass, which costs a second gathering of the embeddings. A tied weight belongs to the root, so that
both its users find it whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import blocks

SHARDED_DIM = 0
"""The dimension along which torch cuts every parameter."""


def shard(model: ModelLoss, device: torch.device) -> nn.Module:
    """Leave each rank of the gang its part of `model`, which changes in place."""
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)  # type: ignore[arg-type]
    for block in blocks(model.model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(what: nn.Module | torch.Tensor) -> bool:
    """Whether a rank holds only its part of it."""
    return isinstance(what, FSDPModule | DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it; the memory itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it. All ranks ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a whole `tensor` that is cut as `parameter` is; a copy."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    mesh = parameter.device_mesh
    parts, rank = tensor.chunk(mesh.size(), SHARDED_DIM), mesh.get_local_rank()
    return (parts[rank] if rank < len(parts) else tensor[:0]).clone()


def as_part(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, on the device of `parameter`, as this rank's part of something cut as `parameter`
    is; what has no dimension is whole everywhere."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.dim() == 0:
        return tensor
    return DTensor.from_local(
        tensor,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def cut_of(tensor: torch.Tensor) -> dict[str, Any] | None:
    """How a tensor is cut: its whole shape, along which dimension, and where the part of each rank
    starts; None where it is whole on each."""
    if not isinstance(tensor, DTensor):
        return None
    ranks, length = tensor.device_mesh.size(), tensor.shape[SHARDED_DIM]
    each = -(-length // ranks)
    starts = [min(rank * each, length) for rank in range(ranks)]
    return {"shape": list(tensor.shape), "dim": SHARDED_DIM, "starts": starts}


def joined(parts: Sequence[torch.Tensor], cut: dict[str, Any] | None) -> torch.Tensor:
    """A whole tensor from the parts of all ranks, in order of rank."""
    if cut is None:
        return parts[0]
    tensor = torch.empty(cut["shape"], dtype=parts[0].dtype)
    for part, start in zip(parts, cut["starts"], strict=True):
        tensor.narrow(cut["dim"], start, part.shape[cut["dim"]]).copy_(part)
    return tensor


def total_norm(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The norm of all gradients together, the same bits on every rank where they are sharded. All
    ranks ask at once."""
    there = [gradient for gradient in gradients if gradient is not None]
    own = get_total_norm([local(gradient) for gradient in there])
    if not any(is_sharded(gradient) for gradient in there):
        return own
    squares = own.double().square()  # a float's square may be more than a float holds
    dist.all_reduce(squares)
    return squares.sqrt().to(own.dtype)
