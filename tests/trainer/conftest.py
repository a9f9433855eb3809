"""Fixtures of the trainer's tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtraining_api import ExitCode
from tests.trainer.supervisor_gangs import UNDISTURBED_STEPS, Tensors, exported, gang_of_two, start
from tests.trainer.supervisor_pods import pods
from tests.trainer.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run in nohup
    try:
        yield Terminal(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """What two pods end with that nothing happens to."""
    gang = gang_of_two(tmp_path_factory.mktemp("undisturbed"), budget={"steps": UNDISTURBED_STEPS})
    with pods(*gang):
        start(*gang)
        assert [pod.wait() for pod in gang] == [ExitCode.FINISHED] * 2
    return exported(gang[0])
