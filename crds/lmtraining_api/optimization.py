"""How the weights change: the update rule, its rate, and what keeps the weights in shape.

Promise: an option that the chosen rule does not have is refused with the rules that have it. What
is left out has the value that `DEFAULTS` names for the chosen optimizer, and the reference says so.
Trap avoided: one default for all optimizers. Lion at AdamW's rate diverges, SGD at it stands still.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from lmtraining_api.base import Rule, SpecModel

STEPS_MAX = 100_000_000
TOKENS_MAX = 10**15
DECAY_FRACTION = 0.2
FINAL_FRACTION = 0.1

OptimizerName = Literal["adamw", "sgd", "adagrad", "adabelief", "ftrl", "adafactor", "lion", "muon"]

#: The options of each optimizer, with what each is where the job does not say.
DEFAULTS: Final[Mapping[OptimizerName, Mapping[str, float]]] = MappingProxyType(
    {
        "adamw": {
            "learning_rate": 6.0e-4,
            "weight_decay": 0.1,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1.0e-8,
        },
        "sgd": {"learning_rate": 0.1, "weight_decay": 1.0e-4, "momentum": 0.9},
        "adagrad": {"learning_rate": 1.0e-2, "weight_decay": 0.0, "epsilon": 1.0e-10},
        "adabelief": {
            "learning_rate": 6.0e-4,
            "weight_decay": 0.1,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1.0e-16,
        },
        "ftrl": {"learning_rate": 1.0e-2, "weight_decay": 0.0, "epsilon": 1.0e-6, "l1": 0.0},
        "adafactor": {"learning_rate": 1.0e-2, "weight_decay": 0.0},
        "lion": {"learning_rate": 1.0e-4, "weight_decay": 0.5, "beta1": 0.9, "beta2": 0.99},
        "muon": {
            "learning_rate": 6.0e-4,
            "weight_decay": 0.1,
            "momentum": 0.95,
            "beta1": 0.9,
            "beta2": 0.95,
            "epsilon": 1.0e-8,
        },
    }
)


def _only_where_it_has_effect(option: str) -> Rule:
    names = [name for name, options in DEFAULTS.items() if option in options]
    listed = ", ".join(f"'{name}'" for name in names)
    choices = " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return Rule(
        cel=f"!has(self.{option}) || self.name in [{listed}]",
        message=f"{option} has no effect on optimizer {{name}}: remove it, or choose {choices}",
        check=lambda o: getattr(o, option) is None or o.name in names,
        at=option,
    )


class Budget(SpecModel):
    """When training is finished: exactly one of the three."""

    steps: int | None = Field(default=None, ge=1, le=STEPS_MAX)
    """Optimizer steps."""
    tokens: int | None = Field(default=None, ge=1, le=TOKENS_MAX)
    """Training tokens, rounded up to whole steps."""
    epochs: float | None = Field(default=None, ge=0.001, le=1_000_000)
    """Times that every sequence of the training text is read, rounded up to whole steps."""

    rules: ClassVar = (
        Rule(
            cel="(has(self.steps) ? 1 : 0) + (has(self.tokens) ? 1 : 0) + "
            "(has(self.epochs) ? 1 : 0) == 1",
            message="budget needs exactly one of steps, tokens and epochs: keep one of them",
            check=lambda b: [b.steps, b.tokens, b.epochs].count(None) == 2,
        ),
    )


class Optimizer(SpecModel):
    """The update rule. Weight decay is not applied to norms, biases and embeddings' positions."""

    name: OptimizerName = "adamw"
    """adamw: Loshchilov & Hutter, arXiv 1711.05101. sgd: with momentum, Sutskever et al. 2013.
    adagrad: Duchi et al. 2011. adabelief: Zhuang et al., arXiv 2010.07468. ftrl: FTRL-Proximal per
    coordinate, McMahan et al. 2013, which begins at the given weights. adafactor: Shazeer & Stern,
    arXiv 1804.04235, whose second moments take a row and a column instead of a matrix. lion: Chen
    et al., arXiv 2302.06675. muon: hidden matrices by Muon (Jordan 2024) at the scale of AdamW's
    updates (arXiv 2502.16982), all other weights by AdamW."""
    learning_rate: float | None = Field(default=None, gt=0.0, le=10.0)
    """Peak learning rate; adafactor's is relative to the size of a weight. Left out: 6e-4 with
    adamw, adabelief and muon, 0.1 with sgd, 1e-2 with adagrad, ftrl and adafactor, 1e-4 with
    lion."""
    weight_decay: float | None = Field(default=None, ge=0.0, le=1.0)
    """Decoupled weight decay of matrices; with sgd and adagrad added to their gradient (L2), with
    ftrl its L2 term. Left out: 0.1 with adamw, adabelief and muon, 0.5 with lion, 1e-4 with sgd, 0
    with the others."""
    momentum: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Decay of the running gradient: 0.9 with sgd, 0.95 with muon; none of the others has it."""
    beta1: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Decay of the first moment, 0.9: adamw, adabelief, lion, and muon's AdamW part."""
    beta2: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Decay of the second moment, of the momentum itself with lion. Left out: 0.95 with adamw and
    muon's AdamW part, 0.999 with adabelief, 0.99 with lion."""
    epsilon: float | None = Field(default=None, gt=0.0, le=1.0)
    """Term that keeps the division finite, ftrl's beta. Left out: 1e-8 with adamw and muon's AdamW
    part, 1e-10 with adagrad, 1e-16 with adabelief, 1e-6 with ftrl."""
    l1: float | None = Field(default=None, ge=0.0, le=1.0e6)
    """L1 term of ftrl, 0: weights that the gradients so far do not carry beyond it are exactly
    zero."""

    rules: ClassVar = tuple(
        _only_where_it_has_effect(option)
        for option in ("momentum", "beta1", "beta2", "epsilon", "l1")
    )

    @property
    def settings(self) -> dict[str, float]:
        """Every option that the optimizer has, with the value that it will use."""
        defaults = DEFAULTS[self.name]
        return {
            option: default if (chosen := getattr(self, option)) is None else chosen
            for option, default in defaults.items()
        }

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.settings["learning_rate"]


class Regularisation(SpecModel):
    """What keeps the model from learning its text by heart. Weight decay is the optimizer's."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target's probability that is spread over the whole vocabulary (Szegedy et al.,
    arXiv 1512.00567); not in validation."""
    dropout: float | None = Field(default=None, ge=0.0, le=0.9)
    """Dropout probability wherever the architecture can drop; llama: attention. Left out: what the
    model says itself."""
    l1: float = Field(default=0.0, ge=0.0, le=1.0)
    """Penalty on the sum of the absolute weights that decay, by its slope."""
    proximal_l1: float = Field(default=0.0, ge=0.0, le=100.0)
    """The same penalty by a soft threshold of rate times this after each step, which makes weights
    exactly zero; their share is reported at the end."""
    mixup: float = Field(default=0.0, ge=0.0, le=10.0)
    """Alpha of the Beta distribution by which two sequences of a micro-batch are mixed: their
    embeddings, and their targets alike (Zhang et al., arXiv 1710.09412; Guo et al., arXiv
    1905.08941). 0: none."""
    average_decay: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Also keep an exponential moving average of the weights, which is validated and exported in
    their place. Left out: none."""


Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class Lora(SpecModel):
    """Low-rank adapters beside frozen weights (Hu et al., arXiv 2106.09685); the export has them
    merged."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the matrix that is added to each weight."""
    alpha: int = Field(default=16, ge=1, le=4096)
    """The added matrix is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)
    """Dropout probability on the way into an adapter."""
    targets: list[Pattern] = Field(default=[], max_length=64)
    """Linear layers of the blocks, by the last part of the name (c_attn, q_proj) or by a pattern
    for all of it. Left out: all of them."""


class FineTuning(SpecModel):
    """Which weights are trained, from when, and how fast beside the others."""

    freeze: list[Pattern] = Field(default=[], max_length=64)
    """Weights that are not trained, by name as the export has it, with * and ?:
    transformer.h.0.*."""
    layer_rate_decay: float | None = Field(default=None, gt=0.0, le=1.0)
    """Factor by which the learning rate of each block is below that of the block after it, and that
    of the embeddings below that of the first (Howard & Ruder, arXiv 1801.06146, section 3.2). Left
    out: one rate for all."""
    unfreeze_every_steps: int | None = Field(default=None, ge=1, le=STEPS_MAX)
    """Begin with the last block and what follows it, and train one block more each so many steps,
    the embeddings last (section 3.3 there). Left out: all are trained from the first step."""
    lora: Lora | None = None
    """Train low-rank adapters instead of the weights. Left out: the weights."""


class EarlyStopping(SpecModel):
    """End the run as Completed when validation does not improve; the best weights are exported."""

    patience: int = Field(ge=1, le=10_000)
    """Validations in a row (evaluation.everySteps) without a new best after which the run ends."""
    gain_min: float = Field(default=0.0, ge=0.0, le=10.0)
    """How far below the best a validation loss must be to be the new best, in nats per token."""


class Schedule(SpecModel):
    """The learning rate over the steps."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """After the warm-up: cosine, half a cosine down to finalFraction of the peak (arXiv
    1608.03983). linear, a straight line to it. constant, the peak. wsd, the peak and then, in the
    last decayFraction of the steps, down to finalFraction by the square root of the share that is
    done (arXiv 2405.18392): such a run can go on from before its decay with a larger budget."""
    warmup_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps in which the rate rises from 0 to the peak."""
    decay_fraction: float = Field(default=DECAY_FRACTION, gt=0.0, le=1.0)
    """Share of the steps in which the rate falls; wsd only."""
    final_fraction: float = Field(default=FINAL_FRACTION, ge=0.0, le=1.0)
    """Rate at the last step, as a share of the peak; not with constant."""

    rules: ClassVar = (
        Rule(
            cel=f"self.name == 'wsd' || self.decayFraction == {DECAY_FRACTION}",
            message="decayFraction has no effect on schedule {name}: remove it, or choose wsd",
            check=lambda s: s.name == "wsd" or s.decay_fraction == DECAY_FRACTION,
            at="decayFraction",
        ),
        Rule(
            cel=f"self.name != 'constant' || self.finalFraction == {FINAL_FRACTION}",
            message="finalFraction has no effect on schedule {name}: remove it, or choose cosine, "
            "linear or wsd",
            check=lambda s: s.name != "constant" or s.final_fraction == FINAL_FRACTION,
            at="finalFraction",
        ),
        Rule(
            cel="self.name != 'wsd' || self.warmupFraction + self.decayFraction <= 1.0",
            message="warmupFraction and decayFraction are together more than 1, the whole run: "
            "lower one of them",
            check=lambda s: s.name != "wsd" or s.warmup_fraction + s.decay_fraction <= 1.0,
            at="decayFraction",
        ),
    )
