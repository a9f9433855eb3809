"""Everything that training changes, in one place.

Promise: a `TrainState` and the journal are the whole of a run; what is not here is a pure function
of the spec and the step (learning rate, data order).
Trap avoided: state that lives in a loader, a scheduler or a callback is state that some resume
forgets.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lmtraining_api import JournalEntry


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The scalars of a run, after its newest step."""

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

    def json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"skipped_positions": list(self.skipped_positions)}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Counters":
        """From JSON; fields of a newer version are ignored. Raises TypeError or KeyError."""
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        return cls(**known | {"skipped_positions": tuple(value["skipped_positions"])})

    def accepted(self, *, tokens: int, sequences: int, loss: float) -> "Counters":
        """After one more optimizer step."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + tokens,
            position=self.position + sequences,
            loss=loss,
        )

    def skipped(self, *, sequences: int) -> "Counters":
        """After a batch that changed nothing else (P6)."""
        return replace(
            self,
            position=self.position + sequences,
            skipped_positions=(*self.skipped_positions, self.position),
        )

    def validated(self, loss: float | None) -> "Counters":
        """After a validation at this step."""
        return replace(self, validation_loss=loss, validation_step=self.step)


@dataclass
class TrainState:
    """The mutable state of one rank."""

    model: PreTrainedModel
    """The bare model, without wrappers."""
    optimizer: torch.optim.Optimizer
    counters: Counters = Counters()

    def model_tensors(self) -> dict[str, torch.Tensor]:
        """The weights by name, tied ones once; the tensors themselves, not copies."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors by '<parameter>/<name>'; empty before the first step."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_tensors(
        self, model: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor]
    ) -> None:
        """Take over what the two methods above gave. Raises KeyError where a weight is missing."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(model[name])
        state: dict[str, dict[str, torch.Tensor]] = {}
        for path, value in optimizer.items():
            name, _, key = path.rpartition("/")
            state.setdefault(name, {})[key] = value
        for name, parameter in self.model.named_parameters():
            if name in state:
                self.optimizer.state[parameter] = {
                    # AdamW's step counter stays where the fused kernel keeps it: beside the weight.
                    key: value.to(parameter.device)
                    for key, value in state[name].items()
                }


@dataclass(frozen=True, kw_only=True)
class Skips:
    """The batches that the journal says were skipped."""

    positions: frozenset[int] = frozenset()
    """They stay skipped when a resume comes to them again, or it would not be bit for bit (P7)."""
    of_this_job: int = 0
    """How many of them count against stability.skippedStepsMax."""

    @classmethod
    def of_journal(cls, entries: Iterable[JournalEntry]) -> "Skips":
        """Replay the journal; a job that takes over a run starts with a budget of its own."""
        positions: set[int] = set()
        inherited: set[int] = set()
        for entry in entries:
            if entry.kind == "Skipped":
                positions.add(int(entry.detail.get("position") or 0))
            if entry.kind == "Started" and entry.detail.get("taken_over"):
                inherited = set(positions)
        return cls(positions=frozenset(positions), of_this_job=len(positions - inherited))

    def with_position(self, position: int) -> "Skips":
        """After a skip at `position`; the same one twice counts once."""
        if position in self.positions:
            return self
        return Skips(positions=self.positions | {position}, of_this_job=self.of_this_job + 1)
