"""How often to save, where the job leaves it open.

Promise: the interval is the optimum to first order, sqrt(2 x cost of a save x time between faults)
(Young, Comm. ACM 17, 1974; Daly, Future Gener. Comput. Syst. 22, 2006), from what this run has
measured; saving never takes more than a twentieth of the time.
Trap avoided: a run that has seen no fault would never save. So the rate of faults is that of other
runs plus what this one has seen: 419 unexpected interruptions in 54 days on 16,384 GPUs (Llama 3,
arXiv 2407.21783, section 3.3.4), for each rank.
"""

import math
import time
from collections.abc import Callable, Sequence

from lmtraining_api import IntervalReport, JournalEntry
from lmtraining_trainer.accounts import Accounts
from lmtraining_trainer.run import Run

PRIOR_RANK_SECONDS = 54 * 86_400 * 16_384 / 419
"""Seconds of one rank between two faults, before this run has seen any."""
SECONDS_MAX = 300.0
"""A rewind, too, goes back to a checkpoint, and small machines are switched off more often than
those of a data centre fail."""
COST_SHARE_MAX = 0.05
"""Share of the time that saving may take."""
EARLY_SHARE = 0.5
"""A step that is validated is saved after this share of the interval already, for keepBest."""


def interval(
    *, cost_seconds: float, faults: int, observed_seconds: float, ranks: int
) -> IntervalReport:
    """The interval where a save takes `cost_seconds` from the loop, and `faults` have ended the
    ranks within `observed_seconds`."""
    seen_rate = faults / observed_seconds if faults else 0.0
    between = 1.0 / (ranks / PRIOR_RANK_SECONDS + seen_rate)
    optimum = math.sqrt(2.0 * cost_seconds * between)
    seconds = max(min(optimum, SECONDS_MAX), cost_seconds / COST_SHARE_MAX)
    return IntervalReport(
        seconds=round(seconds, 3),
        cost_seconds=round(cost_seconds, 3),
        fault_seconds=round(between, 3),
    )


def history(entries: Sequence[JournalEntry]) -> tuple[int, int]:
    """Faults and saves of the job whose run it is now."""
    faults = saves = 0
    for entry in entries:
        if entry.kind == "Started" and entry.detail.get("taken_over"):
            faults = saves = 0
        faults += entry.kind == "Started" and bool(entry.detail.get("after_fault"))
        saves += entry.kind == "Saved"
    return faults, saves


class SaveClock:
    """On the lead: when the next checkpoint is due."""

    def __init__(
        self,
        run: Run,
        accounts: Accounts,
        *,
        ranks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._accounts = accounts
        self._ranks = ranks
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """A save was made, or training begins: the interval begins anew, from what is known now."""
        faults, saves = history(self._run.journal.entries)
        spent = self._accounts.seconds()
        self._since = self._clock()
        self.interval = interval(
            cost_seconds=spent.checkpoint / max(1, saves),
            faults=faults,
            observed_seconds=spent.wall_seconds,
            ranks=self._ranks,
        )

    def is_due(self, *, early: bool) -> bool:
        """Whether to save after the present step; `early` where it would be a good one."""
        waited = self._clock() - self._since
        return waited >= self.interval.seconds * (EARLY_SHARE if early else 1.0)
