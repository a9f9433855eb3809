"""Small files that are a service, written beside the training.

Promise: whoever offers one never waits for storage. One is written at a time, and of those that
are offered meanwhile the newest.
Trap avoided: storage that hangs would hang the step that only wanted to leave a note.
"""

import threading
from collections.abc import Callable
from contextlib import suppress


class Aside:
    """One kind of note."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: Callable[[], object] | None = None
        """What waits to be written."""
        self._thread: threading.Thread | None = None

    def offer(self, write: Callable[[], object]) -> None:
        """Begin `write`, or let it wait for the one that is under way, in the place of any that
        waits already. Its OSError is nobody's concern."""
        with self._lock:
            self._newest = write
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="aside", daemon=True)
                self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait for what was offered, at most for so long."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                write, self._newest = self._newest, None
                if write is None:
                    self._thread = None
                    return
            with suppress(OSError):
                write()
