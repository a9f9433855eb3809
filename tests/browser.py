"""A real headless Chromium, for the pages we write.

Promise: what the page logs is told, so that a test can say that it logs nothing; the browser is
gone with its profile when the `with` block ends.
"""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

from devcluster.errors import DevclusterError
from devcluster.waiting import wait_until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends", "chromium")
INSTALL_SECONDS_MAX = 600
START_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 30
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
TROUBLE = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")


@dataclass
class Page:
    """One tab."""

    _socket: websocket.WebSocket
    said: list[dict[str, Any]] = field(default_factory=list)
    """What it has logged."""
    _count: int = 0

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            heard = self._hear()
            if heard.get("id") == self._count:
                assert "error" not in heard, heard
                return dict(heard["result"])

    def open(self, path: Path) -> None:
        """Load a file, to its end."""
        self.do("Page.navigate", url=path.as_uri())
        while self._hear().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def narrow(self, width: int, height: int) -> None:
        """A window of that size."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.do("Emulation.setEmulatedMedia", features=wanted)

    def _hear(self) -> dict[str, Any]:
        heard: dict[str, Any] = json.loads(self._socket.recv())
        if heard.get("method") in TROUBLE:
            self.said.append(heard)
        return heard


@contextmanager
def browser() -> Iterator[Page]:
    """A tab of a browser of its own."""
    program = _program()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            tab = websocket.create_connection(_address(Path(profile)), timeout=ANSWER_SECONDS_MAX)
            page = Page(tab)
            for domain in ("Page", "Runtime", "Log"):
                page.do(f"{domain}.enable")
            yield page
            tab.close()
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _address(profile: Path) -> str:
    """Of the tab, once the browser has written where it listens."""
    port_file = profile / "DevToolsActivePort"

    def look() -> str | None:
        try:
            port = int(port_file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                tabs = json.load(answer)
        except (OSError, ValueError, IndexError):
            return None
        return next((tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"), None)

    return wait_until("the browser answers", look, limit_seconds=START_SECONDS_MAX)


def _program() -> str:
    """Installed first where this machine lets us."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (("apt-get", "update", "-qq"), INSTALL):
            subprocess.run(
                command, check=True, capture_output=True, timeout=INSTALL_SECONDS_MAX,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip
        if found := shutil.which(PROGRAMS[0]):
            return found
    raise DevclusterError(f"no Chromium on this machine: {' '.join(INSTALL)}")
