"""The native single node: started, repaired and taken away.

Promise: `up` ends with a node that runs pods, from whatever it finds: nothing, a running cluster,
one with dead processes (they are started again, objects and pods stay), or what a reboot left (it
is cleared first). `down` leaves nothing in the kernel or the process table, only caches on disk.
Trap avoided: the marker is written before the first process starts, so that a start that is
interrupted half-way is still known, and taken away, as ours.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devcluster import (
    binaries,
    components,
    controlplane,
    environment,
    gpu,
    kubeconfig,
    leftovers,
    manifests,
    network,
    node,
    nodeconfig,
    pki,
    processes,
    readiness,
    runtime,
)
from devcluster.errors import DevclusterError
from devcluster.images.registry import registry_answers
from devcluster.images.superseded import free_superseded
from devcluster.kubectl import Kubectl
from devcluster.node import NodeFiles
from devcluster.paths import Layout

Announce = Callable[[str], None]
BACKEND = "native"
CONTAINERD_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """What a person may choose: may pods reach the world outside, how many accelerators."""

    egress: bool = False
    gpus: int = gpu.DEFAULT_COUNT


def up(layout: Layout, settings: Settings, *, announce: Announce) -> None:
    """Return when the node is ready for pods; the machine was checked before."""
    files = NodeFiles(layout)
    programs = binaries.ensure(binaries.NATIVE_PROGRAMS, layout)
    fresh = not is_ours(layout)
    if fresh:
        _prepare(files, programs)
    _write_marker(layout, settings)
    network.create(files, egress=settings.egress)
    leftovers.create_cgroups(files)
    _write_configuration(files, egress=settings.egress)
    _forget_dead(files, announce)
    superseded = free_superseded(layout.registry, files.registry_config) if fresh else []
    _start_foundation(files, programs, announce)
    runtime.remove_images(files, superseded)
    kubectl = Kubectl(programs["kubectl"], layout.kubeconfig)
    documents = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests.native()})
    kubectl.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=documents)
    _forget_dead(files, announce)  # while the API server was away, its clients may have given up
    for component in components.rest(files, programs):
        _ensure_running(component, files)
    readiness.wait_for_node(kubectl, files)
    gpu.set_count(kubectl, node=node.NODE_NAME, count=settings.gpus)
    readiness.wait_for_pods_to_be_possible(kubectl, files)


def is_ours(layout: Layout) -> bool:
    """Whether a native cluster of this boot is there, in whatever state."""
    marker = _read_marker(layout)
    return marker.get("backend") == BACKEND and marker.get("boot") == processes.boot_id()


def settings_of(layout: Layout) -> Settings:
    """What the cluster was started with; the defaults when there is none."""
    chosen = _read_marker(layout).get("settings", {})
    return Settings(**chosen) if is_ours(layout) else Settings()


def _read_marker(layout: Layout) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(layout.marker.read_text())
    except (OSError, ValueError):
        return {}
    return marker


def _write_marker(layout: Layout, settings: Settings) -> None:
    marker = {"backend": BACKEND, "boot": processes.boot_id(), "settings": asdict(settings)}
    layout.marker.write_text(json.dumps(marker))


def dead_components(layout: Layout) -> list[str]:
    """Names of recorded processes that should run and do not."""
    records = processes.read_records(layout.processes)
    return [name for name, record in records.items() if not processes.is_alive(record)]


def down(layout: Layout) -> None:
    """Stop everything and wipe the cluster's state; safe to repeat, and after a crash."""
    files = NodeFiles(layout)
    records = processes.read_records(layout.processes)
    containerd = records.pop("containerd", None)
    for record in sorted(records.values(), key=lambda r: r.name != "kubelet"):
        processes.stop(record, grace_seconds=0)  # their state goes with them
    if containerd:
        if processes.is_alive(containerd):
            runtime.remove_all_containers(files)
        processes.stop(containerd, grace_seconds=CONTAINERD_GRACE_SECONDS)
    for stray in processes.unrecorded(node.PROGRAMS, naming=f"{layout.cluster}/"):
        processes.stop(stray, grace_seconds=0)
    if os.geteuid() == 0:
        leftovers.clear(files)
        network.remove(files)
    shutil.rmtree(layout.cluster, ignore_errors=True)
    if layout.cluster.exists():
        raise DevclusterError(f"{layout.cluster} could not be removed: remove it by hand")


def _prepare(files: NodeFiles, programs: Mapping[str, Path]) -> None:
    """Lay out the files of a new cluster; what an earlier one left was cleared before."""
    if foreign := network.foreign_kubernetes(files):
        raise DevclusterError(
            f"{foreign}: another Kubernetes node lives on this machine. Stop it and remove its "
            "rules, or start Docker, and `up` uses kind"
        )
    layout = files.layout
    layout.cluster.mkdir(parents=True)
    _write_marker(layout, Settings())
    layout.volumes.mkdir(mode=0o711)
    addresses = (controlplane.LOOPBACK, controlplane.SERVICE_ADDRESS, node.NODE_ADDRESS)
    certificates = pki.create(layout.pki, api_addresses=addresses, identities=components.IDENTITIES)
    _write_kubeconfigs(files, certificates)
    _link_programs(files, programs)


def _write_kubeconfigs(files: NodeFiles, certificates: pki.Pki) -> None:
    def write(path: Path, user: str) -> None:
        text = kubeconfig.render(
            server=f"https://{controlplane.LOOPBACK}:{node.API_PORT}",
            ca=certificates.ca.read_bytes(),
            token=certificates.token(user),
            user=user,
        )
        kubeconfig.write(path, text)

    write(files.layout.kubeconfig, "admin")
    for component, user in components.USER_OF_COMPONENT.items():
        write(files.kubeconfig_of(component), user)


def _link_programs(files: NodeFiles, programs: Mapping[str, Path]) -> None:
    directory = files.layout.programs
    directory.mkdir()
    for name, path in programs.items():
        (directory / name).symlink_to(path)


def _write_configuration(files: NodeFiles, *, egress: bool) -> None:
    snapshotter = runtime.snapshotter(files.layout.containerd_root)
    texts = {
        "containerd.toml": nodeconfig.containerd(
            files, snapshotter=snapshotter, cni_plugins=node.cni_plugins()
        ),
        f"registries/{node.REGISTRY}/hosts.toml": nodeconfig.registry_hosts(),
        "registry.yaml": nodeconfig.registry(files),
        "cni/10-devcluster.conflist": nodeconfig.cni(files),
        "kubelet.yaml": nodeconfig.kubelet(files),
        "kube-proxy.yaml": nodeconfig.kube_proxy(files),
        "Corefile": nodeconfig.coredns(files, egress=egress),
        "resolv.conf": nodeconfig.resolv_conf(),
    }
    for name, text in texts.items():
        path = files.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    audit = controlplane.audit_policy()
    (files.layout.cluster / "audit-policy.yaml").write_text(audit)


def _start_foundation(files: NodeFiles, programs: Mapping[str, Path], announce: Announce) -> None:
    """Start what everything else needs, all at once, and wait until it answers."""
    foundation = components.foundation(files, programs)
    known = processes.read_records(files.layout.processes)
    if "registry" not in known and registry_answers(node.REGISTRY):
        announce(f"Another registry answers at {node.REGISTRY}: it is used as it is")
        foundation = [c for c in foundation if c.name != "registry"]
    started = {c.name: _ensure_running(c, files) for c in foundation}
    readiness.wait_for_containerd(started["containerd"], files)
    runtime.ensure_pause_image(files, programs["pause"])
    readiness.wait_for_api_server(started["kube-apiserver"], files)


def _forget_dead(files: NodeFiles, announce: Announce) -> None:
    dead = dead_components(files.layout)
    if dead:
        announce(f"These had died: {', '.join(dead)}. Starting them again, objects and pods stay")
    for name in dead:
        processes.stop_recorded(files.layout.processes, name)


def _ensure_running(component: components.Component, files: NodeFiles) -> processes.ProcessRecord:
    records = files.layout.processes
    return processes.read_records(records).get(component.name) or processes.start(
        component.name,
        component.command,
        records=records,
        log=files.layout.logs / f"{component.name}.log",
        environment=environment.child_environment(os.environ),
    )
