"""The native cluster comes up, runs pods, heals, goes down and leaves nothing, twice in a row.

It has a network namespace and a cache directory of its own, so that a cluster which is already up
on this machine, with whatever runs on it, is not touched.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from devcluster import binaries, processes
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.mounts import mounts_below
from devcluster.paths import Layout
from devcluster.pki import Identity
from devcluster.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND_LIMIT_SECONDS = 300
PODS_LIMIT_SECONDS = 60
LEFTOVERS_LIMIT_SECONDS = 30
OUTSIDE_ADDRESS = "192.0.2.2"  # of a namespace of the test's own, never of another machine

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="the native node runs as root"),
]


@dataclass(frozen=True)
class Isolated:
    """A place where a second cluster can live."""

    namespace: str
    layout: Layout

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LMTRAIN_CACHE": str(self.layout.cache)}

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def run(self, *command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            self.command(*command),
            input=stdin,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment,
            timeout=COMMAND_LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def devcluster(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "devcluster", *arguments)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        program = str(self.layout.programs / "kubectl")
        return self.run(
            program, "--kubeconfig", str(self.layout.kubeconfig), *arguments, stdin=stdin
        )

    def push_probe(self) -> str:
        probe = binaries.path_of(binaries.program("probe"), self.layout)
        code = (
            "import sys; from pathlib import Path; from devcluster.tinyimage import push;"
            "print(push(Path(sys.argv[1]), registry='127.0.0.1:5000', repository='probe', tag='1'))"
        )
        return self.run(sys.executable, "-c", code, str(probe)).strip()

    def leftovers(self) -> dict[str, object]:
        """Everything that a cluster here could have left behind."""
        links = json.loads(self.run("ip", "-json", "link"))
        rules = self.run("iptables-save") + self.run("ip6tables-save")
        return {
            "processes": _processes_naming(str(self.layout.cache)),
            "mounts": mounts_below(self.layout.cache),
            "links": [link["ifname"] for link in links],
            "rules": [line for line in rules.splitlines() if line.startswith("-A")],
            "chains": [line for line in rules.splitlines() if line.startswith((":KUBE", ":LMT"))],
            "namespaces": _namespaces_without_a_process(),
            "control groups": sorted(Path("/sys/fs/cgroup").glob(f"**/{self.layout.identity}")),
            "forwarding": self.run("cat", "/proc/sys/net/ipv4/ip_forward").strip(),
            "state": self.layout.cluster.exists(),
        }


def _nothing_is_left(isolated: Isolated, before: dict[str, object]) -> None:
    wait_until(
        f"all is as it was: {before}",
        lambda: isolated.leftovers() == before,
        limit_seconds=LEFTOVERS_LIMIT_SECONDS,
        poll_seconds=0.5,
    )


def _namespaces_without_a_process() -> list[str]:
    """Those with a process belong to pods of another cluster, which come and go."""
    used = {inode for path in Path("/proc").glob("[0-9]*/ns/net") if (inode := _inode(path))}
    return sorted(p.name for p in Path("/run/netns").iterdir() if _inode(p) not in used)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _processes_naming(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: sockets lie below it, whose paths have an end."""
    with TemporaryDirectory(prefix="lmtest-") as made:
        yield Path(made)


@pytest.fixture
def isolated(directory: Path) -> Iterator[Isolated]:
    """Two joined network namespaces: one for a cluster, one that plays the world outside."""
    shared = Layout.from_environment()
    binaries.ensure(binaries.NATIVE_PROGRAMS, shared)
    layout = Layout(directory)
    layout.binaries.symlink_to(shared.binaries)
    inside, outside = f"lmtest-in-{os.getpid()}", f"lmtest-out-{os.getpid()}"
    place = Isolated(inside, layout)
    try:
        _join_namespaces(inside, outside)
        yield place
        place.devcluster("down")
    finally:
        for name in (inside, outside):
            _ip("netns", "delete", name)


def _join_namespaces(inside: str, outside: str) -> None:
    for name in (inside, outside):
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", inside, "link", "add", "out0", "type", "veth", "peer", "in0", "netns", outside)
    for name, link, address in (
        (inside, "out0", "192.0.2.1"),
        (outside, "in0", OUTSIDE_ADDRESS),
    ):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        _ip("-n", name, "link", "set", link, "up")
    _ip("-n", outside, "route", "add", "default", "via", "192.0.2.1")


@pytest.fixture
def world(isolated: Isolated) -> Iterator[str]:
    """A server in the namespace that plays the world outside; its host:port."""
    probe = str(binaries.path_of(binaries.program("probe"), isolated.layout))
    outside = isolated.namespace.replace("-in-", "-out-")
    server = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{outside}", probe, "-serve", f"{OUTSIDE_ADDRESS}:8080"]
    )
    yield f"{OUTSIDE_ADDRESS}:8080"
    server.kill()
    server.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=COMMAND_LIMIT_SECONDS)


def test_a_cluster_runs_pods_heals_and_leaves_nothing(isolated: Isolated, world: str) -> None:
    before = isolated.leftovers()
    isolated.run(str(binaries.path_of(binaries.program("probe"), isolated.layout)),
                 "-get", f"http://{world}")  # fmt: skip

    isolated.devcluster("up", "--backend", "native")
    _pods_reach_each_other_and_nothing_outside(isolated, world)
    _dead_processes_come_back(isolated)

    isolated.devcluster("down")
    _nothing_is_left(isolated, before)
    isolated.devcluster("down")
    _nothing_is_left(isolated, before)


def test_a_cluster_comes_up_again_after_the_state_of_an_earlier_boot(isolated: Isolated) -> None:
    before = isolated.leftovers()
    isolated.devcluster("up", "--backend", "native")
    isolated.devcluster("up", "--backend", "native", "--gpus", "2")
    assert _accelerators(isolated) == "2"
    marker = isolated.layout.marker
    marker.write_text(json.dumps({"backend": "native", "boot": "an earlier one"}))
    isolated.devcluster("up", "--backend", "native")
    assert json.loads(marker.read_text())["boot"] == processes.boot_id()
    isolated.devcluster("status")
    isolated.devcluster("down")
    _nothing_is_left(isolated, before)


def test_a_start_that_is_killed_half_way_is_known_and_taken_away(isolated: Isolated) -> None:
    before = isolated.leftovers()
    command = isolated.command(sys.executable, "-m", "devcluster", "up", "--backend", "native")
    starting = subprocess.Popen(command, cwd=ROOT, env=isolated.environment)
    wait_until(
        "the kubelet was started",
        lambda: "kubelet" in processes.read_records(isolated.layout.processes),
        limit_seconds=COMMAND_LIMIT_SECONDS,
    )
    starting.kill()
    starting.wait()
    assert isolated.leftovers() != before
    isolated.devcluster("down")
    _nothing_is_left(isolated, before)


def _pods_reach_each_other_and_nothing_outside(isolated: Isolated, world: str) -> None:
    image = isolated.push_probe()
    objects = [
        _namespace(),
        _pod("server", image, "-serve", ":8080"),
        _service(),
        _claim(),
        _pod(
            *("client", image, "-lookup", "server.lifecycle.svc.cluster.local"),
            *("-get", "http://server:8080", "-connect", "kubernetes.default.svc:443"),
            *("-write", "/data/file", "-unreachable", world),
        ),
    ]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    isolated.kubectl("apply", "-f", "-", stdin=document)
    wait_until(
        "the client pod succeeds",
        lambda: _phase(isolated, "client") == "Succeeded",
        limit_seconds=PODS_LIMIT_SECONDS,
        poll_seconds=0.5,
        hint="its log says which of its checks failed",
    )
    assert "all well" in isolated.kubectl("logs", "client", "-n", "lifecycle")
    written = list(isolated.layout.volumes.glob("*/file"))
    assert [path.read_text() for path in written] == ["written"]
    assert _accelerators(isolated) == "8"


def _accelerators(isolated: Isolated) -> str:
    path = r"jsonpath={.items[0].status.allocatable.nvidia\.com/gpu}"
    return isolated.kubectl("get", "node", "-o", path)


def _dead_processes_come_back(isolated: Isolated) -> None:
    records = processes.read_records(isolated.layout.processes)
    for name in ("kube-scheduler", "containerd", "etcd"):
        os.kill(records[name].pid, signal.SIGKILL)
    wait_until(
        "the killed processes are gone",
        lambda: not any(processes.is_alive(records[n]) for n in ("kube-scheduler", "etcd")),
        limit_seconds=10,
    )
    isolated.devcluster("up")
    isolated.devcluster("status")
    assert _phase(isolated, "server") == "Running"
    assert isolated.kubectl("get", "pod", "server", "-n", "lifecycle", "-o", RESTARTS) == "0"


RESTARTS = "jsonpath={.status.containerStatuses[0].restartCount}"


def _phase(isolated: Isolated, pod: str) -> str:
    return isolated.kubectl("get", "pod", pod, "-n", "lifecycle", "-o", "jsonpath={.status.phase}")


def _namespace() -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "lifecycle", "labels": labels},
    }


def _claim() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "lifecycle"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "server", "namespace": "lifecycle"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 8080}]},
    }


def _pod(name: str, image: str, *arguments: str) -> dict[str, Any]:
    container = {
        "name": "probe",
        "image": image,
        "args": list(arguments),
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "lifecycle", "labels": {"app": name}},
        "spec": {
            "restartPolicy": "OnFailure",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [container],
        },
    }


def test_api_servers_run_side_by_side_and_tell_their_users_apart(tmp_path: Path) -> None:
    reader = Identity("jo", ("readers",))
    kubectl = binaries.ensure(["kubectl"], Layout.from_environment())["kubectl"]
    with (
        ApiServer(tmp_path / "one", identities=[reader]) as one,
        ApiServer(tmp_path / "two") as two,
    ):
        Kubectl(kubectl, one.kubeconfig).run("create", "namespace", "only-in-one")
        assert Kubectl(kubectl, two.kubeconfig).find("namespace", "only-in-one") is None
        refused = Kubectl(kubectl, one.kubeconfig_of("jo")).try_run("create", "namespace", "no")
        assert 'User "jo" cannot create resource "namespaces"' in refused.stderr
        events = [json.loads(line) for line in one.audit_log.read_text().splitlines()]
        answers = {(e["user"]["username"], e["responseStatus"]["code"]) for e in events}
        assert {("admin", 201), ("jo", 403)} <= answers
    assert _processes_naming(str(tmp_path)) == []
