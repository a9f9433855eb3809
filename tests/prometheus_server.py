"""A real Prometheus on loopback, for the queries of alerts and boards.

Promise: it scrapes what it is told and nothing else, holds what is written for it beforehand, and
is gone with its data when the `with` block ends.
"""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import prometheus
from devcluster.apiserver import free_ports
from devcluster.paths import Layout
from devcluster.waiting import wait_until

START_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 30
BACKFILL_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20


@dataclass(frozen=True)
class Target:
    """What is scraped every second, and the labels that a cluster's Prometheus would add."""

    address: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Server:
    """A Prometheus that answers."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; AssertionError with Prometheus' own words where it refuses."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS_MAX) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query, now."""
        return list(self.ask("query", query=expr)["result"])


@contextmanager
def serving(
    folder: Path, *, targets: Sequence[Target] = (), rules: Path | None = None, samples: str = ""
) -> Iterator[Server]:
    """`samples` in the OpenMetrics format, with times, are there from the start."""
    programs = prometheus.ensure(Layout.from_environment())
    data = folder / "data"
    if samples:
        _backfill(programs.promtool, folder / "samples.txt", data, samples)
    config = folder / "prometheus.json"  # JSON is YAML
    config.write_text(json.dumps(_config(targets, rules)))
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(programs.prometheus),
                f"--config.file={config}",
                f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        wait_until(
            "Prometheus is ready",
            lambda: _is_ready(server, process),
            limit_seconds=START_SECONDS_MAX,
            hint=str(folder / "prometheus.log"),
        )
        yield server
    finally:
        process.terminate()
        process.wait(STOP_SECONDS_MAX)


def _is_ready(server: Server, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus has ended"
    try:
        with urllib.request.urlopen(f"{server.url}/-/ready", timeout=ANSWER_SECONDS_MAX) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _config(targets: Sequence[Target], rules: Path | None) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {
                "job_name": f"target-{number}",
                "static_configs": [{"targets": [target.address], "labels": dict(target.labels)}],
            }
            for number, target in enumerate(targets)
        ],
    }


def _backfill(promtool: Path, file: Path, data: Path, samples: str) -> None:
    file.write_text(samples)
    subprocess.run(
        [str(promtool), "tsdb", "create-blocks-from", "openmetrics", str(file), str(data)],
        check=True,
        capture_output=True,
        timeout=BACKFILL_SECONDS_MAX,
    )
