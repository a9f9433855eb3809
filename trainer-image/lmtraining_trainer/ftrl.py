"""FTRL-Proximal per coordinate, for weights that are not zero at first and a rate that changes.

Promise: without gradients nothing moves, whatever the schedule does; with neither L1 nor L2 it is
AdaGrad.
Trap avoided: as printed (McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches",
algorithm 1) and in the libraries, the weight is a function of the sums alone: it forgets what a
model was initialised to, and each change of the rate scales all weights. Here the sum begins at the
point whose minimum is the given weight, and the proximal term is the difference of the inverse
rates (McMahan 2011, arXiv 1009.3240, section 2), which may have changed for either reason.
"""

from typing import Any

import torch
from torch.optim import Optimizer


class Ftrl(Optimizer):
    """`weight_decay` of a group is the L2 term."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, beta: float, l1: float) -> None:
        super().__init__(groups, {"lr": lr, "beta": beta, "l1": l1, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient; at a rate of 0, none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and group["lr"] > 0.0:
                    self._update(parameter, parameter.grad, group)

    def _update(self, weights: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        rate, beta, l1 = group["lr"], group["beta"], group["l1"]
        state = self.state[weights]
        if not state:
            state["z"] = weights * (-beta / rate)
            state["n"] = torch.zeros_like(weights)
            state["rate"] = torch.tensor(rate, dtype=torch.float64)
        z, n = state["z"], state["n"]
        before = n.sqrt().add_(beta).div_(float(state["rate"]))
        n.addcmul_(gradient, gradient)
        now = n.sqrt().add_(beta).div_(rate)
        z.add_(gradient).sub_(before.neg_().add_(now).mul_(weights))
        state["rate"].fill_(rate)
        shrunk = z.abs().sub_(l1).clamp_(min=0.0).mul_(z.sign())
        weights.copy_(shrunk.neg_().div_(now.add_(group["weight_decay"])))
