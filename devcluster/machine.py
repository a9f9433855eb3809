"""What this machine lacks for the native node, and the exact command that brings it.

Promise: `up` fails before it changes anything, or installs what is missing itself where it may
(root on Debian or Ubuntu) and says so. Trap avoided: Debian starts a service right after installing
it, and the registry's would take the very port that ours needs: services that came in with our
packages are switched off again.
"""

import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster import node, toolchain
from devcluster.errors import DevclusterError
from devcluster.images.registry import registry_answers
from devcluster.paths import Layout
from devcluster.run import run, try_run

INSTALL_LIMIT_SECONDS = 900.0
DISK_BYTES_MIN = 5 * 1024**3
UNIX_PATH_BYTES_MAX = 107
MEMORY_BYTES_MIN = 2 * 1024**3
SERVICES_THAT_COME_ALONG = ("containerd", "docker-registry")


@dataclass(frozen=True)
class Requirement:
    """A program (a name on PATH, or one of several absolute paths) and its Debian package."""

    programs: tuple[str, ...]
    package: str
    purpose: str


REQUIREMENTS = (
    Requirement(("containerd",), "containerd", "runs the pods"),
    Requirement(("ctr",), "containerd", "puts the pause image into containerd"),
    Requirement(("runc",), "runc", "starts containers"),
    Requirement(
        tuple(str(directory / "bridge") for directory in node.CNI_PLUGIN_DIRECTORIES),
        "containernetworking-plugins",
        "gives pods an address",
    ),
    Requirement(("iptables-save",), "iptables", "services and the pods' firewall"),
    Requirement(("ip",), "iproute2", "the pods' bridge"),
    Requirement(("docker-registry",), "docker-registry", "takes the images you build"),
    Requirement(("buildah",), "buildah", "builds the images"),
    Requirement(("mmdebstrap",), "mmdebstrap", "makes the base image where no registry is"),
    Requirement(("openssl",), "openssl", "makes the cluster's certificates"),
    Requirement(("setpriv",), "util-linux", "ties test servers to the test's life"),
)


@dataclass(frozen=True)
class Problem:
    """What is wrong and what a person types or does about it."""

    what: str
    fix: str


def find_program(requirement: Requirement) -> str | None:
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    found = (shutil.which(name, path=path) for name in requirement.programs)
    return next(filter(None, found), None)


def missing_requirements(
    find: Callable[[Requirement], str | None] = find_program,
) -> list[Requirement]:
    return [r for r in REQUIREMENTS if find(r) is None]


def install_command(missing: Sequence[Requirement]) -> str:
    """What a person would type to get the missing programs on Debian or Ubuntu."""
    packages = " ".join(sorted({r.package for r in missing}))
    return f"apt-get install --yes --no-install-recommends {packages}"


def problems(layout: Layout, *, ours_running: bool) -> list[Problem]:
    """Everything that stands in the way of a native node, in the order to mend it."""
    found = []
    if os.uname().sysname != "Linux":
        return [Problem("the native node needs Linux", "start Docker, and `up` uses kind")]
    if os.geteuid() != 0:
        found.append(
            Problem(
                "the native node runs as root (mounts, network, cgroups)",
                "run the same command with sudo -E, or start Docker, and `up` uses kind",
            )
        )
    if missing := missing_requirements():
        lines = "; ".join(f"{r.programs[0]} ({r.purpose})" for r in missing)
        found.append(Problem(f"not installed: {lines}", install_command(missing)))
    if toolchain.find_go(layout) is None:
        version = ".".join(map(str, toolchain.required_version()))
        command = toolchain.install_command(layout)
        fix = " ".join(command) if command else f"put Go {version} or newer on PATH"
        found.append(Problem(f"no Go {version} or newer to build Kubernetes with", fix))
    found += _socket_path(layout) + _resources(layout)
    return found if ours_running else found + _taken_ports()


def _socket_path(layout: Layout) -> list[Problem]:
    socket_path = f"{node.NodeFiles(layout).containerd_socket}.ttrpc"
    if len(socket_path) <= UNIX_PATH_BYTES_MAX:
        return []
    return [
        Problem(
            f"{socket_path} has {len(socket_path)} bytes, a socket's path at most "
            f"{UNIX_PATH_BYTES_MAX}",
            "set LMTRAIN_CACHE to a shorter path",
        )
    ]


def _resources(layout: Layout) -> list[Problem]:
    found = []
    existing = next(p for p in (layout.cache, *layout.cache.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < DISK_BYTES_MIN:
        found.append(
            Problem(
                f"{existing} has {free / 1024**3:.1f} GiB free, "
                f"{DISK_BYTES_MIN / 1024**3:.0f} are needed",
                "free some disk, or set LMTRAIN_CACHE to a directory on a larger one",
            )
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MEMORY_BYTES_MIN:
        found.append(Problem(f"{memory / 1024**3:.1f} GiB of memory", "2 GiB are needed"))
    return found


def _taken_ports() -> list[Problem]:
    taken = [port for port in node.PORTS if not _can_listen(port.address, port.number)]
    if registry_answers(node.REGISTRY):  # one that is there already serves as well as ours
        taken = [port for port in taken if port.number != node.REGISTRY_PORT]
    return [
        Problem(
            f"port {port.number}, needed by {port.component}, is taken",
            f"stop what listens there: ss -ltnp 'sport = :{port.number}'",
        )
        for port in taken
    ]


def _can_listen(address: str, number: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, number))
        except OSError:
            return False
        return True


def install_missing(announce: Callable[[str], None]) -> None:
    """Install the missing packages, where this machine lets us."""
    missing = missing_requirements()
    if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    packages = sorted({r.package for r in missing})
    announce(f"Installing {', '.join(packages)} (apt-get)")
    services = [s for s in SERVICES_THAT_COME_ALONG if s in packages]
    options = ["--yes", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"]
    environment = ("env", "DEBIAN_FRONTEND=noninteractive")
    run(*environment, "apt-get", "update", limit_seconds=INSTALL_LIMIT_SECONDS)
    run(
        *(*environment, "apt-get", "install", *options, *packages),
        limit_seconds=INSTALL_LIMIT_SECONDS,
    )
    if Path("/run/systemd/system").exists():
        for service in services:
            try_run("systemctl", "disable", "--now", service)


def require(layout: Layout, *, ours_running: bool, announce: Callable[[str], None]) -> None:
    """Make the machine ready, or raise with everything that is still in the way."""
    install_missing(announce)
    toolchain.ensure_go(layout, announce=announce)
    remaining = problems(layout, ours_running=ours_running)
    if remaining:
        lines = "\n".join(f"- {p.what}\n  fix: {p.fix}" for p in remaining)
        raise DevclusterError(f"the native node cannot run here:\n{lines}")
