"""GET /report, /metrics and /healthz, and nothing else.

Promise: an answer takes milliseconds and never waits for training, since it is made from a snapshot
in memory by a thread of its own. A client that is slow, silent or hostile costs one connection for
at most `CONNECTION_SECONDS_MAX`, and there are at most `CONNECTIONS_MAX` of them.
Trap avoided: `http.server` gives each client a thread for as long as it trickles bytes, because its
timeout begins anew with every byte.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

REQUEST_BYTES_MAX = 8 * 1024
CONNECTION_SECONDS_MAX = 5.0
CONNECTIONS_MAX = 64
START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 5.0

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One path that is served: how its body is made, and of what type that is."""

    body: Callable[[], bytes]
    content_type: str


class ReportServer:
    """Serves `pages` from a thread of its own."""

    def __init__(self, *, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self._host = host
        self._port = port
        self._pages = pages
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._bound: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    @property
    def port(self) -> int:
        """The port that is served, which the system chose where 0 was asked for."""
        return self._bound.result(timeout=START_SECONDS_MAX)

    def start(self) -> None:
        """Serve from now on. Raises OSError where the port cannot be had."""
        self._thread.start()
        try:
            self._bound.result(timeout=START_SECONDS_MAX)
        except OSError:
            self._thread.join(STOP_SECONDS_MAX)
            raise

    def stop(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            server = self._loop.run_until_complete(
                asyncio.start_server(self._serve, self._host, self._port, limit=REQUEST_BYTES_MAX)
            )
        except OSError as error:
            self._bound.set_exception(error)
            return
        self._bound.set_result(server.sockets[0].getsockname()[1])
        self._loop.run_forever()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(CONNECTION_SECONDS_MAX):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(request))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client's loss
        finally:
            writer.transport.abort()
            self._open -= 1

    def _answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request", b"not HTTP/1\n", TEXT)
        method, path = words[0], words[1].partition("?")[0]
        if method != "GET":
            return _response("405 Method Not Allowed", b"only GET\n", TEXT)
        page = self._pages.get(path)
        if page is None:
            known = " ".join(sorted(self._pages))
            return _response("404 Not Found", f"there is only {known}\n".encode(), TEXT)
        return _response("200 OK", page.body(), page.content_type)


def _response(status: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n"
        "\r\n"
    )
    return head.encode("latin-1") + body
