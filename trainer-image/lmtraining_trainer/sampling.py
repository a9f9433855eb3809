"""The figures that only some steps are asked for, measured beside the training.

Promise: a sampled step computes what it would have computed anyway, to the last bit: the probe is a
pass of its own over a few sequences of the batch, puts the generators back, and its gradients are
never accumulated. All ranks get the same figures.
Trap avoided: attention logits cannot be read out of a fused kernel, and hooks on each step cost
each step. The norms of queries and keys bound the logits, whatever rotates them.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lmtraining_trainer import rng
from lmtraining_trainer.data.micro_batch import Batch
from lmtraining_trainer.guard import Sample
from lmtraining_trainer.model import blocks
from lmtraining_trainer.sharding import is_sharded, local, total_norm
from lmtraining_trainer.step import Verdict
from lmtraining_trainer.trainer import Trainer

SAMPLE_STEPS = 50
"""Steps between two samples."""
PROBE_SHARE = 8
"""One of so many sequences of a micro-batch is probed; at least one."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one rank's probe gave."""

    sequences: int
    """Whose mean gradient has this norm."""
    gradient_norm: float
    logit_bound: float
    activation_max: float
    weights_before: list[torch.Tensor] | None
    """Of this rank, where the optimizer's state does not tell the update."""


@dataclass
class Extremes:
    """The largest values that a forward pass had, collected by hooks; scalars on the device."""

    query_norms: list[torch.Tensor] = field(default_factory=list)
    """By layer: the greatest norm of each head."""
    key_norms: list[torch.Tensor] = field(default_factory=list)
    activations: list[torch.Tensor] = field(default_factory=list)

    def logit_bound(self, head_width: int) -> float:
        """No attention logit was larger; 0.0 where the architecture keeps its queries and keys in
        a way that is not known here."""
        if not self.query_norms:
            return 0.0
        products = torch.stack(self.query_norms) * torch.stack(self.key_norms)
        return float(products.max()) / math.sqrt(head_width)

    def activation_max(self) -> float:
        return float(torch.stack(self.activations).max())


def probe(trainer: Trainer, batch: Batch) -> Probe:
    """Forward and backward over a part of the rank's batch; leaves no trace."""
    model, whole = trainer.state.model, batch[0]
    sequences = max(1, len(whole.inputs) // PROBE_SHARE)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = rng.drawn_from()
    with watched(model) as extremes, trainer.autocast():
        loss = trainer.with_loss(*whole.first(sequences).tensors)
    gradients = _gradients(loss, parameters)
    groups = trainer.state.optimizer.param_groups
    frozen = {id(p) for group in groups if group.get("frozen") for p in group["params"]}
    rng.draw_again_from(before)
    config = model.config
    return Probe(
        sequences=sequences * (trainer.gang.world_size if trainer.state.is_sharded else 1),
        gradient_norm=float(
            total_norm(
                [g for p, g in zip(parameters, gradients, strict=True) if id(p) not in frozen]
            )
        ),
        logit_bound=extremes.logit_bound(_head_width(config)),
        activation_max=extremes.activation_max(),
        weights_before=_weights_before(trainer.state.optimizer),
    )


def _weights_before(optimizer: torch.optim.Optimizer) -> list[torch.Tensor] | None:
    """A copy, where the moments that are left after a step do not tell what it was; in the memory
    of the host, since a run that filled the device would end at its first sample."""
    if isinstance(optimizer, torch.optim.AdamW):
        return None
    return [local(p.detach()).to("cpu", copy=True) for p in _trained(optimizer)]


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(loss: torch.Tensor, parameters: list[nn.Parameter]) -> Sequence[torch.Tensor | None]:
    """The gradients of `loss`, beside those of the step; of sharded parameters their mean over the
    ranks, which is all that the hooks leave of them."""
    if not is_sharded(parameters[0]):
        return torch.autograd.grad(loss, parameters)
    of_the_step = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, of_the_step, strict=True):
        parameter.grad = gradient
    return gradients


def sample(trainer: Trainer, probed: Probe, verdict: Verdict, rate: float) -> Sample:
    """The figures of the step that was just taken, agreed between the ranks."""
    own = [probed.gradient_norm**2, probed.logit_bound, probed.activation_max]
    optimizer, before = trainer.state.optimizer, probed.weights_before
    moved = adam_sums(optimizer) if before is None else moved_sums(optimizer, before, rate)
    ranks = [json.loads(each) for each in trainer.gang.gather(json.dumps([own, moved]).encode())]
    squares, logits, activations = zip(*(figures for figures, _ in ranks), strict=True)
    update_rms, weight_rms, swallowed = update_figures([sums for _, sums in ranks])
    return Sample(
        learning_rate=rate,
        update_rms=update_rms,
        weight_rms=weight_rms,
        swallowed=swallowed,
        logit_bound=max(logits),
        activation_max=max(activations),
        part_norm=math.sqrt(sum(squares) / len(squares)),
        part_sequences=probed.sequences,
        whole_norm=verdict.gradient_norm,
        whole_sequences=trainer.plan.batch_sequences,
    )


def update_figures(ranks: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Root mean square of the newest update before the rate, and of the weights; share of Adam's
    second moments whose root is below epsilon. From what one of the next two gave on each rank."""
    updates, weights, swallowed, count = (sum(each) for each in zip(*ranks, strict=True))
    return math.sqrt(updates / count), math.sqrt(weights / count), swallowed / count


def adam_sums(optimizer: torch.optim.Optimizer) -> list[float]:
    """Sums of squares of AdamW's update, without decay, and of the weights; the number of moments
    below epsilon and of all; in what this rank holds."""
    totals: list[torch.Tensor] = []
    count = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {key: local(value) for key, value in optimizer.state[parameter].items()}
            if not state:  # not trained yet
                continue
            weights = local(parameter.detach())
            totals.append(_of_weights(weights, state, group))
            count += weights.numel()
    return [*torch.stack(totals).sum(dim=0).tolist(), count]


def moved_sums(
    optimizer: torch.optim.Optimizer, before: list[torch.Tensor], rate: float
) -> list[float]:
    """The same of any optimizer, from the weights before its step; none has an epsilon that
    swallows what it divides."""
    scale = rate or 1.0  # the last step of a schedule may have a rate of 0, and moves nothing
    totals: list[torch.Tensor] = []
    for parameter, old in zip(_trained(optimizer), before, strict=True):
        weights = local(parameter.detach())
        moved = old.to(weights.device).sub_(weights)
        squares = (moved.square_().sum() / scale**2, weights.square().sum())
        totals.append(torch.stack([*squares, torch.zeros_like(squares[0])]).double())
    return [*torch.stack(totals).sum(dim=0).tolist(), sum(len(old.view(-1)) for old in before)]


def _of_weights(
    weights: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
) -> torch.Tensor:
    """Sums of squares of update and weights, and the number of moments below epsilon."""
    beta1, beta2 = group["betas"]
    root = (state["exp_avg_sq"] / (1.0 - beta2 ** state["step"])).sqrt_()
    swallowed = (root < group["eps"]).sum()
    update = state["exp_avg"] / (1.0 - beta1 ** state["step"]) / root.add_(group["eps"])
    return torch.stack([update.square().sum(), weights.square().sum(), swallowed]).double()


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[Extremes]:
    """Hooks on a model that collect the extremes of what passes through it: of queries and keys
    where they are kept as in gpt2, llama or bert."""
    found = Extremes()
    shape = model.config.num_attention_heads, _head_width(model.config)
    handles = []
    for block in blocks(model):
        handles.append(block.register_forward_hook(partial(_see_block, found)))
        for layer, see in _projections(block):
            handles.append(layer.register_forward_hook(partial(see, found, shape)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _projections(block: Any) -> list[tuple[nn.Module, Any]]:
    joint: Any = getattr(getattr(block, "attn", None), "c_attn", None)
    if isinstance(getattr(joint, "base_layer", joint), Conv1D):  # beside adapters, or alone
        return [(joint, _see_queries_and_keys)]
    encoders: Any = getattr(getattr(block, "attention", None), "self", None)
    if hasattr(encoders, "query"):
        return [(encoders.query, _see_queries), (encoders.key, _see_keys)]
    parts: Any = getattr(block, "self_attn", None)
    if not hasattr(parts, "q_proj") or hasattr(parts, "q_norm"):  # normed after the projection
        return []
    return [(parts.q_proj, _see_queries), (parts.k_proj, _see_keys)]


def _head_width(config: Any) -> int:
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def _see_block(found: Extremes, _: nn.Module, __: Any, output: Any) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    found.activations.append(hidden.detach().abs().max().float())


Shape = tuple[int, int]
"""Heads of the queries, and the width of a head."""


def _see_queries_and_keys(
    found: Extremes, shape: Shape, layer: nn.Module, _: Any, output: torch.Tensor
) -> None:
    queries, keys, _ = output.chunk(3, dim=-1)
    _see_queries(found, shape, layer, _, queries)
    _see_keys(found, shape, layer, _, keys)


def _see_queries(
    found: Extremes, shape: Shape, _: nn.Module, __: Any, output: torch.Tensor
) -> None:
    found.query_norms.append(_head_norms(output, shape[1]))


def _see_keys(found: Extremes, shape: Shape, _: nn.Module, __: Any, output: torch.Tensor) -> None:
    norms = _head_norms(output, shape[1])
    found.key_norms.append(norms.repeat_interleave(shape[0] // len(norms)))


def _head_norms(output: torch.Tensor, width: int) -> torch.Tensor:
    """The greatest norm of each head: [heads] of [sequences, length, heads * width]."""
    by_head = output.detach().float().reshape(*output.shape[:-1], -1, width)
    norms: torch.Tensor = torch.linalg.vector_norm(by_head, dim=-1)
    return norms.flatten(0, 1).amax(dim=0)
