"""Build the cluster's programs from pinned Go modules, once per machine.

Promise: a program is built when the pins, the flags or our own Go sources changed, and at no other
time; each one appears under its final name by a rename, so that an interrupted build goes on where
it stopped and never leaves half a file. Nothing is written into the clone. Trap avoided: two
commands at once (tests beside `up`) would build everything twice on the same cores: a lock lets
one build and the other find the result.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from devcluster import toolchain
from devcluster.errors import DevclusterError
from devcluster.paths import GO_DIR, Layout

KUBERNETES_VERSION = "v1.35.4"
BUILD_FLAGS = (
    "-trimpath",
    "-mod=readonly",
    "-ldflags",
    f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}",
)
BUILD_LIMIT_SECONDS = 3600
FAILURE_LINES = 20


@dataclass(frozen=True)
class Program:
    """One binary: the Go module that pins it, its package, and how long two cores took for it."""

    name: str
    module: str
    package: str
    usual_seconds: int
    manifests: str = ""
    """Directory of the package's own Go module that is kept beside the binary."""


PROGRAMS = (
    Program("etcd", "kubernetes", "go.etcd.io/etcd/server/v3", 40),
    Program("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", 150),
    Program("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", 20),
    Program(
        "kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", 60
    ),
    Program("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", 5),
    Program("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet", 15),
    Program("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", 10),
    Program("pause", "tools", "./pause", 1),
    Program("probe", "tools", "./probe", 2),
    Program("coredns", "tools", "github.com/coredns/coredns", 100),
    Program("sharedstorage", "tools", "./sharedstorage", 40),
    Program("kwok", "tools", "sigs.k8s.io/kwok/cmd/kwok", 20),
    Program("helm", "tools", "helm.sh/helm/v4/cmd/helm", 20),
    Program("kubeconform", "tools", "github.com/yannh/kubeconform/cmd/kubeconform", 2),
    Program("kind", "tools", "sigs.k8s.io/kind", 10),
    Program("kube-state-metrics", "statemetrics", "k8s.io/kube-state-metrics/v2", 150),
    Program("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue", 240, manifests="config"),
)
#: Not in any cluster: a test brings its own.
TEST_PROGRAMS = ("kube-state-metrics",)
#: The same, of a test that is asked for by name.
RARE_PROGRAMS = ("kueue",)
NATIVE_PROGRAMS = tuple(
    p.name for p in PROGRAMS if p.name not in {"kind", *TEST_PROGRAMS, *RARE_PROGRAMS}
)
KIND_PROGRAMS = ("kind", "kubectl", "sharedstorage", "kwok", "helm", "kubeconform")


def module_key(module: Path, flags: Sequence[str] = BUILD_FLAGS) -> str:
    """What the binaries of a Go module depend on, as a short name for a directory."""
    digest = hashlib.sha256("\0".join(flags).encode())
    for path in sorted([module / "go.mod", module / "go.sum", *module.rglob("*.go")]):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(module)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def program(name: str) -> Program:
    """The program of that name; DevclusterError when there is none."""
    for candidate in PROGRAMS:
        if candidate.name == name:
            return candidate
    raise DevclusterError(f"no program {name!r} in devcluster/binaries.py")


def path_of(program: Program, layout: Layout) -> Path:
    return layout.binaries / module_key(GO_DIR / program.module) / program.name


def manifests_of(program: Program, layout: Layout) -> Path:
    """Where its `manifests` are, once it is built."""
    return path_of(program, layout).with_name(f"{program.name}-{program.manifests}")


def ensure(names: Iterable[str], layout: Layout) -> dict[str, Path]:
    """The path of each named program, built now if it is not there."""
    programs = [program(name) for name in names]
    paths = {p.name: path_of(p, layout) for p in programs}
    if not all(path.exists() for path in paths.values()):
        with _build_lock(layout):
            _build([p for p in programs if not paths[p.name].exists()], layout)
    return paths


@contextmanager
def _build_lock(layout: Layout) -> Iterator[None]:
    layout.binaries.mkdir(parents=True, exist_ok=True)
    with (layout.binaries / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(programs: Sequence[Program], layout: Layout) -> None:
    console = Console(stderr=True)
    go = toolchain.ensure_go(layout, announce=console.print)
    total_minutes = sum(p.usual_seconds for p in programs) / 60
    if programs:
        console.print(
            f"Building {len(programs)} programs from Go modules, once per machine: "
            f"about {total_minutes:.0f} minutes on two cores, into {layout.binaries}"
        )
    for number, program in enumerate(programs, start=1):
        usual = f"usually {program.usual_seconds} s the first time"
        with console.status(f"[{number}/{len(programs)}] {program.name} ({usual})"):
            _build_one(go, program, layout)
        console.print(f"[{number}/{len(programs)}] {program.name} built", markup=False)
    if programs:
        shutil.rmtree(layout.go_caches, ignore_errors=True)


def _build_one(go: Path, program: Program, layout: Layout) -> None:
    """The binary comes last: where it is, all of it is."""
    target = path_of(program, layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    build = ["build", *BUILD_FLAGS, "-o", str(temporary), program.package]
    _go(go, program, build, layout)
    if program.manifests:
        where = ["list", "-f", "{{.Module.Dir}}", program.package]
        source = Path(_go(go, program, where, layout).strip())
        kept = manifests_of(program, layout)
        shutil.rmtree(kept, ignore_errors=True)  # of a build that was interrupted
        shutil.copytree(source / program.manifests, kept)
    temporary.rename(target)


def _go(go: Path, program: Program, arguments: Sequence[str], layout: Layout) -> str:
    """What a go command says in the program's module."""
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        # Caches of our own: 9 GB that are given back when all is built, and kept until then.
        "GOFLAGS": "-modcacherw",
        "GOCACHE": str(layout.go_caches / "build"),
        "GOMODCACHE": str(layout.go_caches / "modules"),
    }
    done = subprocess.run(
        [str(go), *arguments],
        cwd=GO_DIR / program.module,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-FAILURE_LINES:])
        raise DevclusterError(
            f"{program.name} could not be built in {GO_DIR / program.module}:\n{tail}\n"
            "If modules could not be downloaded, check `go env GOPROXY`; then run it again, "
            "what was built stays."
        )
    return done.stdout
