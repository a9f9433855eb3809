"""Is this operator alive, and could it run the jobs?

Promise: it is not alive when the event loop stands still or when the pass of some job has not come
back for a long time; an API server that is away is no reason to restart. It is ready when it runs
the jobs, or follows and could take over. Traps avoided: a probe that only says that the probe's own
server runs; a probe that is answered by the loop it is to judge (it has a thread of its own).
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lmtraining_operator.metrics import Metrics

BEAT_SECONDS = 0.5
LAG_SECONDS_MAX = 10.0
PASS_SECONDS_MAX = 180.0
"""Longest time that a pass may take, with a slow API server."""
OK = 200
UNAVAILABLE = 503
NOT_FOUND = 404


class Health:
    """What the event loop says of itself, for a thread to tell."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        oldest_pass_seconds: Callable[[], float],
        not_ready: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._oldest_pass_seconds = oldest_pass_seconds
        self._not_ready = not_ready
        self._clock = clock
        self._due = clock()
        self._pass_seconds = 0.0

    async def watch_loop(self) -> None:
        """Measure, for ever, how late a timer comes."""
        while True:
            self._due = self._clock() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.beat()

    def beat(self) -> None:
        """The loop runs."""
        self._metrics.loop_lag_seconds.set(max(self._clock() - self._due, 0.0))
        self._pass_seconds = self._oldest_pass_seconds()

    def dead(self) -> str:
        """Why this operator should be started again, in a sentence; empty when it should not."""
        late_seconds = self._clock() - self._due
        return problem(lag_seconds=late_seconds, oldest_pass_seconds=self._pass_seconds)

    def not_ready(self) -> str:
        return self.dead() or self._not_ready()


def problem(*, lag_seconds: float, oldest_pass_seconds: float) -> str:
    """What is wrong, in a sentence; empty when nothing is."""
    if lag_seconds > LAG_SECONDS_MAX:
        return f"the event loop is {lag_seconds:.1f} s late (limit {LAG_SECONDS_MAX:.0f} s)"
    if oldest_pass_seconds > PASS_SECONDS_MAX:
        return (
            f"a pass over a job has lasted {oldest_pass_seconds:.0f} s "
            f"(limit {PASS_SECONDS_MAX:.0f} s)"
        )
    return ""


@contextmanager
def served(health: Health, host: str, port: int) -> Iterator[None]:
    """Answer /healthz and /readyz in a thread until the block ends."""
    questions = {"/healthz": health.dead, "/readyz": health.not_ready}
    server = _server_class(host)((host, port), _handler(questions))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server


def _handler(questions: dict[str, Callable[[], str]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = LAG_SECONDS_MAX

        def do_GET(self) -> None:
            question = questions.get(self.path.partition("?")[0])
            found = question() if question else "no such page"
            code = NOT_FOUND if question is None else UNAVAILABLE if found else OK
            content = (found or "ok").encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """A line for each probe is of no use."""

    return Handler
