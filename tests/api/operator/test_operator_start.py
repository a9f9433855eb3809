"""The real operator against a real API server that is not ready for it: what is missing is said,
and once it is there the operator works (P4, P12)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import binaries, pki
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from lmtraining_operator.main import INSTALL
from tests.api.definition import CRD, define_jobs
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage

pytestmark = pytest.mark.api

NAMESPACE = "team"
USER = "operator"

Start = Callable[[], OperatorProcess]


@pytest.fixture
def bare_server(tmp_path: Path) -> Iterator[ApiServer]:
    """Without our definition, and with a user who has no rights."""
    with ApiServer(tmp_path / "api-server", identities=[pki.Identity(USER, ())]) as server:
        kubectl_of(server).run("create", "namespace", NAMESPACE)
        yield server


@pytest.fixture
def start(bare_server: ApiServer, tmp_path: Path) -> Iterator[Start]:
    started: list[OperatorProcess] = []

    def start() -> OperatorProcess:
        log = tmp_path / f"operator-{len(started)}.log"
        kubeconfig = bare_server.kubeconfig_of(USER)
        started.append(OperatorProcess(bare_server, NAMESPACE, log, kubeconfig=kubeconfig))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def kubectl_of(server: ApiServer) -> Kubectl:
    program = binaries.ensure(["kubectl"], Layout.from_environment())["kubectl"]
    return Kubectl(program, server.kubeconfig)


def grant(server: ApiServer) -> None:
    binding = ("create", "clusterrolebinding", USER, f"--user={USER}")
    kubectl_of(server).run(*binding, "--clusterrole=cluster-admin")


def install(server: ApiServer) -> None:
    kubectl = kubectl_of(server)
    define_jobs(kubectl)


def assert_works(server: ApiServer) -> None:
    stage = Stage(server, NAMESPACE, 9)
    try:
        stage.create_job("tiny")
        stage.wait_for_pods("tiny", attempt=1, count=2)
    finally:
        stage.close()


def test_cluster_without_the_definition(bare_server: ApiServer, start: Start) -> None:
    """It ends with the command that installs it; started again, as by its Deployment, it works."""
    grant(bare_server)
    operator = start()
    assert operator.wait_end() != 0
    assert INSTALL in operator.log.read_text()
    assert INSTALL.endswith(str(CRD.relative_to(CRD.parents[1]))), "of this repository"
    install(bare_server)
    start().wait_ready()
    assert_works(bare_server)


def test_rights_that_come_later(bare_server: ApiServer, start: Start) -> None:
    """It says what is refused, and goes on when it is granted."""
    install(bare_server)
    operator = start()
    operator.wait_log("jobs could not be listed, which is tried again: 403 Forbidden")
    operator.wait_log("will retry")
    grant(bare_server)
    assert_works(bare_server)
