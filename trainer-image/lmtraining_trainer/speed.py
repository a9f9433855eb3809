"""How fast training is: over its newest steps, and over all of them.

Promise: only steps count. Saves, validations and whatever else lies between two steps are not in
them, and one step that a busy machine held up does not move the figure.
Trap avoided: the first step of a process takes several times as long as any other, and in an
attempt of one step it would be the only figure.
"""

from collections import deque
from statistics import median

#: Steps that speed and the time left are taken from.
STEPS_MEASURED = 20


class Speed:
    """Durations of the steps of this process, without the first."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=STEPS_MEASURED)
        self._seconds = 0.0
        self._steps = 0
        self._is_warm = False

    def add(self, seconds: float) -> None:
        """One more step took `seconds`."""
        if not self._is_warm:
            self._is_warm = True
            return
        self._newest.append(seconds)
        self._seconds += seconds
        self._steps += 1

    @property
    def step_seconds(self) -> float | None:
        """Median time of the newest steps; None before the second."""
        return median(self._newest) if self._newest else None

    @property
    def mean_step_seconds(self) -> float | None:
        """Mean time of all steps; None before the second."""
        return self._seconds / self._steps if self._steps else None
