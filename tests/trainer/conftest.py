"""Fixtures of the trainer's tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run in nohup
    try:
        yield Terminal(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
