"""What a rank says, and the sign of life in it.

Promise: while a rank works or waits it says something at least every few seconds, and the lead's
signs of life also reach the ranks that wait for it.
Trap avoided: a long wait without a word looks like a hang to the supervisor.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lmtraining_api import State, Wishes
from lmtraining_trainer.accounts import CAUSE_OF_STATE, Accounts
from lmtraining_trainer.errors import Preempted
from lmtraining_trainer.files import nothing
from lmtraining_trainer.phase import PHASE_OF_STATE, Phase
from lmtraining_trainer.rank_link import RankLink

#: Signs of life are passed on no oftener than this.
ALIVE_SECONDS = 0.25


class Voice:
    """One rank's line to its supervisor, and to the ranks that wait for it."""

    def __init__(self, link: RankLink) -> None:
        self._link = link
        self._state: State = "Starting"
        self._phase = PHASE_OF_STATE[self._state]
        self._alive_at = time.monotonic()
        self.accounts = Accounts()
        """Where the time goes; a change of state is one of its cause."""
        self.pulse: Callable[[], None] = nothing
        """Called with each sign of life; the gang passes it on."""
        self.others_stop: Callable[[], bool] = lambda: False
        """Whether another rank was asked to stop; the gang knows."""

    def say(self, state: State, **fields: object) -> None:
        """Report a state and fields of `TrainerReport`."""
        if state != self._state:
            self.accounts.enter(CAUSE_OF_STATE[state])
            self._enter(PHASE_OF_STATE[state])
        self._state = state
        self._alive_at = time.monotonic()
        self._link.say(state, **(self.accounts.news() | fields))
        self.pulse()

    def add(self, **fields: object) -> None:
        """Report fields of `TrainerReport`, in the state that is."""
        self.say(self._state, **fields)

    def alive(self) -> None:
        """A sign of life in the midst of something long; cheap enough for an inner loop."""
        if time.monotonic() - self._alive_at >= ALIVE_SECONDS:
            self.say(self._state)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A context in which the rank does this, whatever its state."""
        before = self._phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._link.stop_requested()

    def wishes(self) -> Wishes | None:
        """What is wanted beyond training on; on the lead."""
        return self._link.wishes()

    def progress(self, state: State, message: str) -> None:
        """`alive` with words, for long work before the first step. Raises Preempted where any rank
        was asked to stop: there is nothing to save yet that is not saved."""
        if time.monotonic() - self._alive_at < ALIVE_SECONDS and self._state == state:
            return
        self.say(state, message=message)
        if self.stop_requested() or self.others_stop():
            raise Preempted(0)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._link.enter(phase)
