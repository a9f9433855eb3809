"""The operator as a process outside the cluster; it dies with the process that has started it."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from devcluster.apiserver import ApiServer, free_ports
from devcluster.waiting import wait_until
from tests.api.operator.stage import (
    ANSWER_SECONDS_MAX,
    POLL_SECONDS,
    TRAINER_IMAGE,
    WAIT_SECONDS_MAX,
)


class OperatorProcess:
    """`python -m lmtraining_operator run`, outside the cluster; no namespace: all of them."""

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        log: Path,
        *,
        kubeconfig: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.health_port, self.metrics_port = free_ports(2)
        self.log = log
        command = [
            sys.executable,
            "-m",
            "lmtraining_operator",
            "run",
            f"--trainer-image={TRAINER_IMAGE}",
            *([f"--watch-namespace={namespace}"] if namespace else []),
            f"--health-address=127.0.0.1:{self.health_port}",
            f"--metrics-address=127.0.0.1:{self.metrics_port}",
            *arguments,
        ]
        environment = os.environ | {"KUBECONFIG": str(kubeconfig or server.kubeconfig)}
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*prefix, *command], stdout=output, stderr=output, env=environment
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def get(self, path: str) -> tuple[int, str]:
        port = self.metrics_port if path == "/metrics" else self.health_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS_MAX)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def wait_log(self, words: str) -> None:
        wait_until(
            f"the operator says {words!r}",
            lambda: words in self.log.read_text() or None,
            limit_seconds=WAIT_SECONDS_MAX,
            poll_seconds=POLL_SECONDS,
        )

    def wait_end(self) -> int:
        """Its exit code."""
        return self._process.wait(WAIT_SECONDS_MAX)

    def wait_ready(self) -> None:
        wait_until(
            "the operator answers /readyz",
            lambda: self.get("/readyz")[0] == 200 or None,
            limit_seconds=WAIT_SECONDS_MAX,
            poll_seconds=POLL_SECONDS,
        )

    def leads(self) -> bool:
        return "lmtraining_operator_leader 1.0" in self.get("/metrics")[1]

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self) -> float:
        """SIGTERM; seconds until it has ended."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(WAIT_SECONDS_MAX)
        return time.monotonic() - started

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(WAIT_SECONDS_MAX)
