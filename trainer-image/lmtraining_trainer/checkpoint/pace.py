"""How hard the writer of a checkpoint works, and whether it still does.

Promise: beside the training the writer takes no more than its share of one core; what it waits for,
a disk or the core itself, costs it no rest. Once somebody waits for it, it does not rest.
Trap avoided: hashing and copying at full speed takes a core from the training at a moment when
every rank waits for the slowest; and a rest that cannot be ended early outlasts a grace period.
"""

import threading
import time
from collections.abc import Callable

from lmtraining_trainer.files import nothing

CPU_SHARE = 0.08
"""Of one core, where the training needs the cores itself."""
REST_SECONDS_MAX = 5.0
"""No rest is so long that it would pass for a writer that hangs."""


class Pace:
    """The pace of one save. `turn` is the writer's, all else may be called from any thread."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._hurried = threading.Event()
        self._turned_at = time.monotonic()
        self._worked = 0.0
        self.on_turn: Callable[[], None] = nothing
        """Called at each turn, by the writer; other ranks are told that it lives."""
        self.turns = 0
        """Grows for as long as there is an end in sight."""

    def turn(self) -> None:
        """Between two pieces of work: a sign of life, then the rest that is due."""
        now, worked = time.monotonic(), time.thread_time()
        due = (worked - self._worked) / self._share - (now - self._turned_at)
        self._turned_at = now
        if self.turns and self.is_throttled and due > 0:
            self._hurried.wait(min(due, REST_SECONDS_MAX))
        self._turned_at, self._worked = time.monotonic(), worked
        self.turns += 1
        self.on_turn()

    def beat(self) -> None:
        """A sign of life without a rest, from a thread that works for the writer."""
        self._turned_at = time.monotonic()
        self.turns += 1

    def hurry(self) -> None:
        """Nobody trains: no rest from now on."""
        self._hurried.set()

    @property
    def is_throttled(self) -> bool:
        return self._share < 1 and not self._hurried.is_set()

    def silent_seconds(self) -> float:
        """How long the present piece of work has taken."""
        return max(0.0, time.monotonic() - self._turned_at)
