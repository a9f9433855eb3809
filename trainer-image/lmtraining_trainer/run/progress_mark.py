"""How far any attempt ever came, to the second.

Promise: after a crash the steps that are done again can be counted. The mark is at most
`MARK_SECONDS` behind, so the count is at most that much too low; it is never too high.
Trap avoided: a synced write per step would cost more than some steps do. The mark is not synced: it
survives the death of the process, not of the node.
"""

import time
from pathlib import Path

from lmtraining_trainer.run.aside import Aside

MARK_SECONDS = 1.0
PROGRESS = "progress"


class ProgressMark:
    """The highest step that the lead has finished."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / PROGRESS
        self._written_at = -MARK_SECONDS
        self._aside = Aside()
        self.highest = _read(self._path)
        """The highest step on record when this gang started."""

    def record(self, step: int) -> None:
        """Note that `step` is finished, at most once per `MARK_SECONDS`."""
        now = time.monotonic()
        if step <= self.highest or now - self._written_at < MARK_SECONDS:
            return
        self._written_at = now
        self._aside.offer(lambda: self._path.write_text(f"{step}\n"))


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
