"""What a person may change in a job that runs, and how far the ranks have followed.

Promise: a request is followed once under its name, whatever restarts or is asked for in between:
the journal knows. A request that comes back has the answer that it had.
Trap avoided: a wish that cannot be followed now is not tried again at every step.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lmtraining_api import Applied, JournalEntry, TrainingSpec, Wishes
from lmtraining_api.job import Budget

RETRY_SECONDS = 60.0
CHECKPOINT, ROLLBACK = "checkpoint", "rollback"
"""What may be asked for once, under a name."""


@dataclass(frozen=True, kw_only=True)
class Following:
    """On the lead."""

    applied: Applied = field(default_factory=Applied)
    """What the report says of it."""
    answers: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """What became of each request, by what it asked for (checkpoint or rollback) and its name."""
    known: Wishes | None = None
    """The newest wishes that were followed as far as they can be."""
    read: Wishes | None = None
    """Those that are being followed."""
    wait_until: float = float("-inf")
    """Before that, what was read and could not be followed is not tried again; by `clock`."""
    clock: Callable[[], float] = field(default=time.monotonic)

    @classmethod
    def of_journal(cls, entries: Iterable[JournalEntry]) -> "Following":
        """What was followed before; a job that takes over a run has wishes of its own."""
        found = cls()
        for entry in entries:
            if entry.kind == "Started" and entry.detail.get("taken_over"):
                found = cls()
            elif entry.detail.get("request") is not None:
                found = found.saying(**_request_in(entry))
        return found

    def is_news(self, wishes: Wishes | None) -> bool:
        """Whether there is something to follow now. What could not be followed is no reason to let
        another wish wait."""
        if wishes is None or wishes == self.known:
            return False
        return wishes != self.read or self.clock() >= self.wait_until

    def reading(self, wishes: Wishes) -> "Following":
        """Before these are followed. What is asked for under a name that was answered once has
        that answer."""
        said: dict[str, Any] = {}
        for asked in _requests(wishes):
            said |= self.answers.get(asked, {})
        return replace(self, read=wishes, applied=self.applied.model_copy(update=said))

    def is_answered(self, asked: str, name: str) -> bool:
        """Whether this request was followed or refused, ever; `asked` is checkpoint or rollback."""
        return (asked, name) in self.answers

    def later(self) -> "Following":
        """After something could not be followed."""
        return replace(self, wait_until=self.clock() + RETRY_SECONDS)

    def followed(self) -> "Following":
        """After those that were read have been followed. What is wanted meanwhile is news again."""
        if self.read is None:
            return self
        said = self.applied.model_copy(update={"generation": self.read.generation})
        return replace(self, applied=said, known=self.read, wait_until=float("-inf"))

    def saying(self, **said: Any) -> "Following":
        """After one of several requests."""
        key = next((asked, said[asked]) for asked in (CHECKPOINT, ROLLBACK) if asked in said)
        applied = self.applied.model_copy(update=said)
        return replace(self, applied=applied, answers={**self.answers, key: said})


def wished(spec: TrainingSpec, wishes: Wishes | None) -> TrainingSpec:
    """The spec as it is wanted now. A budget is only ever raised."""
    if wishes is None:
        return spec
    steps = max(wishes.budget_steps, spec.training.planned_steps or 0)
    return with_changes(spec, budget_steps=steps, every_steps=wishes.checkpoint_every_steps)


def _requests(wishes: Wishes) -> Iterator[tuple[str, str]]:
    """What they ask for and under which names."""
    if wishes.checkpoint:
        yield CHECKPOINT, wishes.checkpoint
    if wishes.rollback is not None:
        yield ROLLBACK, wishes.rollback.name


def _request_in(entry: JournalEntry) -> dict[str, Any]:
    """What became of the request that the entry is about."""
    name, detail = entry.detail["request"], entry.detail
    if detail.get("checkpoint"):
        return {"checkpoint": name, "checkpoint_step": entry.step}
    return {
        "rollback": name,
        "rollback_step": detail.get("to_step"),
        "refusal": detail.get("refusal") or "",
    }


_AS_IT_IS = -1


def with_changes(
    spec: TrainingSpec, *, budget_steps: int, every_steps: int | None = _AS_IT_IS
) -> TrainingSpec:
    """The spec with another budget (one in epochs stays), and with another interval between
    checkpoints where one is given; None leaves that to the trainer."""
    training = spec.training
    if training.planned_steps not in (None, budget_steps):
        training = training.model_copy(update={"budget": Budget(steps=budget_steps)})
    keep = spec.checkpoint
    if every_steps != _AS_IT_IS:
        keep = keep.model_copy(update={"every_steps": every_steps})
    return spec.model_copy(update={"training": training, "checkpoint": keep})
