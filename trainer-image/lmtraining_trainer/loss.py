"""Cross-entropy of the next token, without the logits of a whole batch.

Promise: mean cross-entropy in fp32, and its exact gradients; the largest tensors of a training
step, [tokens, vocabulary], exist only a slice at a time.
Trap avoided: materialised, they are written to and read from memory four times. On a CPU (4 layers,
128 wide, vocabulary 4096) slices took a tenth off the whole step in fp32 and a quarter in bf16.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

#: Elements of a slice of logits: a slice fits the cache of a core, or keeps a GPU busy.
SLICE_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}


class ModelLoss(nn.Module):
    """A causal language model with its loss: what is wrapped, timed and differentiated."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy, nats per token, a scalar; tokens are int64 [sequences, length]."""
        body = self.model.base_model(input_ids=inputs, use_cache=False)
        hidden = body.last_hidden_state.flatten(0, 1)
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        weight = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        with torch.autocast(device, enabled=False):
            loss: torch.Tensor = _SlicedCrossEntropy.apply(hidden, weight, targets.flatten())
        return loss


class _SlicedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T`; the gradients are found on the way forward, where each
    slice of logits is at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """`hidden` is [tokens, width] in the format of the computation, `weight` is
        [vocabulary, width] in fp32."""
        wants_gradients = any(ctx.needs_input_grad)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden) if wants_gradients else None
        weight_gradient = torch.zeros_like(weight) if wants_gradients else None
        head = weight.to(hidden.dtype)
        rows = max(1, SLICE_ELEMENTS[hidden.device.type] // len(weight))
        for start in range(0, len(hidden), rows):
            own = slice(start, start + rows)
            wanted = targets[own, None]
            logs = torch.log_softmax((hidden[own] @ head.T).float(), dim=-1)
            total -= logs.gather(1, wanted).sum()
            if hidden_gradient is None or weight_gradient is None:
                continue
            # d loss / d logits = softmax - one_hot(target)
            probabilities = logs.exp_()
            probabilities.scatter_add_(
                1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32)
            )
            slopes = probabilities.to(hidden.dtype)
            torch.mm(slopes, head, out=hidden_gradient[own])
            weight_gradient += slopes.T @ hidden[own]
        if wants_gradients:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """The gradients of the mean, scaled by what comes from behind."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = slope / len(hidden_gradient)
        scaled = hidden_gradient.float() * scale  # rounded once, not the scale as well
        return scaled.to(hidden_gradient.dtype), weight_gradient * scale, None
