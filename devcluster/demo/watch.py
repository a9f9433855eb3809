"""A Prometheus that watches the demo, and what it says of the job at the end.

Promise: it listens on loopback, belongs to the cluster and goes with it at `make cluster-down`, its
data too; the figures are its answers, and without an answer the demo fails.
Traps avoided: a route from this machine to the pods, which kind has not, so every scrape goes
through the API server, as `kubectl get --raw` would; and Debian's Prometheus does not know
Kubernetes, so the demo tells it which pods there are.
"""

import base64
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster import environment, processes, prometheus
from devcluster.apiserver import free_ports
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.product import CHART
from devcluster.prometheus_server import Server
from devcluster.waiting import wait_until
from lmtraining_api.names import COMPONENT_OPERATOR, LABEL_COMPONENT

NAME = "prometheus"
READY_SECONDS_MAX = 60
SCRAPE_SECONDS_MAX = 30
SCRAPE_SECONDS = 2
TARGETS = "targets.json"
BOARDS = CHART / "files" / "dashboards"
ALERTS = CHART / "files" / "alerts.yaml"
#: Who is scraped: a pod's label, its value, and the name of the port.
SCRAPED = {
    "operator": (LABEL_COMPONENT, COMPONENT_OPERATOR, "metrics"),
    "trainers": ("app.kubernetes.io/name", "lmtraining-trainer", "report"),
}
CREDENTIALS = {
    "ca": ("clusters", "cluster", "certificate-authority-data"),
    "certificate": ("users", "user", "client-certificate-data"),
    "key": ("users", "user", "client-key-data"),
}


@dataclass(frozen=True)
class Figure:
    """One line of what Prometheus says."""

    name: str
    text: str
    meaning: str


@dataclass
class Watch:
    """A Prometheus that scrapes operator and trainers."""

    server: Server
    kubectl: Kubectl
    folder: Path
    address: str
    """Of the API server."""
    _looked_at: float = float("-inf")

    def look(self) -> None:
        """Have it scrape the pods that run now; often asked, it looks once for each scrape."""
        if time.monotonic() - self._looked_at < SCRAPE_SECONDS:
            return
        self._looked_at = time.monotonic()
        pods = self.kubectl.get("pods", "--all-namespaces")["items"]
        half = self.folder / f".{TARGETS}"
        half.write_text(json.dumps(targets(pods, self.address)))
        half.replace(self.folder / TARGETS)

    def figures(self, *, namespace: str, job: str, since: float) -> list[Figure]:
        """Of the job since that monotonic second: goodput, speed, recovery.
        DevclusterError where Prometheus has no number."""
        window = f"[{math.ceil(time.monotonic() - since)}s]"
        of_job = f'{{job_namespace="{namespace}", job_name="{job}"}}'
        goodput = f"max(last_over_time(lmtraining_goodput_ratio{of_job}{window}))"
        speed = f"max(quantile_over_time(0.5, lmtraining_tokens_per_second{of_job}{window}))"
        recovery = " / ".join(
            f"sum(max_over_time({name}{window}) - min_over_time({name}{window}))"
            for name in (
                "lmtraining_operator_job_recovery_duration_seconds_sum",
                "lmtraining_operator_job_recovery_duration_seconds_count",
            )
        )
        return [
            Figure("goodput", f"{self._number(goodput):.0%}", "of the time in steps of the model"),
            Figure("tokens/s", f"{self._number(speed):,.0f}", "of both pods, median"),
            Figure(
                "recovery",
                f"{self._number(recovery):.1f} s",
                "from the killed pod to the end of the next optimizer step",
            ),
        ]

    def _number(self, expr: str) -> float:
        """The one finite value, as soon as it is scraped."""

        def answer() -> list[float] | None:
            values = [float(series["value"][1]) for series in self.server.query(expr)]
            return [value for value in values if math.isfinite(value)] or None

        return wait_until(
            f"an answer of Prometheus to {expr}", answer, limit_seconds=SCRAPE_SECONDS_MAX
        )[0]


def start(layout: Layout, kubectl: Kubectl) -> Watch:
    """Afresh, over the data of an earlier one; returns when the operator has been scraped."""
    programs = prometheus.ensure(layout)
    folder = layout.cluster / NAME
    folder.mkdir(mode=0o700, exist_ok=True)
    config = folder / "prometheus.json"  # JSON is YAML
    shown = ("config", "view", "--raw", "--minify", "--flatten", "--output=json")
    access = json.loads(kubectl.run(*shown))
    config.write_text(json.dumps(scraping(folder, access)))
    (port,) = free_ports(1)
    processes.stop_recorded(layout.processes, NAME)
    processes.start(
        NAME,
        [
            str(programs.prometheus),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        records=layout.processes,
        log=layout.logs / f"{NAME}.log",
        environment=environment.child_environment(os.environ),
    )
    server = Server(f"http://127.0.0.1:{port}")
    watch = Watch(server, kubectl, folder, _server(access)[1])
    watch.look()
    hint = str(layout.logs / f"{NAME}.log")
    wait_until("Prometheus is ready", server.is_ready, limit_seconds=READY_SECONDS_MAX, hint=hint)
    wait_until(
        "Prometheus has scraped the operator",
        lambda: server.query('up{job="operator"} == 1'),
        limit_seconds=SCRAPE_SECONDS_MAX,
        hint=hint,
    )
    return watch


def targets(pods: Sequence[dict[str, Any]], address: str) -> list[dict[str, Any]]:
    """Those of the running pods that have metrics, as Prometheus reads them from a file; each by
    the API server's proxy, at that address."""
    return [
        {
            "targets": [address],
            "labels": {
                "job": job,
                "namespace": pod["metadata"]["namespace"],
                "pod": pod["metadata"]["name"],
                "__metrics_path__": f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/"
                f"{pod['metadata']['name']}:{port}/proxy/metrics",
            },
        }
        for pod in pods
        for job, (label, value, port_name) in SCRAPED.items()
        if pod["metadata"].get("labels", {}).get(label) == value
        and pod["status"].get("phase") == "Running"
        for port in _ports(pod, port_name)
    ]


def _ports(pod: dict[str, Any], name: str) -> list[int]:
    """The ports of that name."""
    ports = [port for one in pod["spec"]["containers"] for port in one.get("ports", [])]
    return [port["containerPort"] for port in ports if port.get("name") == name]


def scraping(folder: Path, access: dict[str, Any]) -> dict[str, Any]:
    """Prometheus' configuration; `access`: the kubeconfig, of which it gets files in `folder`."""
    through = {
        "job_name": "lmtraining",
        "scheme": _server(access)[0],
        "file_sd_configs": [{"files": [str(folder / TARGETS)]}],
        **_credentials(folder, access),
    }
    return {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "scrape_timeout": f"{SCRAPE_SECONDS}s",
            "evaluation_interval": f"{SCRAPE_SECONDS}s",
        },
        "rule_files": [str(ALERTS)],
        "scrape_configs": [through],
    }


def _server(access: dict[str, Any]) -> tuple[str, str]:
    """Scheme and address of the API server."""
    scheme, _, address = access["clusters"][0]["cluster"]["server"].partition("://")
    return scheme, address


def _credentials(folder: Path, access: dict[str, Any]) -> dict[str, Any]:
    """The kubeconfig's, in files of which Prometheus' configuration names the paths."""
    files = {}
    for name, (group, kind, key) in CREDENTIALS.items():
        if encoded := access[group][0][kind].get(key):
            files[name] = _write(folder / name, base64.b64decode(encoded))
    tls = {"ca_file": files["ca"]}
    if "key" in files:
        tls |= {"cert_file": files["certificate"], "key_file": files["key"]}
    token = access["users"][0]["user"].get("token")
    if not token:
        return {"tls_config": tls}
    bearer = _write(folder / "token", token.encode())
    return {"tls_config": tls, "authorization": {"credentials_file": bearer}}


def _write(path: Path, content: bytes) -> str:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)
