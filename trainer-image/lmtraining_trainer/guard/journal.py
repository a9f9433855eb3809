"""The remedies taken so far, as the journal has them.

Promise: a remedy is in the journal before it is carried out, and this is all that is known of it:
the same after a crash in the middle of it, so neither the fault nor the remedy is repeated.
Trap avoided: a count of remedies that lives in the checkpoint goes back with the rewind.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmtraining_api import JournalEntry
from lmtraining_trainer.guard.detectors import Fault

FIRST_ROUND = 1
RATE_FACTOR = 0.5
"""The learning rate after a rewind that followed another one, as a share of what it was."""
REWARM_STEPS_MAX = 100
REWARM_FRACTION = 0.05
"""Share of the budget in which a lowered rate rises from 0 again, since the optimizer's moments are
new to it."""


@dataclass(frozen=True, kw_only=True)
class Remedies:
    """What was done, and is done again wherever a resume comes past it (P7)."""

    positions: frozenset[int] = frozenset()
    """Where batches begin that are skipped."""
    windows: tuple[tuple[int, int], ...] = ()
    """Stretches of the data, from and up to a global sample index, that rewinds jump over."""
    skips: int = 0
    """Skipped batches that count against stability.skippedStepsMax."""
    rewinds: int = 0
    """Rewinds that count against stability.rewindsMax."""
    device_faults: int = 0
    """Faults of devices in this attempt: replicas that differed, batches that came out
    otherwise."""
    newest_step: int | None = None
    """The step from which training went on after the newest remedy."""
    lineage: int = 0
    """Rewinds in the whole run: checkpoints carry it."""
    rate_scale: float = 1.0
    rewarm_step: int | None = None
    """The step from which the rate was lowered last."""
    rewarm_steps: int = 1
    """In so many steps it rises to what it is now."""

    def json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"positions": sorted(self.positions)}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Remedies":
        """From JSON."""
        windows = tuple((int(start), int(end)) for start, end in value["windows"])
        return cls(**value | {"positions": frozenset(value["positions"]), "windows": windows})

    @classmethod
    def of_journal(cls, entries: Iterable[JournalEntry]) -> "Remedies":
        """Replay the journal; a job that takes over a run starts with budgets of its own."""
        done = cls()
        for entry in entries:
            if entry.kind == "Skipped":
                done = done.with_skip(int(entry.detail.get("position") or 0), step=entry.step)
            elif entry.kind == "Rewound":
                done = done.with_rewind(entry.detail)
            elif entry.kind == "Rerun":
                done = done.with_rerun()
            elif entry.kind == "Started" and entry.round == FIRST_ROUND:
                done = replace(done, device_faults=0)  # other pods, perhaps on other machines
                if entry.detail.get("taken_over"):
                    done = replace(done, skips=0, rewinds=0)
        return done

    def with_skip(self, position: int, *, step: int) -> "Remedies":
        """After a skip at `position`; the same one twice counts once."""
        if position in self.positions:
            return self
        return replace(
            self,
            positions=self.positions | {position},
            skips=self.skips + 1,
            newest_step=step,
        )

    def with_rerun(self) -> "Remedies":
        """After a batch that came out otherwise when it was computed again."""
        return replace(self, device_faults=self.device_faults + 1)

    def with_rewind(self, detail: dict[str, Any]) -> "Remedies":
        """After a rewind, as the journal describes it. One for a failing device is not charged to
        the data or the rate."""
        if detail["fault"] == Fault.REPLICA_DIVERGENCE:
            return replace(
                self,
                lineage=self.lineage + 1,
                device_faults=self.device_faults + 1,
                newest_step=int(detail["to_step"]),
            )
        if detail["fault"] == Fault.REQUESTED:
            return replace(self, lineage=self.lineage + 1)
        lowered = float(detail["rate_scale"]) < self.rate_scale
        window = (int(detail["from_position"]), int(detail["to_position"]))
        return replace(
            self,
            windows=(*self.windows, window),
            rewinds=self.rewinds + 1,
            lineage=self.lineage + 1,
            newest_step=int(detail["to_step"]),
            rate_scale=float(detail["rate_scale"]),
            rewarm_step=int(detail["to_step"]) if lowered else self.rewarm_step,
            rewarm_steps=int(detail["rewarm_steps"]),
        )

    @staticmethod
    def rewarm_steps_of(total_steps: int) -> int:
        """In how many steps a lowered rate rises in a run of so many."""
        return max(1, min(REWARM_STEPS_MAX, round(REWARM_FRACTION * total_steps)))

    @property
    def next_rate_scale(self) -> float:
        """What the next rewind makes of the rate: the first one blames the data, later ones the
        rate."""
        return self.rate_scale * RATE_FACTOR if self.rewinds else self.rate_scale

    def position_from(self, position: int) -> int:
        """Where to read on at `position`: behind every stretch that begins before and ends
        after."""
        for start, end in sorted(self.windows):
            if start <= position < end:
                position = end
        return position

    def rate_factor(self, step: int) -> float:
        """What the scheduled rate of the step after `step` finished ones is multiplied by."""
        if self.rewarm_step is None or step < self.rewarm_step:
            return self.rate_scale
        return self.rate_scale * min(1.0, (step - self.rewarm_step + 1) / self.rewarm_steps)
