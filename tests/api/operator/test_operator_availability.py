"""Two operators, and a network that fails: one leads, the other takes over, all is done once."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import pki
from devcluster.apiserver import ApiServer
from lmtraining_api import names as api
from tests.api.conftest import _kubectl
from tests.api.definition import define_jobs
from tests.api.operator.faults import Fault, FaultyNetwork
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage

pytestmark = pytest.mark.api

NAMESPACE = "team"
LEASE = f"--lease={NAMESPACE}/operator"
USERS = ("first", "second")
TAKEOVER_SECONDS_MAX = 10.0
HANDOVER_SECONDS_MAX = 2.0
JOB_PATH = f"/{api.PLURAL}"

Figures = Callable[[str, object], None]
Start = Callable[..., OperatorProcess]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """With a user for each operator, so that the audit log tells them apart."""
    users = [pki.Identity(user, (pki.ADMIN_GROUP,)) for user in USERS]
    with ApiServer(tmp_path_factory.mktemp("api-server"), identities=users) as made:
        kubectl = _kubectl(made)
        kubectl.run("create", "namespace", NAMESPACE)
        define_jobs(kubectl)
        yield made


@pytest.fixture
def stage(server: ApiServer) -> Iterator[Stage]:
    made = Stage(server, NAMESPACE, 8)
    yield made
    made.close()


@pytest.fixture
def start(server: ApiServer, tmp_path: Path) -> Iterator[Start]:
    started: list[OperatorProcess] = []

    def start(user: str, *arguments: str, kubeconfig: Path | None = None) -> OperatorProcess:
        process = OperatorProcess(
            server,
            NAMESPACE,
            tmp_path / f"{user}.log",
            kubeconfig=kubeconfig or server.kubeconfig_of(user),
            arguments=arguments,
        )
        started.append(process)
        process.wait_ready()
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def network(server: ApiServer, tmp_path: Path) -> Iterator[FaultyNetwork]:
    made = FaultyNetwork(server, "first", tmp_path)
    yield made
    made.close()


def wait_leader(stage: Stage, operator: OperatorProcess) -> None:
    stage.wait("it leads", lambda: operator.leads() or None)


def runs(stage: Stage, name: str) -> float:
    """Make a job now; seconds until all of its pods are there."""
    started = time.monotonic()
    stage.create_job(name)
    stage.wait_for_pods(name, attempt=1, count=2)
    return time.monotonic() - started


def writes_of(server: ApiServer, user: str) -> list[str]:
    """What a user wrote, but for the lease, by the API server's own log."""
    found = []
    for line in server.audit_log.read_text().splitlines():
        event = json.loads(line)
        reference = event.get("objectRef", {})
        if event["user"]["username"] == user and reference.get("resource") != "leases":
            found.append(f"{event['verb']} {reference.get('resource')}/{reference.get('name', '')}")
    return found


def test_follower_takes_over(
    server: ApiServer, stage: Stage, start: Start, figures: Figures
) -> None:
    """After SIGKILL within ten seconds, after SIGTERM within two; P10: no pod is touched."""
    first = start("first", LEASE)
    wait_leader(stage, first)
    second = start("second", LEASE)
    runs(stage, "before")
    pods = [pod["metadata"]["resourceVersion"] for pod in stage.pods("before")]
    assert writes_of(server, "second") == [], "a follower writes nothing but the lease"

    first.kill()
    took = runs(stage, "killed")
    figures("takeover_after_sigkill_seconds", took)
    assert took <= TAKEOVER_SECONDS_MAX
    wait_leader(stage, second)

    third = start("first", LEASE)
    assert not third.leads()
    started = time.monotonic()
    second.terminate()
    wait_leader(stage, third)
    stage.create_job("terminated")
    stage.wait_for_pods("terminated", attempt=1, count=2)
    figures("takeover_after_sigterm_seconds", time.monotonic() - started)
    assert [pod["metadata"]["resourceVersion"] for pod in stage.pods("before")] == pods


def test_leader_that_is_cut_off_writes_nothing_when_it_is_back(
    server: ApiServer, stage: Stage, start: Start, network: FaultyNetwork
) -> None:
    """P1: it has missed that another leads; what it had in mind is too old to be written."""
    first = start("first", LEASE, kubeconfig=network.kubeconfig)
    wait_leader(stage, first)
    second = start("second", LEASE)
    runs(stage, "cut")
    network.cut()
    wait_leader(stage, second)
    stage.wait("it knows", lambda: not first.leads() or None)
    written = writes_of(server, "first")
    runs(stage, "meanwhile")
    network.heal()
    second.kill()
    stage.wait("ready again", lambda: first.get("/readyz")[0] == 200 or None)
    assert writes_of(server, "first") == written
    wait_leader(stage, first)
    runs(stage, "after")


def is_pod_creation(method: str, path: str) -> bool:
    return method == "POST" and path.partition("?")[0].endswith("/pods")


def is_status_write(method: str, path: str) -> bool:
    return method == "PATCH" and "/status" in path


def is_watch(method: str, path: str) -> bool:
    return "watch=true" in path or "watch=1" in path


def is_job_read(method: str, path: str) -> bool:
    return method == "GET" and JOB_PATH in path and not is_watch(method, path)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(is_status_write, code=409),
        Fault(is_pod_creation, code=429, headers={"Retry-After": "1"}),
        Fault(is_status_write, times=4, code=429, headers={"Retry-After": "1"}),
        Fault(is_job_read, code=500),
        Fault(is_job_read, code=503, headers={"Retry-After": "1"}),
        Fault(is_watch, times=2, code=410),
        Fault(is_pod_creation, times=2),
        Fault(is_pod_creation, times=2, is_carried_out=True),
        Fault(is_status_write, is_carried_out=True),
    ],
    ids=[
        "conflict",
        "busy, in place",
        "busy, for long",
        "internal error",
        "unavailable",
        "gone",
        "requests lost",
        "answers lost",
        "answer to a status lost",
    ],
)
def test_fault_on_the_way(
    stage: Stage,
    start: Start,
    network: FaultyNetwork,
    fault: Fault,
    request: pytest.FixtureRequest,
) -> None:
    """P12: whatever was met, the job has its pods, each of them once."""
    name = request.node.callspec.id.replace(", ", "-").replace(" ", "-")
    network.meet(fault)
    start("first", kubeconfig=network.kubeconfig)
    runs(stage, name)
    stage.wait("it was met", lambda: fault.met == fault.times or None)
    pods = [pod["metadata"]["name"] for pod in stage.pods(name)]
    assert pods == [f"{name}-1-0-0", f"{name}-1-1-0"]
    assert stage.status(name).attempt == 1


def test_token_that_expires_is_read_anew(
    stage: Stage, start: Start, network: FaultyNetwork
) -> None:
    """By the requests and by the watches."""
    start("first", kubeconfig=network.kubeconfig)
    runs(stage, "old-token")
    network.expire_token("second")
    network.cut()
    network.heal()  # breaks the streams, which outlive a token
    runs(stage, "new-token")
    assert network.refused_tokens > 0
