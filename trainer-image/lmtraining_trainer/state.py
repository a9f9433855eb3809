"""Everything that training changes, in one place.

Promise: a `TrainState` and the journal are the whole of a run; what is not here is a pure function
of the spec and the step (learning rate, data order).
Trap avoided: state that lives in a loader, a scheduler or a callback is state that some resume
forgets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lmtraining_trainer.guard import Window
from lmtraining_trainer.regularise import Average, Best
from lmtraining_trainer.sharding import as_part, cut_of, is_sharded, local, own_part

AVERAGE, BEST = "average", "best"
"""What a checkpoint calls the averaged and the best weight beside what the optimizer remembers of
it."""
ADAPTER, BESIDE_ADAPTER = "lora_", ".base_layer."
"""What peft has in the names of adapters, and of the weights that they are beside."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """All of a run that is no tensor, after its newest step."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens of those steps."""
    position: int = 0
    """Global sample index of the next batch; skipped batches move it too."""
    skipped_positions: tuple[int, ...] = ()
    """Where the batches began that were skipped."""
    loss: float | None = None
    """Loss of the newest step, nats per token."""
    validation_loss: float | None = None
    validation_step: int | None = None
    validation_accuracy: float | None = None
    """Of the newest validation, like the next, where the task has labels."""
    validation_f1: float | None = None
    best_validation_loss: float | None = None
    best_step: int | None = None
    """The step of the lowest validation loss that was worth the name."""
    best_validation_accuracy: float | None = None
    """Of that step, like the next."""
    best_validation_f1: float | None = None
    stale_validations: int = 0
    """Validations since."""
    clipped_steps: int = 0
    """Steps whose gradient was clipped harder than gradientClipNorm says."""
    trained_seconds: float = 0.0
    """Time of the steps done, for the accounts."""
    proven_step: int = 0
    """The newest step that enough good ones have followed: up to it a checkpoint is healthy."""
    window: Window = field(default_factory=Window)
    """What the guard remembers."""

    def json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"skipped_positions": list(self.skipped_positions)}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Counters":
        """From JSON; fields of a newer version are ignored. Raises TypeError or KeyError."""
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        parsed = {
            "skipped_positions": tuple(value["skipped_positions"]),
            "window": Window.of_json(value.get("window", {})),
        }
        return cls(**known | parsed)

    @property
    def validated_loss(self) -> float | None:
        """The validation loss of this very step, where it was validated."""
        return self.validation_loss if self.validation_step == self.step else None

    def without_best(self) -> "Counters":
        """Where the weights of the best validation are not known."""
        return replace(self, best_validation_loss=None, best_step=None, stale_validations=0)

    def accepted(
        self,
        *,
        tokens: int,
        sequences: int,
        loss: float,
        window: Window,
        clipped: bool,
        trained_seconds: float,
        healthy_steps: int,
    ) -> "Counters":
        """After one more optimizer step. `healthy_steps` good ones prove what was before them."""
        is_proof = window.good_steps >= healthy_steps
        proven = self.step + 1 - healthy_steps if is_proof else 0
        return replace(
            self,
            window=window,
            clipped_steps=self.clipped_steps + clipped,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            position=self.position + sequences,
            loss=loss,
            trained_seconds=trained_seconds,
            proven_step=max(self.proven_step, proven),
        )

    def skipped(self, *, sequences: int, window: Window) -> "Counters":
        """After a batch that changed nothing else (P6)."""
        return replace(
            self,
            window=window,
            position=self.position + sequences,
            skipped_positions=(*self.skipped_positions, self.position),
        )

    def validated(
        self,
        loss: float | None,
        *,
        gain_min: float = 0.0,
        figures: Mapping[str, Any] | None = None,
    ) -> "Counters":
        """After a validation at this step, which is the best if it is so much below the best
        before. `figures` are by the name that they have here."""
        now = replace(self, validation_loss=loss, validation_step=self.step, **(figures or {}))
        best = self.best_validation_loss
        if loss is not None and (best is None or loss < best - gain_min):
            return replace(
                now,
                best_validation_loss=loss,
                best_validation_accuracy=now.validation_accuracy,
                best_validation_f1=now.validation_f1,
                best_step=self.step,
                stale_validations=0,
            )
        return replace(now, stale_validations=self.stale_validations + 1)


@dataclass
class TrainState:
    """The mutable state of one rank."""

    model: PreTrainedModel
    """The bare model, without wrappers."""
    optimizer: torch.optim.Optimizer
    counters: Counters = Counters()
    average: Average | None = None
    """Of the weights over the steps, where the job asks for one."""
    best: Best | None = None
    """Where the job may stop early."""
    _drawn: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """The adapters as they were drawn, for a checkpoint of a run that had none."""

    @property
    def validated_weights(self) -> dict[str, torch.Tensor]:
        """What is validated instead of the weights themselves; empty where those are."""
        return {} if self.average is None else self.average.weights

    @property
    def exported_weights(self) -> dict[str, torch.Tensor]:
        """The same for the export."""
        if self.best is not None and self.counters.best_step is not None:
            return self.best.weights
        return self.validated_weights

    @property
    def exported_validation(self) -> dict[str, float | int | None]:
        """The validation of what is exported, by the names of the report."""
        counters = self.counters
        if self.best is not None and counters.best_step is not None:
            return {
                "validation_loss": counters.best_validation_loss,
                "validation_step": counters.best_step,
                "validation_accuracy": counters.best_validation_accuracy,
                "validation_f1": counters.best_validation_f1,
            }
        return {
            "validation_loss": counters.validation_loss,
            "validation_step": counters.validation_step,
            "validation_accuracy": counters.validation_accuracy,
            "validation_f1": counters.validation_f1,
        }

    @property
    def is_sharded(self) -> bool:
        """Whether this rank holds only its part of the weights and moments."""
        return any(is_sharded(parameter) for parameter in self.model.parameters())

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """What this rank holds of the weights, by name, tied ones once; the tensors themselves, not
        copies."""
        return {
            name: local(parameter.detach()) for name, parameter in self.model.named_parameters()
        }

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """What this rank holds of the optimizer's tensors, the average and the best, by
        '<parameter>/<name>'."""
        return {name: local(value) for name, value in self._optimizer_state()}

    def cuts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How those tensors are cut, of the model and the optimizer; those that are whole left
        out."""
        model = ((name, cut_of(parameter)) for name, parameter in self.model.named_parameters())
        optimizer = ((name, cut_of(value)) for name, value in self._optimizer_state())
        return (
            {name: cut for name, cut in model if cut is not None},
            {name: cut for name, cut in optimizer if cut is not None},
        )

    def load_tensors(
        self,
        model: Mapping[str, torch.Tensor],
        optimizer: Mapping[str, torch.Tensor],
        *,
        with_moments: bool = True,
    ) -> None:
        """Take over what the first two methods above gave, and forget what was there before; what
        the optimizer remembers, only `with_moments`. Of a run that had none, adapters stay as they
        were drawn, and the average and the best begin at the weights. Raises KeyError where a
        weight is missing."""
        self.optimizer.state.clear()
        held, parameters = set(model), dict(self.model.named_parameters())
        self._drawn = self._drawn or {
            name: local(parameter.detach()).clone()
            for name, parameter in parameters.items()
            if ADAPTER in name
        }
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in held or ADAPTER not in name:
                    weights = model[name if name in held else name.replace(BESIDE_ADAPTER, ".")]
                    local(parameter).copy_(weights)
                else:
                    local(parameter).copy_(self._drawn[name])
            for weights_of in self._copies().values():
                for name, weights in weights_of.items():
                    local(weights).copy_(local(parameters[name]))
        self._load_beside(optimizer, parameters, with_moments=with_moments)

    def holds_best(self, optimizer: Iterable[str]) -> bool:
        """Whether what a checkpoint holds of the optimizer has the best weights, where the job
        keeps such."""
        return self.best is None or any(path.endswith(f"/{BEST}") for path in optimizer)

    def _load_beside(
        self,
        optimizer: Mapping[str, torch.Tensor],
        parameters: Mapping[str, torch.nn.Parameter],
        *,
        with_moments: bool,
    ) -> None:
        """The average, the best and, `with_moments`, what the optimizer remembers. What the job
        does not keep, or not train, is left out: it would be saved for ever."""
        copies = self._copies()
        # A count of steps stays beside the weight where a fused kernel reads it. All others read it
        # on the host, which would wait for the device at each weight.
        groups = self.optimizer.param_groups
        fused = {id(one) for group in groups if group.get("fused") for one in group["params"]}
        for path in optimizer:
            name, _, key = path.rpartition("/")
            if key in copies and name in copies[key]:
                local(copies[key][name]).copy_(optimizer[path])
            elif key in (AVERAGE, BEST) or name not in parameters or not with_moments:
                continue
            elif parameters[name].requires_grad:
                value = optimizer[path]
                if value.dim() > 0 or id(parameters[name]) in fused:
                    value = as_part(parameters[name], value)
                self.optimizer.state[parameters[name]][key] = value

    def cutter(self) -> Callable[[str, torch.Tensor], torch.Tensor]:
        """What gives this rank's part of a whole tensor that has that name in one of the first two
        methods above."""
        parameters = dict(self.model.named_parameters())

        def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
            parameter = parameters.get(name.partition("/")[0])
            return tensor if parameter is None else own_part(parameter, tensor)

        return cut

    def _optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{name}/{key}", value
        for key, weights in self._copies().items():
            for name, value in weights.items():
                yield f"{name}/{key}", value

    def _copies(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weights that are kept beside those that are trained."""
        kept = ((AVERAGE, self.average), (BEST, self.best))
        return {key: copy.weights for key, copy in kept if copy is not None}
