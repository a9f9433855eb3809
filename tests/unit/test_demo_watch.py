"""Which pods the demo's Prometheus scrapes, and that a real Prometheus takes its configuration."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devcluster import prometheus
from devcluster.demo import watch
from devcluster.paths import Layout
from lmtraining_api.names import LABEL_COMPONENT

pytestmark = pytest.mark.unit

ADDRESS = "127.0.0.1:6443"
TRAINER = {"app.kubernetes.io/name": "lmtraining-trainer"}
REPORT = {"name": "report", "containerPort": 8080}


def pod(
    name: str, labels: dict[str, str], *ports: dict[str, Any], phase: str = "Running"
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "here", "labels": labels},
        "spec": {"containers": [{"name": "one"}, {"name": "two", "ports": list(ports)}]},
        "status": {"phase": phase},
    }


def test_operator_and_running_trainers_are_scraped_by_the_api_server() -> None:
    pods = [
        pod("gpt-1-0-0", TRAINER, REPORT),
        pod("gpt-1-1-0", TRAINER, REPORT, phase="Pending"),
        pod("old-1-0-0", TRAINER, REPORT, phase="Succeeded"),
        pod(
            "operator-1",
            {LABEL_COMPONENT: "operator"},
            {"name": "health", "containerPort": 8080},
            {"name": "metrics", "containerPort": 9090},
        ),
        pod("reader", {}, REPORT),
    ]
    found = watch.targets(pods, ADDRESS)
    assert [one["targets"] for one in found] == [[ADDRESS], [ADDRESS]]
    assert [one["labels"] for one in found] == [
        {
            "job": "trainers",
            "namespace": "here",
            "pod": "gpt-1-0-0",
            "__metrics_path__": "/api/v1/namespaces/here/pods/gpt-1-0-0:8080/proxy/metrics",
        },
        {
            "job": "operator",
            "namespace": "here",
            "pod": "operator-1",
            "__metrics_path__": "/api/v1/namespaces/here/pods/operator-1:9090/proxy/metrics",
        },
    ]


@pytest.mark.parametrize(
    "user",
    [{"token": "t"}, {"client-certificate-data": "LS0tCg==", "client-key-data": "LS0tCg=="}],
    ids=["native", "kind"],
)
def test_prometheus_takes_the_configuration(tmp_path: Path, user: dict[str, str]) -> None:
    server = {"server": f"https://{ADDRESS}", "certificate-authority-data": "LS0tCg=="}
    access = {"clusters": [{"cluster": server}], "users": [{"user": user}]}
    config = watch.scraping(tmp_path, access)
    (tmp_path / "prometheus.json").write_text(json.dumps(config))
    promtool = prometheus.ensure(Layout.from_environment()).promtool
    subprocess.run(
        [promtool, "check", "config", "--syntax-only", tmp_path / "prometheus.json"],
        check=True,
        timeout=60,
    )
    (scraped,) = config["scrape_configs"]
    assert ("authorization" in scraped) == ("token" in user)
    assert ("key_file" in scraped["tls_config"]) == ("token" not in user)
    for file in tmp_path.glob("[!p]*"):
        assert file.stat().st_mode & 0o077 == 0, f"{file.name} is for its owner alone"
