"""The real Kueue, as its own manifests install it, as processes beside a test's API server.

Promise: its custom resources, webhooks and rights are those of the release, taken from the module
that the binary was built from; it runs as its own service account. The garbage collector of the
real controller manager runs too: without it nothing that a deleted pod owned would ever go.
Trap avoided: a webhook is called by the name of a Service, which nobody routes here. The Service is
an alias of this machine instead, and the test does what a kubelet would: it lays the certificate
that Kueue has made for itself where Kueue looks for it.
"""

import base64
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from devcluster import binaries, processes
from devcluster.apiserver import ApiServer, free_ports
from devcluster.environment import child_environment
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.waiting import wait_until

SYSTEM = "kueue-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:kueue-controller-manager"
CERTIFICATE = "kueue-webhook-server-cert"
WEBHOOK_SERVICE = "kueue-webhook-service"
READY_SECONDS_MAX = 90.0
#: Of the release's manifests; its pods are processes here.
NOT_HERE = ("Deployment", "Service", "APIService")
WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
Object = dict[str, Any]


@contextmanager
def running(server: ApiServer, directory: Path) -> Iterator[None]:
    """Kueue ready for pods of every namespace but its own; `server` knows `ACCOUNT`."""
    layout = Layout.from_environment()
    programs = binaries.ensure(["kueue", "kubectl", "kube-controller-manager"], layout)
    kubectl = Kubectl(programs["kubectl"], server.kubeconfig)
    webhook_port, health_port = free_ports(2)
    _install(kubectl, webhook_port)
    certificates = directory / "certificates"
    certificates.mkdir(parents=True)
    configuration = directory / "configuration.yaml"
    configuration.write_text(
        json.dumps(
            {
                "apiVersion": "config.kueue.x-k8s.io/v1beta2",
                "kind": "Configuration",
                "namespace": SYSTEM,
                "health": {"healthProbeBindAddress": f"127.0.0.1:{health_port}"},
                "metrics": {"bindAddress": "0"},
                "webhook": {
                    "host": "127.0.0.1",
                    "port": webhook_port,
                    "certDir": str(certificates),
                },
                "leaderElection": {"leaderElect": False},
                "integrations": {"frameworks": ["pod"]},
            }
        )
    )
    commands = {
        "garbage-collector": [
            str(programs["kube-controller-manager"]),
            f"--kubeconfig={server.kubeconfig}",
            "--controllers=garbage-collector-controller",
            "--leader-elect=false",
            "--secure-port=0",
        ],
        "kueue": [
            str(programs["kueue"]),
            f"--config={configuration}",
            f"--kubeconfig={server.kubeconfig_of(ACCOUNT)}",
            "--feature-gates=VisibilityOnDemand=false",
            "--zap-log-level=3",
        ],
    }
    try:
        for name, command in commands.items():
            _spawn(name, command, directory)
        _mount(kubectl, certificates)
        _wait_ready(health_port, directory)
        yield
    finally:
        for name in commands:
            processes.stop_recorded(directory / "processes", name)


def _install(kubectl: Kubectl, webhook_port: int) -> None:
    """What the release installs, with its webhooks at a port of this machine."""
    layout = Layout.from_environment()
    manifests = binaries.manifests_of(binaries.program("kueue"), layout)
    rendered = yaml.safe_load_all(kubectl.run("kustomize", str(manifests / "default")))
    objects = [found for found in rendered if found["kind"] not in NOT_HERE]
    for found in objects:
        for service in _services_called(found):
            service["port"] = webhook_port
    alias = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": WEBHOOK_SERVICE, "namespace": SYSTEM},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }
    namespaces = [found for found in objects if found["kind"] == "Namespace"]
    kubectl.run("apply", "--server-side", "--filename=-", stdin=_list(namespaces))
    rest = [found for found in objects if found["kind"] != "Namespace"]
    kubectl.run("apply", "--server-side", "--filename=-", stdin=_list([*rest, alias]))


def _services_called(found: Object) -> list[Object]:
    """Where a manifest says which Service answers."""
    if found["kind"] in WEBHOOKS:
        return [webhook["clientConfig"]["service"] for webhook in found["webhooks"]]
    conversion = found["spec"].get("conversion") if "CustomResource" in found["kind"] else None
    return [conversion["webhook"]["clientConfig"]["service"]] if conversion else []


def _list(items: Sequence[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _spawn(name: str, command: list[str], directory: Path) -> None:
    processes.start(
        name,
        command,
        records=directory / "processes",
        log=directory / f"{name}.log",
        environment=child_environment(os.environ),
        die_with_parent=True,
    )


def _mount(kubectl: Kubectl, certificates: Path) -> None:
    """Kueue's Secret as files, as a kubelet shows it to its pod."""

    def made() -> Object | None:
        secret = kubectl.within(SYSTEM).find("secret", CERTIFICATE)
        return (secret or {}).get("data")

    data = wait_until("Kueue has made its certificate", made, limit_seconds=READY_SECONDS_MAX)
    for name, content in data.items():
        path = certificates / name
        path.touch(mode=0o600)
        path.write_bytes(base64.b64decode(content))


def _wait_ready(health_port: int, directory: Path) -> None:
    """Ready means that its webhooks answer."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/readyz", timeout=5):
                return True
        except OSError:
            return False

    hint = f"its log: {directory / 'kueue.log'}"
    wait_until("Kueue is ready", answers, limit_seconds=READY_SECONDS_MAX, hint=hint)
