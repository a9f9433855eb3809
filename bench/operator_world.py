"""A control plane with simulated nodes for `bench.operator`, in a network namespace of its own.

etcd, API server, controller manager and scheduler are the real ones; kwok plays nodes and kubelets,
and one process answers /report for every pod. Nothing outside this machine can be reached from the
namespace, so every address in it may be answered at once by one listener.
"""

import asyncio
import http.client
import json
import multiprocessing
import os
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from devcluster import binaries, kwok, pki, processes
from devcluster.apiserver import ApiServer, free_ports
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.waiting import wait_until
from lmtraining_api import names as api
from lmtraining_api.records import Intent, TrainerReport, gang_digest

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
CRD = ROOT / "crds" / "lmtrainingjobs.lmtraining.dev.yaml"
NAMESPACE = "bench"
OPERATOR = "operator"
USERS = {
    "kube-controller-manager": pki.Identity("system:kube-controller-manager"),
    "kube-scheduler": pki.Identity("system:kube-scheduler"),
    "kwok": pki.Identity("kwok", (pki.ADMIN_GROUP,)),
    OPERATOR: pki.Identity(OPERATOR, (pki.ADMIN_GROUP,)),
}
PODS_PER_NODE = 100
WAIT_SECONDS_MAX = 900.0
STEP_SECONDS = 1.0
JOBS_PATH = f"/apis/{api.API_VERSION}/namespaces/{NAMESPACE}/{api.PLURAL}"
PODS_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"
MERGE = "application/merge-patch+json"


class Client:
    """One connection to the API server, as its administrator."""

    def __init__(self, url: str, ca: str, token: str, *, limit_seconds: float | None = 60) -> None:
        context = ssl.create_default_context(cafile=ca)
        self._connection = http.client.HTTPSConnection(
            urlsplit(url).netloc, context=context, timeout=limit_seconds
        )
        self._token = token

    @classmethod
    def of(cls, server: ApiServer, *, limit_seconds: float | None = 60) -> "Client":
        return cls(server.url, str(server.ca), server.admin_token, limit_seconds=limit_seconds)

    def send(self, method: str, path: str, body: Object | None = None) -> http.client.HTTPResponse:
        kind = MERGE if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        content = json.dumps(body) if body else None
        try:
            self._connection.request(method, path, content, headers)
        except OSError:  # the server has closed a connection that was idle for minutes
            self._connection.close()
            self._connection.request(method, path, content, headers)
        answer = self._connection.getresponse()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.read().decode()}")
        return answer

    def do(self, method: str, path: str, body: Object | None = None) -> Object:
        found: Object = json.loads(self.send(method, path, body).read())
        return found

    def watch(self, path: str) -> Iterator[tuple[str, Object]]:
        """Type and object of each event, from the first object there is. A watch that the server
        ends, as it does with one that is slow, goes on where it was."""
        since = ""
        while True:
            answer = self.send("GET", f"{path}?watch=1&resourceVersion={since}")
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise RuntimeError(f"watch of {path}: {event['object'].get('message')}")
                since = event["object"]["metadata"]["resourceVersion"]
                yield event["type"], event["object"]


@dataclass
class Seen:
    """When a pod or a job was first seen in a state, by loop time of this process."""

    times: dict[tuple[str, str], float] = field(default_factory=dict)
    status: dict[str, Object] = field(default_factory=dict)
    modified: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    """Times that a job's conditions, attempt or pods changed: what is more than progress."""

    def first(self, name: str, what: str, now: float) -> None:
        self.times.setdefault((name, what), now)


class Recorder:
    """Watches the pods and jobs of the namespace, as anybody would, and notes when."""

    def __init__(self, server: ApiServer) -> None:
        self.pods, self.jobs = Seen(), Seen()
        self.is_over = False
        """The server may go now."""
        for path, take in ((PODS_PATH, self._pod), (JOBS_PATH, self._job)):
            threading.Thread(target=self._follow, args=(server, path, take), daemon=True).start()

    def _follow(self, server: ApiServer, path: str, take: Callable[[str, Object], None]) -> None:
        try:
            for kind, found in Client.of(server, limit_seconds=None).watch(path):
                take(kind, found)
        except (OSError, http.client.HTTPException):
            if not self.is_over:
                raise

    def _pod(self, kind: str, pod: Object) -> None:
        now, name = time.monotonic(), pod["metadata"]["name"]
        if kind == "DELETED":
            self.pods.status.pop(name, None)
            return
        self.pods.first(name, "made", now)
        self.pods.status[name] = pod
        if pod.get("status", {}).get("phase") == "Running":
            self.pods.first(name, "running", now)

    def _job(self, kind: str, job: Object) -> None:
        now, name, status = time.monotonic(), job["metadata"]["name"], job.get("status") or {}
        if kind == "MODIFIED":
            self.jobs.modified += 1
        before = self.jobs.status.get(name)
        self.jobs.status[name] = status
        if kind == "DELETED":
            del self.jobs.status[name]
        if kind == "DELETED" or not status:
            return
        self.jobs.first(name, "status", now)
        for condition in status.get("conditions", []):
            self.jobs.first(name, f"{condition['type']}={condition['reason']}", now)
        if before is None or meaning(before) != meaning(status):
            self.jobs.changes[name] = self.jobs.changes.get(name, 0) + 1


def meaning(status: Object) -> object:
    """A status without its figures."""
    reasons = [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", [])]
    return status.get("attempt"), status.get("replacedPods"), status.get("restarts"), reasons


def reporter(url: str, ca: str, token: str) -> None:
    """Answers /report for every pod that runs, at whatever address it has; in its own process."""
    pods: dict[str, tuple[Object, float]] = {}

    def follow() -> None:
        for _, pod in Client(url, ca, token, limit_seconds=None).watch(PODS_PATH):
            address = pod.get("status", {}).get("podIP")
            if address:
                _, since = pods.get(address, (pod, time.time()))
                pods[address] = (pod["metadata"], since)

    def report(address: str) -> bytes:
        metadata, since = pods[address]
        labels = metadata["labels"]
        intent = Intent.model_validate_json(metadata["annotations"][api.ANNOTATION_INTENT])
        now = time.time()
        step = int((now - since) / STEP_SECONDS)
        stepped = datetime.fromtimestamp(since + step * STEP_SECONDS, UTC)
        said = TrainerReport.model_validate(
            {
                "job_uid": labels[api.LABEL_JOB_UID],
                "attempt": labels[api.LABEL_ATTEMPT], "round": 1,
                "gang": gang_digest(peer.pod_uid for peer in intent.peers),
                "state": "Training" if step else "Starting", "report_time": datetime.now(UTC),
                "step": step, "total_steps": 100_000,
                "step_time": stepped if step else None,
                "first_step_time": datetime.fromtimestamp(since + STEP_SECONDS, UTC)
                if step else None,
                "loss": 2.0 + 1.0 / (1 + step), "tokens": step * 1024,
                "tokens_per_second": 1024.0, "learning_rate": 6e-4,
            }
        )  # fmt: skip
        return said.model_dump_json(by_alias=True).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = report(address)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError, KeyError):
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "0.0.0.0", api.REPORT_PORT)  # noqa: S104 - nobody else is in this namespace
        await server.serve_forever()

    threading.Thread(target=follow, daemon=True).start()
    asyncio.run(serve())


@dataclass
class World:
    """Everything that runs, and what it has cost so far."""

    server: ApiServer
    layout: Layout
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], **environment: str) -> None:
        log = (self.server.directory / f"{name}.log").open("ab")
        self.children[name] = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | environment
        )

    def stop(self) -> None:
        for child in self.children.values():
            child.kill()
            child.wait()

    def cpu_seconds(self) -> dict[str, float]:
        """Of each component since it began."""
        records = processes.read_records(self.server.directory / "processes")
        found = {name: record.pid for name, record in records.items()}
        found |= {name: child.pid for name, child in self.children.items()}
        ticks = os.sysconf("SC_CLK_TCK")
        result = {}
        for name, pid in found.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            result[name] = (int(fields[11]) + int(fields[12])) / ticks
        return result

    def writes(self) -> Counter[tuple[str, str]]:
        """By component and resource, so far, by the API server's own log."""
        counted: Counter[tuple[str, str]] = Counter()
        paths = sorted(self.server.audit_log.parent.glob("audit*.log"))
        for line in (line for path in paths for line in path.open()):
            entry = json.loads(line)
            reference = entry.get("objectRef", {})
            parts = (reference.get("resource", ""), reference.get("subresource", ""))
            user = entry["user"]["username"].rpartition(":")[2]
            counted[user, "/".join(filter(None, parts))] += 1
        return counted

    def add_nodes(self, count: int, kubectl: Kubectl) -> None:
        nodes = [kwok.fake_node(number, gpus=0) for number in range(count)]
        for node in nodes:
            node["spec"] = {}  # there are no others here, so no taint either
        kubectl.apply(*nodes)


def component(name: str, world: World, kubeconfig: Path) -> list[str]:
    """The command line of a controller."""
    programs = binaries.ensure([name], world.layout)
    certificates = pki.Pki(world.server.directory / "pki")
    flags = {
        "kube-controller-manager": [
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={certificates.service_account_key}",
            f"--root-ca-file={certificates.ca}", "--kube-api-qps=100", "--kube-api-burst=200",
        ],
        "kube-scheduler": ["--kube-api-qps=200", "--kube-api-burst=400"],
    }  # fmt: skip
    (port,) = free_ports(1)
    return [
        str(programs[name]), f"--kubeconfig={kubeconfig}", "--leader-elect=false",
        "--bind-address=127.0.0.1", f"--secure-port={port}", *flags[name],
    ]  # fmt: skip


@contextmanager
def world(directory: Path, pods: int) -> Iterator[World]:
    """A control plane with room for so many pods, and a claim that all jobs share."""
    with ExitStack() as stack:
        server = stack.enter_context(
            ApiServer(directory / "server", identities=list(USERS.values()))
        )
        made = World(server, Layout.from_environment())
        stack.callback(made.stop)
        programs = binaries.ensure(["kubectl", "kwok"], made.layout)
        kubectl = Kubectl(programs["kubectl"], server.kubeconfig)
        for name in ("kube-controller-manager", "kube-scheduler"):
            kubeconfig = server.kubeconfig_of(USERS[name].user)
            made.start(name, component(name, made, kubeconfig))
        stages = directory / "stages.yaml"
        stages.write_text("---\n".join(json.dumps(s) + "\n" for s in kwok.stages()))
        made.start(
            "kwok",
            [
                str(programs["kwok"]), f"--kubeconfig={server.kubeconfig_of('kwok')}",
                f"--config={stages}", f"--cidr={kwok.POD_CIDR}", f"--node-ip={kwok.NODE_ADDRESS}",
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                f"--node-lease-duration-seconds={kwok.LEASE_SECONDS}",
            ],
            KWOK_WORKDIR=str(directory / "kwok"),
        )  # fmt: skip
        kubectl.run("create", "namespace", NAMESPACE)
        kubectl.run("apply", "--server-side", "--filename", str(CRD))
        made.add_nodes(pods // PODS_PER_NODE + 1, kubectl)
        kubectl.within(NAMESPACE).apply(*volume())
        claim = ("get", "persistentvolumeclaim", "shared", "--output=jsonpath={.status.phase}")
        wait_until(
            "the claim is bound",
            lambda: kubectl.within(NAMESPACE).run(*claim) == "Bound",
            limit_seconds=WAIT_SECONDS_MAX,
        )
        arguments = (server.url, str(server.ca), server.admin_token)
        answers = multiprocessing.get_context("spawn").Process(
            target=reporter, args=arguments, daemon=True
        )
        answers.start()
        stack.callback(answers.kill)
        yield made


def volume() -> list[Object]:
    """A volume and a claim that are made for each other."""
    size, modes = {"storage": "1Ti"}, ["ReadWriteMany"]
    return [
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "shared"},
            "spec": {
                "capacity": size, "accessModes": modes, "storageClassName": "",
                "nfs": {"server": "127.0.0.1", "path": "/"},
                "claimRef": {"namespace": NAMESPACE, "name": "shared"},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"},
            "spec": {
                "accessModes": modes, "resources": {"requests": size},
                "storageClassName": "", "volumeName": "shared",
            },
        },
    ]  # fmt: skip


def job(name: str) -> Object:
    """A job of two small pods."""
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2}},
            "data": {"train": [{"uri": "file:///data/*.txt"}], "sequenceLength": 64},
            "training": {"budget": {"steps": 100_000}, "batchTokens": 1024},
            "workers": {"replicas": 2, "resources": {"cpu": "250m", "memory": "1Gi"}},
            "checkpoint": {"storage": {"existingClaim": "shared"}},
        },
    }
