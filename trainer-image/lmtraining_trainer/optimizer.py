"""The update rule.

Promise: weight decay pulls on matrices and token embeddings only: norms, biases and position
embeddings are left alone. All that an optimizer remembers lies in its state beside the weights,
where a checkpoint finds it (P7); whether one takes the flag that leaves a bad update out on the
device, it says itself (`reads_late`), and the host does not call those that do not (P6).
Trap avoided: pytorch_optimizer 3.11 counts AdaBelief's steps in the parameter group, which a resume
would begin anew, and its foreach path, the default on CUDA, leaves out the bias correction of the
first moment.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_optimizer.optimizer import adabelief
from pytorch_optimizer.optimizer.lion import Lion
from torch import nn
from transformers import PreTrainedModel

from lmtraining_api.job import FineTuning, Optimizer
from lmtraining_trainer.freezing import depths
from lmtraining_trainer.ftrl import Ftrl
from lmtraining_trainer.model import blocks

#: Names of position embeddings in transformers' models.
POSITION_EMBEDDINGS = ("wpe.", "position_embeddings.")

Groups = list[dict[str, Any]]
Settings = Mapping[str, float]


def build_optimizer(
    model: PreTrainedModel, spec: Optimizer, tuning: FineTuning | None = None
) -> torch.optim.Optimizer:
    """The optimizer that `spec` names, over the parameters of `model` that are trained."""
    settings, groups = spec.settings, _groups(model, spec, tuning or FineTuning())
    if spec.name == "muon":
        hidden = {id(p) for block in blocks(model) for p in block.parameters() if p.dim() == 2}
        matrices = [_only(group, lambda p: id(p) in hidden) for group in groups]
        rest = [_only(group, lambda p: id(p) not in hidden) for group in groups]
        return MuonAndAdamW(matrices, rest, settings)
    return _BUILDERS[spec.name](groups, settings)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    return parameter.dim() >= 2 and not any(part in name for part in POSITION_EMBEDDINGS)


def _groups(model: PreTrainedModel, spec: Optimizer, tuning: FineTuning) -> Groups:
    """Those that decay and those that do not, for each part of the model that has its own rate or
    its own time. `rate_share` is the group's part of the learning rate, `depth` its place in the
    model, where either differs."""
    depth_of, decay = depths(model), spec.settings["weight_decay"]
    top = max(depth_of.values())
    is_deep = tuning.layer_rate_decay is not None or tuning.unfreeze_every_steps is not None
    groups: Groups = []
    for depth in sorted(set(depth_of.values()), reverse=True) if is_deep else [None]:
        share = 1.0 if depth is None else (tuning.layer_rate_decay or 1.0) ** (top - depth)
        for does_decay in (True, False):
            own = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and decays(name, parameter) is does_decay
                and (depth is None or depth_of[id(parameter)] == depth)
            ]
            group = {"params": own, "weight_decay": decay if does_decay else 0.0}
            groups.append(group | {"decays": does_decay, "rate_share": share, "depth": depth})
    return groups


def _only(group: dict[str, Any], belongs: Callable[[nn.Parameter], bool]) -> dict[str, Any]:
    """The group with some of its parameters."""
    return group | {"params": [parameter for parameter in group["params"] if belongs(parameter)]}


def _adamw(groups: Groups, settings: Settings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups,
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
        fused=True,
    )


def _sgd(groups: Groups, settings: Settings) -> torch.optim.SGD:
    return torch.optim.SGD(groups, lr=settings["learning_rate"], momentum=settings["momentum"])


def _adagrad(groups: Groups, settings: Settings) -> "Adagrad":
    return Adagrad(groups, lr=settings["learning_rate"], eps=settings["epsilon"])


def _adabelief(groups: Groups, settings: Settings) -> "AdaBelief":
    return AdaBelief(
        groups,
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
        foreach=False,
    )


def _ftrl(groups: Groups, settings: Settings) -> Ftrl:
    return Ftrl(groups, lr=settings["learning_rate"], beta=settings["epsilon"], l1=settings["l1"])


def _adafactor(groups: Groups, settings: Settings) -> torch.optim.Adafactor:
    return torch.optim.Adafactor(groups, lr=settings["learning_rate"])


def _lion(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    betas = (settings["beta1"], settings["beta2"])
    return Lion(groups, lr=settings["learning_rate"], betas=betas)


_BUILDERS: Mapping[str, Callable[[Groups, Settings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adagrad": _adagrad,
    "adabelief": _adabelief,
    "ftrl": _ftrl,
    "adafactor": _adafactor,
    "lion": _lion,
}


class Adagrad(torch.optim.Adagrad):
    """torch's, which begins anew where its state was forgotten, as the others do."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    begun = {"step": torch.tensor(0.0), "sum": torch.zeros_like(parameter)}
                    self.state[parameter] = begun
        super().step(closure)


class AdaBelief(adabelief.AdaBelief):
    """The library's, with its count of steps beside the moments, where a checkpoint finds it."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; each weight's step count is its own."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            done = [int(self.state[p]["step"]) for p in moved if "step" in self.state[p]]
            group["step"] = max(done, default=0)
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] = torch.tensor(float(group["step"]))


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on hidden matrices and AdamW on the rest, as one optimizer with one state.

    Muon's update is scaled to the root mean square of AdamW's (arXiv 2502.16982, section 2.2), so
    that one learning rate and one weight decay fit both, whichever way round a layer keeps its
    matrix.
    """

    def __init__(self, matrices: Groups, rest: Groups, settings: Settings) -> None:
        muon = torch.optim.Muon(
            matrices,
            lr=settings["learning_rate"],
            momentum=settings["momentum"],
            adjust_lr_fn="match_rms_adamw",
        )
        self._parts = (muon, _adamw(rest, settings))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of either part."""
        for part in self._parts:
            part.step(closure)  # type: ignore[no-untyped-call]
