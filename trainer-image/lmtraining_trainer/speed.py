"""How fast training is, over its last steps."""

from collections import deque

#: Steps that speed and the time left are taken from.
STEPS_MEASURED = 20


class Speed:
    """Durations of the newest steps. Waits for storage and validation are not in them, nor is the
    first step of a process, several times slower than any other, once there is another."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=STEPS_MEASURED)
        self._is_warm = False

    def add(self, seconds: float) -> None:
        """One more step took `seconds`."""
        if self._seconds and not self._is_warm:
            self._seconds.clear()
            self._is_warm = True
        self._seconds.append(seconds)

    @property
    def step_seconds(self) -> float:
        """Mean time of a step; 0.0 before the first."""
        return sum(self._seconds) / max(1, len(self._seconds))
