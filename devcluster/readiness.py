"""When a part of the node is ready, and what a person sees when it does not become so."""

import http.client
from pathlib import Path

from devcluster import controlplane, node, processes, runtime
from devcluster.apiserver import wait_ready
from devcluster.errors import DevclusterError
from devcluster.kubectl import Kubectl
from devcluster.node import NodeFiles
from devcluster.pki import Pki
from devcluster.waiting import wait_until

GATE_LIMIT_SECONDS = 30.0
NODE_LIMIT_SECONDS = 120.0
PODS_LIMIT_SECONDS = 60.0
REQUEST_LIMIT_SECONDS = 2.0
HEALTH_PATHS = (
    ("registry", node.REGISTRY_PORT, "/v2/"),
    ("kubelet", node.port_of("kubelet"), "/healthz"),
    ("coredns", node.port_of("coredns"), "/ready"),
    ("kube-proxy", node.port_of("kube-proxy"), "/healthz"),
)


def wait_for_api_server(record: processes.ProcessRecord, files: NodeFiles) -> None:
    certificates = Pki(files.layout.pki)
    wait_ready(
        record,
        url=f"https://{controlplane.LOOPBACK}:{node.API_PORT}",
        ca=certificates.ca,
        token=certificates.token("admin"),
    )


def wait_for_containerd(record: processes.ProcessRecord, files: NodeFiles) -> None:
    def answering() -> bool:
        assert_alive(record)
        return runtime.answers(files)

    wait_until(
        f"{record.name} answers",
        answering,
        limit_seconds=GATE_LIMIT_SECONDS,
        hint=f"Its log: {record.log}",
    )


def assert_alive(record: processes.ProcessRecord) -> None:
    if not processes.is_alive(record):
        tail = processes.log_tail(Path(record.log))
        raise DevclusterError(f"{record.name} died; {record.log} ends:\n{tail}")


def assert_all_alive(files: NodeFiles) -> None:
    for record in processes.read_records(files.layout.processes).values():
        assert_alive(record)


def wait_for_node(kubectl: Kubectl, files: NodeFiles) -> None:
    """Wait until the API server has the node as Ready."""

    def ready() -> bool:
        assert_all_alive(files)
        found = kubectl.find("node", node.NODE_NAME)
        conditions = found["status"].get("conditions", []) if found else []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    wait_until(
        f"node {node.NODE_NAME} Ready",
        ready,
        limit_seconds=NODE_LIMIT_SECONDS,
        hint=f"The kubelet's log: {files.layout.logs / 'kubelet.log'}",
    )


def wait_for_pods_to_be_possible(kubectl: Kubectl, files: NodeFiles) -> None:
    """A pod needs its service account; its image the registry; its names the DNS server."""

    def possible() -> bool:
        assert_all_alive(files)
        return unready_services() == [] and bool(kubectl.find("serviceaccount", "default"))

    wait_until(
        "registry, kubelet, DNS, service proxy and the default service account",
        possible,
        limit_seconds=PODS_LIMIT_SECONDS,
        hint=f"Logs: {files.layout.logs}",
    )


def unready_services() -> list[str]:
    """Which of the processes with a health address do not answer 200 there."""
    return [name for name, port, path in HEALTH_PATHS if not _healthy(port, path)]


def _healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(
        controlplane.LOOPBACK, port, timeout=REQUEST_LIMIT_SECONDS
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
