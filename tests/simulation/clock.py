"""Time that moves only when everybody waits.

Promise: an hour of a job's life takes as long as the code in it; nothing depends on the machine's
clock, so a seed tells the same story everywhere. Trap avoided: a world in which nobody waits for
anything any more would stand still for ever, so that is an error.
"""

import asyncio
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
RESOLUTION_SECONDS = 1e-6


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without files or sockets: to wait is to move the time."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self._clock_resolution = RESOLUTION_SECONDS

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """What the base class asks for: wait that long for files. There are none."""
        if timeout is None:
            raise RuntimeError("everybody waits, and nothing will happen any more")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """No files, no events."""

    def _write_to_self(self) -> None:
        """No other thread is there to be woken by."""


def moment(seconds: float) -> datetime:
    """That many seconds after the start, to the millisecond: what the operator's clock shows."""
    return START + timedelta(milliseconds=int(seconds * 1000))


def stamp(seconds: float) -> str:
    """The same as the API server writes it: whole seconds."""
    return (START + timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(stamped: str) -> float:
    """What `stamp` was made of."""
    return (datetime.fromisoformat(stamped) - START).total_seconds()
