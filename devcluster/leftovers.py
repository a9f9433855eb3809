"""Everything a node leaves in the kernel, found and taken away.

Promise: after `clear` no container process, mount, network namespace, control group or link of the
cluster is left, however the node ended. Each thing is found by something only this cluster has:
a path below its directory, its control group, its socket on a shim's command line. Trap avoided:
killing by program name would end the pods of another container runtime on the same machine.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from devcluster import node
from devcluster.mounts import mounts_below
from devcluster.node import NodeFiles
from devcluster.run import run
from devcluster.waiting import wait_until

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
SHIM = "containerd-shim-runc-v2"
GONE_LIMIT_SECONDS = 20.0


def clear(files: NodeFiles) -> None:
    """Safe to repeat."""
    _kill_containers(files)
    _kill_shims(files)
    unmount_below(files.layout.cluster)
    _remove_cgroups(files)
    _remove_shim_sockets(files)
    _remove_links(files)


def create_cgroups(files: NodeFiles) -> None:
    """The parent group of all pods, in every hierarchy, which the kubelet insists on."""
    if (CGROUPS / "cgroup.controllers").exists():
        for controller in CONTROLLERS:
            with contextlib.suppress(OSError):  # not every kernel has every controller
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    for root in _hierarchies():
        (root / files.cgroup).mkdir(exist_ok=True)


def unmount_below(directory: Path) -> None:
    for point in mounts_below(directory):
        run("umount", "--lazy", str(point))


def _hierarchies() -> list[Path]:
    """The roots of all control group hierarchies: one on version 2, several on version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _groups(files: NodeFiles) -> list[Path]:
    """Every control group of ours, children before parents."""
    roots = [hierarchy / files.cgroup for hierarchy in _hierarchies()]
    nested = [Path(top) for root in roots for top, _, _ in os.walk(root, topdown=False)]
    return nested


def _group_members(files: NodeFiles) -> Iterator[int]:
    for group in _groups(files):
        with contextlib.suppress(OSError):
            yield from map(int, (group / "cgroup.procs").read_text().split())


def _kill_containers(files: NodeFiles) -> None:
    def none_left() -> bool:
        members = set(_group_members(files))
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not members

    wait_until("the pods' processes are gone", none_left, limit_seconds=GONE_LIMIT_SECONDS)


def shim_pids(files: NodeFiles) -> list[int]:
    """containerd's shims whose command line names our socket."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith(SHIM) and str(files.containerd_socket) in words:
                found.append(int(path.parent.name))
    return found


def _kill_shims(files: NodeFiles) -> None:
    def none_left() -> bool:
        pids = shim_pids(files)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until("containerd's shims are gone", none_left, limit_seconds=GONE_LIMIT_SECONDS)


def _remove_cgroups(files: NodeFiles) -> None:
    def all_removed() -> bool:
        for group in _groups(files):
            with contextlib.suppress(OSError):  # busy until the last process is reaped
                group.rmdir()
        return not _groups(files)

    wait_until("the pods' control groups are gone", all_removed, limit_seconds=GONE_LIMIT_SECONDS)


def _remove_shim_sockets(files: NodeFiles) -> None:
    for note in files.containerd_state.rglob("address"):
        with contextlib.suppress(OSError):
            Path(note.read_text().removeprefix("unix://")).unlink(missing_ok=True)


def _remove_links(files: NodeFiles) -> None:
    """Traces at the few places that libcni and the kubelet do not let us choose."""
    for result in node.CNI_RESULTS.glob(f"{files.cni_network}-*"):
        result.unlink(missing_ok=True)
    for link in node.CONTAINER_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(files.pod_logs):
            link.unlink()
    if sorted(node.DEVICE_PLUGINS.parent.glob("*")) == [node.DEVICE_PLUGINS]:
        # Nothing else is there, so no other kubelet lives on this machine.
        for name in ("kubelet.sock", "kubelet_internal_checkpoint"):
            (node.DEVICE_PLUGINS / name).unlink(missing_ok=True)
    for directory in (
        *(node.DEVICE_PLUGINS, node.DEVICE_PLUGINS.parent, node.CNI_RESULTS),
        *(node.CNI_RESULTS.parent, node.CONTAINER_LOG_LINKS),
    ):
        with contextlib.suppress(OSError):  # somebody else's files are in it, or it is not there
            directory.rmdir()
