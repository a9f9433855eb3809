"""The update rule.

Promise: weight decay pulls on matrices and token embeddings only: norms, biases and position
embeddings are left alone.
"""

import torch
from torch import nn

from lmtraining_api.job import Optimizer

#: Names of position embeddings in transformers' models.
POSITION_EMBEDDINGS = ("wpe.",)


def build_optimizer(model: nn.Module, spec: Optimizer) -> torch.optim.Optimizer:
    """torch's fused AdamW over the parameters of `model`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": spec.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        fused=True,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.dim() >= 2 and not any(part in name for part in POSITION_EMBEDDINGS)
