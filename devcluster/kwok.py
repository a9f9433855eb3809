"""Simulated nodes and pods, hundreds of them, by the kwok controller as a process of this machine.

Promise: a simulated pod is Running and Ready as soon as it is bound, until somebody deletes it or
changes its status. Its address is always inside 127.0.0.0/8, so that a program which calls pods,
as the operator does, can never be made to call another machine. The nodes carry a taint: only pods
that tolerate it (`kwok.x-k8s.io/node=fake:NoSchedule`) land there.
"""

import json
import os
from typing import Any

from devcluster import binaries, environment, processes
from devcluster.errors import DevclusterError
from devcluster.gpu import DEFAULT_COUNT, RESOURCE
from devcluster.kubectl import Kubectl
from devcluster.node import NodeFiles
from devcluster.paths import Layout
from devcluster.waiting import wait_until

POD_CIDR = "127.1.0.0/16"
NODE_ADDRESS = "127.2.0.1"
LABEL = "devcluster.lmtraining.dev/simulated"
TAINT = "kwok.x-k8s.io/node"
LEASE_SECONDS = 40
NODES_MAX = 2000
READY_LIMIT_SECONDS = 120.0
ABSENT_DELETION = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}

NODE_READY = """
conditions:
- {type: Ready, status: "True", reason: Simulated, message: "", lastHeartbeatTime: {{ Quote Now }},
   lastTransitionTime: {{ Quote Now }}}
addresses:
- {type: InternalIP, address: {{ Quote NodeIP }}}
- {type: Hostname, address: {{ Quote NodeName }}}
"""
POD_RUNNING = """
{{ $now := Quote Now }}
phase: Running
startTime: {{ $now }}
hostIP: {{ Quote NodeIP }}
{{ $addresses := PodIPsWith .spec.nodeName (or .spec.hostNetwork false) (or .metadata.uid "")
   (or .metadata.name "") (or .metadata.namespace "") }}
podIP: {{ Quote (index $addresses 0) }}
podIPs:
- {ip: {{ Quote (index $addresses 0) }}}
conditions:
- {type: PodReadyToStartContainers, status: "True", lastTransitionTime: {{ $now }}}
- {type: Initialized, status: "True", lastTransitionTime: {{ $now }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now }}}
- {type: Ready, status: "True", lastTransitionTime: {{ $now }}}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ Quote .name }}, image: {{ Quote .image }}, imageID: "", ready: true, started: true,
   restartCount: 0, state: {running: {startedAt: {{ $now }}}}}
{{ end }}
"""


def stage(name: str, kind: str, *, when: list[dict[str, Any]], then: dict[str, Any]) -> Any:
    """One rule of kwok's life cycle: objects of `kind` for which `when` holds become `then`."""
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "next": then,
        },
    }


def stages() -> list[Any]:
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    not_ready = {"key": ready, "operator": "NotIn", "values": ["True"]}
    pending = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
    deleted = {**ABSENT_DELETION, "operator": "Exists"}
    return [
        stage("node-ready", "Node", when=[not_ready], then={"statusTemplate": NODE_READY}),
        stage(
            "pod-running",
            "Pod",
            when=[ABSENT_DELETION, pending],
            then={"statusTemplate": POD_RUNNING},
        ),
        stage("pod-deleted", "Pod", when=[deleted], then={"delete": True}),
    ]


def fake_node(number: int, *, gpus: int) -> dict[str, Any]:
    """A node of 32 cores and 256 GiB that exists only in the API."""
    name = f"simulated-{number:04d}"
    resources = {"cpu": "32", "memory": "256Gi", "pods": "110", RESOURCE: str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {LABEL: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [{"key": TAINT, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": resources, "allocatable": resources},
    }


def up(layout: Layout, *, nodes: int, gpus: int = DEFAULT_COUNT) -> None:
    """Exactly `nodes` simulated nodes, all Ready."""
    if not 0 < nodes <= NODES_MAX:
        raise DevclusterError(f"--nodes {nodes}: between 1 and {NODES_MAX}")
    programs = binaries.ensure(["kwok", "kubectl"], layout)
    kubectl = Kubectl(programs["kubectl"], layout.kubeconfig)
    _start_controller(layout)
    kubectl.apply(*(fake_node(number, gpus=gpus) for number in range(nodes)))
    wanted = {fake_node(number, gpus=gpus)["metadata"]["name"] for number in range(nodes)}
    surplus = [n for n in _ready_by_name(kubectl) if n not in wanted]
    if surplus:
        kubectl.run("delete", "node", *surplus)
    wait_until(
        f"{nodes} simulated nodes Ready",
        lambda: sum(_ready_by_name(kubectl).values()) == nodes,
        limit_seconds=READY_LIMIT_SECONDS,
        hint=f"kwok's log: {layout.logs / 'kwok.log'}",
    )


def down(layout: Layout) -> None:
    """Remove the simulated nodes and the pods on them, then the controller."""
    programs = binaries.ensure(["kubectl"], layout)
    kubectl = Kubectl(programs["kubectl"], layout.kubeconfig)
    names = list(_ready_by_name(kubectl))
    for name in names:
        kubectl.run(
            *("delete", "pods", "--all-namespaces", f"--field-selector=spec.nodeName={name}"),
            *("--force", "--grace-period=0", "--ignore-not-found"),
        )
    if names:
        kubectl.run("delete", "node", *names)
    processes.stop_recorded(layout.processes, "kwok")


def _ready_by_name(kubectl: Kubectl) -> dict[str, bool]:
    nodes = kubectl.list("nodes", f"{LABEL}=true")
    return {n["metadata"]["name"]: _is_ready(n) for n in nodes}


def _is_ready(found: dict[str, Any]) -> bool:
    conditions = found.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def command(layout: Layout) -> list[str]:
    """kwok's command line; without a server address it listens nowhere."""
    files = NodeFiles(layout)
    kubeconfig = files.kubeconfig_of("kwok")
    return [
        str(binaries.ensure(["kwok"], layout)["kwok"]),
        f"--kubeconfig={kubeconfig if kubeconfig.exists() else layout.kubeconfig}",
        f"--config={_stages_file(layout)}",
        f"--cidr={POD_CIDR}",
        f"--node-ip={NODE_ADDRESS}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        f"--node-lease-duration-seconds={LEASE_SECONDS}",
    ]


def _stages_file(layout: Layout) -> str:
    return str(NodeFiles(layout).config / "kwok-stages.yaml")


def _start_controller(layout: Layout) -> None:
    path = NodeFiles(layout).config / "kwok-stages.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n".join(json.dumps(s) + "\n" for s in stages()))
    record = processes.read_records(layout.processes).get("kwok")
    if record and processes.is_alive(record):
        return
    processes.start(
        "kwok",
        command(layout),
        records=layout.processes,
        log=layout.logs / "kwok.log",
        environment={
            **environment.child_environment(os.environ),
            "KWOK_WORKDIR": str(layout.cluster / "kwok"),
        },
    )
