"""The real operator against a real API server on which the test plays the kubelet.

The addresses that the test gives to pods are of this machine, where it answers /report itself.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devcluster.apiserver import ApiServer
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage
from tests.api.operator.trainer import Trainer

_networks = itertools.count(10)


@pytest.fixture
def stage(api_server: ApiServer, namespace: str) -> Iterator[Stage]:
    made = Stage(api_server, namespace, next(_networks))
    yield made
    made.close()


@pytest.fixture
def start_operator(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> Iterator[Callable[[], OperatorProcess]]:
    started: list[OperatorProcess] = []

    def start() -> OperatorProcess:
        process = OperatorProcess(api_server, namespace, tmp_path / "operator.log")
        started.append(process)
        process.wait_ready()
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def operator(start_operator: Callable[[], OperatorProcess]) -> OperatorProcess:
    return start_operator()


@pytest.fixture
def start_trainer(stage: Stage) -> Iterator[Callable[..., Trainer]]:
    started: list[Trainer] = []

    def start(name: str, attempt: int = 1) -> Trainer:
        """The lead of an attempt answers from now on, instead of that of an earlier one."""
        for earlier in started:
            earlier.close()
        started.clear()
        uid = stage.job(name)["metadata"]["uid"]
        started.append(Trainer(stage.address(0), uid, attempt))
        return started[-1]

    yield start
    for trainer in started:
        trainer.close()


@pytest.fixture
def figures(
    record_testsuite_property: Callable[[str, object], None],
) -> Callable[[str, object], None]:
    """Keeps a measured figure in the report of the run (`pytest --junit-xml`)."""
    return record_testsuite_property
