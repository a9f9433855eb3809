"""Prometheus and promtool as Debian ships them, and its operator's CRDs.

Promise: nothing is installed and no service is started: the package is unpacked into the cache, and
deleted with it. Programs that are on PATH already are taken as they are.
Trap avoided: installing the package starts a Prometheus that listens on every address.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from devcluster import toolchain
from devcluster.errors import DevclusterError
from devcluster.paths import Layout
from devcluster.run import run

PACKAGE = "prometheus"
#: A Go module whose files hold the definitions of ServiceMonitor, PodMonitor, PrometheusRule.
OPERATOR_MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CRDS = "example/prometheus-operator-crd/monitoring.coreos.com_*.yaml"
DOWNLOAD_SECONDS_MAX = 300
UNPACK_SECONDS_MAX = 60
BY_HAND = f"install it yourself: apt-get install --no-install-recommends {PACKAGE}"


@dataclass(frozen=True)
class Programs:
    """Where they are."""

    prometheus: Path
    promtool: Path


def ensure(layout: Layout) -> Programs:
    """From PATH, else from the cache, else from Debian's mirror."""
    on_path = [shutil.which(name) for name in ("prometheus", "promtool")]
    if on_path[0] and on_path[1]:
        return Programs(Path(on_path[0]), Path(on_path[1]))
    unpacked = layout.tools / PACKAGE
    if not unpacked.exists():
        _unpack(unpacked)
    return Programs(unpacked / "usr/bin/prometheus", unpacked / "usr/bin/promtool")


def _unpack(target: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DevclusterError("no prometheus on PATH, and this machine has no apt-get: install it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        part = Path(name)
        part.chmod(0o755)  # apt's own user reads and writes here
        try:
            _download(part)
        except DevclusterError as error:
            raise DevclusterError(f"{PACKAGE} cannot be downloaded; {BY_HAND}\n{error}") from error
        (archive,) = part.glob("*.deb")
        run("dpkg-deb", "--extract", str(archive), f"{part}/root", limit_seconds=UNPACK_SECONDS_MAX)
        _publish(part / "root", target)


def _download(folder: Path) -> None:
    fetch = ("env", f"--chdir={folder}", "apt-get", "download", "-qq", PACKAGE)
    try:
        run(*fetch, limit_seconds=DOWNLOAD_SECONDS_MAX)
    except DevclusterError:  # lists that are missing, or too old
        run("apt-get", "update", "-qq", limit_seconds=DOWNLOAD_SECONDS_MAX)
        run(*fetch, limit_seconds=DOWNLOAD_SECONDS_MAX)


def operator_crds(layout: Layout) -> Path:
    """A folder with the custom resource definitions of the Prometheus operator."""
    target = layout.tools / "prometheus-operator-crds"
    if target.exists():
        return target
    go = toolchain.ensure_go(layout, announce=lambda _: None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        part = Path(name)
        answer = run(
            "env", f"--chdir={part}", "GOFLAGS=-modcacherw", f"GOMODCACHE={part}/modules",
            str(go), "mod", "download", "-json", OPERATOR_MODULE,
            limit_seconds=DOWNLOAD_SECONDS_MAX,
        )  # fmt: skip
        (part / "crds").mkdir()
        for file in sorted(Path(json.loads(answer)["Dir"]).glob(CRDS)):
            shutil.copy(file, part / "crds")
        _publish(part / "crds", target)
    return target


def _publish(made: Path, target: Path) -> None:
    """By one rename; another process may have been quicker."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise
