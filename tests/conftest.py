"""How the tests are shared among processes.

Promise: the tests of a file stay in one process, in their order, so that what a file sets up is set
up once; so do all that need the one cluster. Trap avoided: two tests that install into the same
cluster, or look at the same node, at the same time.
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: the tests of the cluster mostly wait for it."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier, *rest = item.path.relative_to(ROOT).parts
        together = tier if tier == "e2e" else "/".join([tier, *rest])
        item.add_marker(pytest.mark.xdist_group(together))
