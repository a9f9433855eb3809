"""How the tests are shared among processes.

Promise: the tests of a file stay in one process, in their order, so that what a file sets up is set
up once; so do all that need the one cluster. Trap avoided: two tests that install into the same
cluster, or look at the same node, at the same time.
"""

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

CLUSTER = "tests/e2e/"


class TogetherScheduling(LoadScopeScheduling):
    """One file after another to whoever is free; the tests of the cluster as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return CLUSTER if file.startswith(CLUSTER) else file


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than cores: the tests of the cluster mostly wait for it. `logical`: as many."""
    cores = len(os.sched_getaffinity(0))
    return cores if config.option.numprocesses == "logical" else cores + 1


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TogetherScheduling:
    return TogetherScheduling(config, log)
