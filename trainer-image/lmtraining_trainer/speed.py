"""How fast training is, over its last steps."""

from collections import deque

#: Steps that speed and the time left are taken from.
STEPS_MEASURED = 20


class Speed:
    """Durations of the newest steps; waits for checkpoints and validation are not in them."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=STEPS_MEASURED)

    def add(self, seconds: float) -> None:
        """One more step took `seconds`."""
        self._seconds.append(seconds)

    @property
    def step_seconds(self) -> float:
        """Mean time of a step; 0.0 before the first."""
        return sum(self._seconds) / max(1, len(self._seconds))
