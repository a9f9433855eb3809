"""One cluster per machine, whichever back end carries it.

Promise: `ensure_up` returns a cluster on which pods run, whatever was there before, and two callers
at once get the same one. An up cluster costs it about a tenth of a second. Trap avoided: a lock
that is held by a killed process: the kernel drops this one with the process.
"""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from devcluster import (
    binaries,
    components,
    gpu,
    kindcluster,
    machine,
    native,
    node,
    processes,
    readiness,
)
from devcluster.apiserver import is_ready
from devcluster.errors import DevclusterError
from devcluster.images.docker import docker_answers
from devcluster.kubectl import Kubectl
from devcluster.model import Cluster
from devcluster.node import NodeFiles
from devcluster.paths import Layout
from devcluster.pki import Pki
from devcluster.waiting import wait_until

__all__ = ["Backend", "Cluster", "ensure_down", "ensure_up"]

Announce = Callable[[str], None]
LOCK_LIMIT_SECONDS = 1800.0  # a first build in another terminal


class Backend(StrEnum):
    """What carries the cluster; `auto` is kind where a Docker daemon answers, else native."""

    AUTO = "auto"
    NATIVE = "native"
    KIND = "kind"


def ensure_up(
    *,
    backend: Backend = Backend.AUTO,
    egress: bool | None = None,
    gpus: int | None = None,
    layout: Layout | None = None,
    announce: Announce = print,
) -> Cluster:
    """A running cluster: found, repaired or started; DevclusterError says what is in the way.

    `egress` (may pods reach the world outside) and `gpus` (simulated accelerators) stay as they
    are when None; a new cluster starts with no egress and eight accelerators.
    """
    layout = layout or Layout.from_environment()
    with locked(layout):
        if choose_backend(backend, layout) is Backend.KIND:
            if not is_healthy(layout):
                count = gpu.DEFAULT_COUNT if gpus is None else gpus
                kindcluster.up(layout, gpus=count, announce=announce)
        else:
            _ensure_native(layout, egress=egress, gpus=gpus, announce=announce)
    return describe(layout)


def _ensure_native(
    layout: Layout, *, egress: bool | None, gpus: int | None, announce: Announce
) -> None:
    current = native.settings_of(layout)
    wanted = native.Settings(
        egress=current.egress if egress is None else egress,
        gpus=current.gpus if gpus is None else gpus,
    )
    if wanted == current and is_healthy(layout):
        return
    ours = native.is_ours(layout)
    if ours and wanted.egress != current.egress:
        raise DevclusterError(
            "whether pods reach the world outside is fixed when the cluster starts: "
            "`python -m devcluster down` first"
        )
    if not ours:
        native.down(layout)  # what a crash or a reboot left would hold our ports
    machine.require(layout, ours_running=ours, announce=announce)
    native.up(layout, wanted, announce=announce)


def ensure_down(*, layout: Layout | None = None) -> None:
    """Nothing of the cluster left; fine when there was none."""
    layout = layout or Layout.from_environment()
    with locked(layout):
        if running_backend(layout) is Backend.KIND:
            kindcluster.down(layout)
        else:
            native.down(layout)


def describe(layout: Layout) -> Cluster:
    """The cluster of this layout, up or not."""
    is_native = running_backend(layout) is not Backend.KIND
    return Cluster(
        kubeconfig=layout.kubeconfig,
        registry=node.REGISTRY,
        binaries=layout.programs,
        node=node.NODE_NAME if is_native else kindcluster.NODE_NAME,
        audit_log=layout.logs / "audit.log" if is_native else None,
    )


def running_backend(layout: Layout) -> Backend | None:
    """Which back end the state on disk belongs to; None when there is none."""
    try:
        marker = json.loads(layout.marker.read_text())
        return Backend(marker["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose_backend(wanted: Backend, layout: Layout) -> Backend:
    """The back end of an existing cluster, else what was asked for, else what this machine has."""
    existing = running_backend(layout)
    if existing and wanted not in (Backend.AUTO, existing):
        raise DevclusterError(
            f"a {existing} cluster is there already: `python -m devcluster down` first"
        )
    if existing:
        return existing
    if wanted is not Backend.AUTO:
        return wanted
    return Backend.KIND if docker_answers() else Backend.NATIVE


def is_healthy(layout: Layout) -> bool:
    """Whether every part of the cluster runs and answers now."""
    if running_backend(layout) is Backend.KIND:
        return kindcluster.is_healthy(layout)
    if not native.is_ours(layout):
        return False
    records = processes.read_records(layout.processes)
    programs = {p.name: binaries.path_of(p, layout) for p in binaries.PROGRAMS}
    files = NodeFiles(layout)
    expected = (*components.foundation(files, programs), *components.rest(files, programs))
    needed = [c.name for c in expected if c.name != "registry"]  # another may stand in for ours
    all_alive = all(n in records and processes.is_alive(records[n]) for n in needed)
    return all_alive and not readiness.unready_services() and _api_is_ready(layout)


def _api_is_ready(layout: Layout) -> bool:
    certificates = Pki(layout.pki)
    url = f"https://127.0.0.1:{node.API_PORT}"
    return is_ready(url=url, ca=certificates.ca, token=certificates.token("admin"))


def kubectl(layout: Layout) -> Kubectl:
    """kubectl as the administrator of the cluster."""
    return Kubectl(binaries.ensure(["kubectl"], layout)["kubectl"], layout.kubeconfig)


def require_up(layout: Layout) -> None:
    if not is_healthy(layout):
        raise DevclusterError("the cluster is not up: `python -m devcluster up` first")


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Only one `up` or `down` at a time on this machine."""
    layout.cache.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w") as lock:

        def acquired() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_until(
            "another devcluster command to finish", acquired, limit_seconds=LOCK_LIMIT_SECONDS
        )
        yield
