"""How many steps the run is to have, and had been to have when a step was taken.

Promise (P7): the learning rate of a step is that of the budget which held when the step was first
taken, also where it is taken again after the budget was raised.
Trap avoided: a resume that replays the steps before a change by the schedule after it ends with
other weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lmtraining_api import JournalEntry


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Optimizer steps in all, by the step from which on they held."""

    first: int
    changes: tuple[tuple[int, int], ...] = ()
    """(steps done, budget from there on), in the order of the steps."""

    @classmethod
    def of_journal(cls, entries: Iterable[JournalEntry], *, first: int) -> "Budgets":
        """Replay the journal; `first` where it tells of no change. A job that takes over a run has
        a budget of its own."""
        known = cls(first=first)
        for entry in entries:
            if entry.kind == "Started" and entry.detail.get("taken_over"):
                known = cls(first=first)
            elif entry.kind == "Asked" and entry.detail.get("budget_steps"):
                if not known.changes:
                    known = cls(first=int(entry.detail["from_steps"] or first))
                known = known.with_change(entry.step, int(entry.detail["budget_steps"] or 0))
        return known

    def with_change(self, step: int, budget: int) -> "Budgets":
        """After a change when `step` steps were done; what was said of later ones is void."""
        earlier = tuple(change for change in self.changes if change[0] < step)
        return Budgets(first=self.first, changes=(*earlier, (step, budget)))

    def at(self, step: int) -> int:
        """The budget by which the step that follows `step` finished ones is taken."""
        held = [budget for since, budget in self.changes if since <= step]
        return held[-1] if held else self.first

    @property
    def newest(self) -> int:
        return self.changes[-1][1] if self.changes else self.first
