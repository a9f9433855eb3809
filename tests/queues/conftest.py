"""An API server with the real Kueue; a namespace with a queue of its own for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster import pki
from devcluster.apiserver import ApiServer
from tests.api.conftest import _kubectl, kubectl, namespace
from tests.api.definition import CRD
from tests.api.operator.conftest import operator, stage, start_trainer
from tests.api.operator.process import OperatorProcess
from tests.api.operator.test_operator_rights import ACCOUNT, LEASE, SYSTEM, roles
from tests.queues import kueue

__all__ = ["kubectl", "namespace", "operator", "stage", "start_trainer"]

GROUPS = ("system:serviceaccounts", "system:authenticated")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """With our CRD and the chart's roles, Kueue and the garbage collector."""
    directory = tmp_path_factory.mktemp("queues")
    accounts = [pki.Identity(account, GROUPS) for account in (ACCOUNT, kueue.ACCOUNT)]
    with ApiServer(directory / "server", identities=accounts) as server:
        admin = _kubectl(server)
        admin.run("apply", "--server-side", "--filename", str(CRD))
        admin.run("create", "namespace", SYSTEM)
        admin.apply(*roles({}))
        with kueue.running(server, directory / "kueue"):
            yield server


@pytest.fixture
def start_operator(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> Iterator[Callable[[], OperatorProcess]]:
    """The operator with the rights that the chart gives it; at its end it gives its lease back."""
    started: list[OperatorProcess] = []

    def start() -> OperatorProcess:
        process = OperatorProcess(
            api_server,
            namespace,
            tmp_path / "operator.log",
            kubeconfig=api_server.kubeconfig_of(ACCOUNT),
            arguments=[LEASE],
        )
        started.append(process)
        process.wait_ready()
        return process

    yield start
    for process in started:
        process.terminate()
