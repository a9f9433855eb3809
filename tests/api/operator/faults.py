"""A network in front of a real API server: it loses, delays, refuses and cuts.

Plain HTTP on loopback towards the operator, the real server behind. Every fault is asked for by a
test and counted, so that a test can tell that the operator met it.
"""

import http.client
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from devcluster.apiserver import ApiServer

CHUNK_BYTES = 64 * 1024
NOT_FORWARDED = frozenset(
    {"authorization", "connection", "content-length", "host", "transfer-encoding"}
)


@dataclass
class Fault:
    """What the next requests get that a question picks."""

    picks: Callable[[str, str], bool]
    """Asked with the method and the path."""
    times: int = 1
    code: int = 0
    """Answer with this instead of asking the server; 0: cut the connection instead."""
    headers: dict[str, str] = field(default_factory=dict)
    is_carried_out: bool = False
    """True when the server is asked, and only its answer is lost."""
    met: int = 0


class FaultyNetwork:
    """Forwards to the API server as `user`, whatever token it is shown, unless that is wrong."""

    def __init__(self, server: ApiServer, user: str, directory: Path) -> None:
        self.upstream = urlsplit(server.url).netloc
        self.context = ssl.create_default_context(cafile=str(server.ca))
        self.user_token = server.token_of(user)
        self.token = "first"
        self.refused_tokens = 0
        self.connected = threading.Event()
        self.connected.set()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.kubeconfig = directory / f"kubeconfig-{user}-through-a-network"
        self.write_token(self.token)

    def write_token(self, token: str) -> None:
        """What the operator will find when it logs in."""
        named = {"clusters": "cluster", "users": "user", "contexts": "context"}
        contents: dict[str, Any] = {
            "clusters": {"server": f"http://127.0.0.1:{self._server.server_port}"},
            "users": {"token": token},
            "contexts": {"cluster": "it", "user": "it"},
        }
        document: dict[str, Any] = {
            key: [{"name": "it", one: contents[key]}] for key, one in named.items()
        }
        document |= {"apiVersion": "v1", "kind": "Config", "current-context": "it"}
        self.kubeconfig.write_text(yaml.safe_dump(document))

    def expire_token(self, fresh: str) -> None:
        """From now on only `fresh` is taken; it lies where the operator looks for it."""
        self.write_token(fresh)
        self.token = fresh

    def meet(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def cut(self) -> None:
        """Packets are dropped: requests hang, open streams fall silent."""
        self.connected.clear()

    def heal(self) -> None:
        """What hung is broken off; new requests go through."""
        self.connected.set()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.met < fault.times and fault.picks(method, path):
                    fault.met += 1
                    return fault
        return None

    def close(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(network: FaultyNetwork) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.close_connection = not network.connected.is_set()
            if not network.connected.is_set():
                network.connected.wait()
                return
            if self.headers["Authorization"].split()[-1] != network.token:
                network.refused_tokens += 1
                self._answer(401, {})
                return
            fault = network.fault_of(self.command, self.path)
            if fault is not None and fault.code:
                self._answer(fault.code, fault.headers)
                return
            if fault is not None and not fault.is_carried_out:
                self.close_connection = True
                return
            self._ask_server(body, is_answered=fault is None)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

        def _answer(self, code: int, headers: dict[str, str]) -> None:
            status = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": "Injected"}
            content = json.dumps(status).encode()
            self.send_response(code)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _ask_server(self, body: bytes, *, is_answered: bool) -> None:
            connection = http.client.HTTPSConnection(network.upstream, context=network.context)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in NOT_FORWARDED}
            headers["Authorization"] = f"Bearer {network.user_token}"
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            self.close_connection = True
            if is_answered:
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in NOT_FORWARDED:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                self._stream(answer)
            else:
                answer.read()
            connection.close()

        def _stream(self, answer: http.client.HTTPResponse) -> None:
            while chunk := answer.read1(CHUNK_BYTES):
                if not network.connected.is_set():
                    network.connected.wait()
                    return
                try:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                except OSError:
                    return

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler
