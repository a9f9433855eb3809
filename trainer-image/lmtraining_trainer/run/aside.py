"""Small files that are a service, written beside the training.

Promise: whoever offers one never waits for storage. One is written at a time; what is offered
meanwhile is dropped, since a newer one follows.
Trap avoided: storage that hangs would hang the step that only wanted to leave a note.
"""

import threading
from collections.abc import Callable
from contextlib import suppress


class Aside:
    """One kind of note."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def offer(self, write: Callable[[], object]) -> None:
        """Begin `write`, unless another is under way; its OSError is nobody's concern."""
        if self._thread is not None and self._thread.is_alive():
            return

        def run() -> None:
            with suppress(OSError):
                write()

        self._thread = threading.Thread(target=run, name="aside", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait for what is under way, at most for so long."""
        if self._thread is not None:
            self._thread.join(seconds)
