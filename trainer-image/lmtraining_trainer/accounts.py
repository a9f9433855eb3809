"""Where the time of a run goes.

Promise: the seconds by cause add up to the wall time since the run directory was first claimed
(P9), over rounds, attempts, rewinds and restarts. Within a process one monotonic clock is cut at
each change of cause; from the last mark of one gang to the start of the next it is wall time.
Trap avoided: a wall clock that was set back between two gangs would make negative seconds; it makes
none. And lost steps would stay productive: a checkpoint says how many seconds of steps are in it,
and what is missing after a load moves to `replayed_steps`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from lmtraining_api import State, TimeAccounts
from lmtraining_trainer.clock import Clock
from lmtraining_trainer.run.accounts_mark import MARK_SECONDS, Spent, write_mark
from lmtraining_trainer.run.aside import Aside
from lmtraining_trainer.run.directory import Run, utc_now

#: The last mark of a process is waited for so long.
CLOSE_SECONDS_MAX = 2.0
#: The fields of `TimeAccounts`.
Cause = Literal[
    "productive",
    "startup",
    "compile",
    "data_wait",
    "checkpoint",
    "replayed_steps",
    "recovery",
    "evaluation",
    "stopped",
    "other",
]

#: What a rank does in a state, unless it says more.
CAUSE_OF_STATE: dict[State, Cause] = {
    "Starting": "startup",
    "Preparing": "startup",
    "Loading": "startup",
    "Training": "other",
    "Evaluating": "evaluation",
    "Checkpointing": "checkpoint",
    "Stopping": "checkpoint",
    "Exporting": "other",
    "Finished": "stopped",
}


class Accounts:
    """One rank's account book. Only the lead's is opened: kept in the run directory and told."""

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_time: Callable[[], datetime] = utc_now,
        aside: Aside | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._wall_time = wall_time
        self._aside = aside or Aside()
        self._clock: Clock[Cause] = Clock(state="startup", since=monotonic())
        self._is_warm = False
        self._run: Run | None = None
        self._start = -1
        self._marked_at = -MARK_SECONDS
        self.trained_seconds = 0.0
        """Seconds of the steps that are in the model."""

    def open(self, run: Run) -> None:
        """Go on from what earlier gangs of the run have spent; on the lead, after the start is in
        the journal."""
        self._run, self._start = run, run.journal.entries[-1].sequence
        self.trained_seconds = run.spent.trained_seconds
        since_start = max(0.0, (self._wall_time() - run.spent.as_of).total_seconds())
        self._clock = Clock(
            state=self._clock.state,
            since=self._monotonic() - since_start,
            past_seconds=dict(run.spent.accounts),  # type: ignore[arg-type]
        )
        self._mark()

    def enter(self, cause: Cause) -> None:
        """From now on the time goes into `cause`."""
        self._clock = self._clock.turned(cause, self._monotonic())

    @contextmanager
    def during(self, cause: Cause) -> Iterator[None]:
        """A context whose time goes into `cause`."""
        before = self._clock.state
        self.enter(cause)
        yield
        self.enter(before)

    def stepped(self) -> float:
        """An optimizer step was taken with the time since the last change of cause: the seconds of
        all steps in the model. The first of a process takes several times as long as any other."""
        at = self._monotonic()
        if self._is_warm:
            self.trained_seconds += max(0.0, at - self._clock.since)
        cause: Cause = "productive" if self._is_warm else "compile"
        self._clock = self._clock.renamed(cause).turned("other", at)
        self._is_warm = True
        return self.trained_seconds

    def loaded(self, trained_seconds: float) -> None:
        """A checkpoint was loaded with the time since the last change of cause; steps of so many
        seconds are in it."""
        lost = max(0.0, self.trained_seconds - trained_seconds)
        self._clock = self._clock.renamed("recovery").moved("productive", "replayed_steps", lost)
        self.trained_seconds = trained_seconds

    def news(self) -> dict[str, Any]:
        """Fields of the report, and a mark in the run directory, both at most once per
        `MARK_SECONDS`."""
        if self._run is None or self._monotonic() - self._marked_at < MARK_SECONDS:
            return {}
        self._mark()
        return {"accounts": self.seconds()}

    def close(self) -> None:
        """The ranks end as they were told to; what follows is no recovery."""
        self._mark(ended_as_told=True)
        self._aside.finish(CLOSE_SECONDS_MAX)
        self._run = None

    def seconds(self) -> TimeAccounts:
        """What was spent until now."""
        spent = self._clock.seconds(self._monotonic())
        return TimeAccounts.model_validate({k: round(v, 3) for k, v in spent.items()})

    def _mark(self, *, ended_as_told: bool = False) -> None:
        if self._run is None:
            return
        self._marked_at = self._monotonic()
        spent = Spent(
            accounts=self.seconds(),
            trained_seconds=self.trained_seconds,
            as_of=self._wall_time(),
            ended_as_told=ended_as_told,
            start=self._start,
        )
        directory = self._run.directory
        self._aside.offer(lambda: write_mark(directory, spent))
