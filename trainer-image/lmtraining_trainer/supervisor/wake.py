"""What wakes the supervisor's loop: a signal, or another thread.

Promise: SIGTERM, SIGINT and SIGHUP are counted and nothing else; the loop hears of them at once,
since each also makes a socket readable.
Trap avoided: Python resumes an interrupted wait after the handler has run, so a flag alone would be
seen only when the wait ends by itself.
"""

import signal
import socket
import time
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Self

DRAIN_BYTES_MAX = 4096
#: SIGHUP: the terminal was closed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Wake:
    """Counts requests to stop, between `with` and its end; main thread only, but for `ring`."""

    def __init__(self) -> None:
        self.stops = 0
        """Requests to stop so far, by any signal."""
        self.interrupts = 0
        """Those by SIGINT."""
        self.stopped_at = 0.0
        """When the first one came, in monotonic seconds."""
        self._reader, self._writer = socket.socketpair()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        for end in (self._reader, self._writer):
            self._undo.enter_context(end)
            end.setblocking(False)
        before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # by nohup
            self._undo.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, self._count)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # held back since the start
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def fileno(self) -> int:
        """Readable once something has happened."""
        return self._reader.fileno()

    def ring(self) -> None:
        """Wake the loop, from any thread; a loop that has ended is not disturbed."""
        with suppress(OSError):
            self._writer.send(b"\0")

    def drain(self) -> None:
        """Forget what woke the loop."""
        with suppress(BlockingIOError):
            self._reader.recv(DRAIN_BYTES_MAX)

    def _count(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_at = self.stopped_at or time.monotonic()
        self.stops += 1
        self.interrupts += number == signal.SIGINT
