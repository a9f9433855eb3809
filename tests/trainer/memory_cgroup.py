"""A memory limit of a test's own, as the kubelet gives one to a container."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
REMOVAL_SECONDS_MAX = 10.0


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A cgroup below this process's own; skips the test where none can be made."""
    parent, limit = _parent()
    directory = parent / f"lmtraining-test-{os.getpid()}"
    try:
        directory.mkdir()
        (directory / limit).write_text(str(limit_bytes))
    except OSError as error:
        if directory.exists():
            directory.rmdir()
        pytest.skip(f"no memory cgroup can be made in {parent}: {error}")
    try:
        yield directory
    finally:
        _remove(directory)


def _parent() -> tuple[Path, str]:
    """The memory cgroup of this process, and the name of the file with its limit."""
    own = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {line.split(":", 2)[1]: line.split(":", 2)[2].lstrip("/") for line in own}
    if "memory" in paths:
        below = CGROUPS / "memory" / paths["memory"]
        return (below if below.is_dir() else CGROUPS / "memory"), "memory.limit_in_bytes"
    return CGROUPS / paths.get("", ""), "memory.max"


def _remove(directory: Path) -> None:
    """The kernel lets it go a moment after its last process has."""
    deadline = time.monotonic() + REMOVAL_SECONDS_MAX
    while True:
        try:
            directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
