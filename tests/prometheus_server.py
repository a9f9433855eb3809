"""A real Prometheus on loopback, for the queries of alerts and boards.

Promise: it scrapes what it is told and nothing else, holds what is written for it beforehand, and
is gone with its data when the `with` block ends.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import prometheus
from devcluster.apiserver import free_ports
from devcluster.paths import Layout
from devcluster.prometheus_server import Server
from devcluster.waiting import wait_until

START_SECONDS_MAX = 60
BACKFILL_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20


@dataclass(frozen=True)
class Target:
    """What is scraped every second, and the labels that a cluster's Prometheus would add."""

    address: str
    labels: Mapping[str, str]


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
    return server.is_ready()


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
