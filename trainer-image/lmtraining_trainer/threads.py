"""How many threads a rank may use.

Promise: the ranks that share a container's CPU limit divide it, so that none of them spins while
another waits for a core.
Trap avoided: torch counts the node's cores, not the container's; 64 threads on 2 cores are several
times slower than 2.
"""

import os
import socket
from pathlib import Path

import torch

from lmtraining_trainer.gang import Gang

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


def share_cores(gang: Gang) -> int:
    """Give this rank its share of the cores; returns its number of threads.

    Ranks with one host name share one limit: the containers of a pod have the pod's name.
    """
    hosts = gang.gather(socket.gethostname().encode())
    threads = max(1, cpu_limit() // hosts.count(hosts[gang.rank]))
    torch.set_num_threads(threads)
    return threads


def cpu_limit() -> int:
    """Cores that this container may use, at least 1."""
    cores = len(os.sched_getaffinity(0))
    quota = cgroup_quota(CGROUP_ROOT, PROC_CGROUP)
    return max(1, min(cores, int(quota)) if quota else cores)


def cgroup_quota(root: Path, proc: Path) -> float | None:
    """Cores by the cgroup's quota (v2, else v1), or None where there is none.

    In a container the root of the mount is its own cgroup; outside, the path in `proc` leads there.
    """
    own = [""]
    for line in _lines(proc):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):  # "" is version 2
            own.append(path.lstrip("/"))
    quotas = [quota for path in own if (quota := _quota_at(root, path)) is not None]
    return min(quotas, default=None)


def _quota_at(root: Path, path: str) -> float | None:
    version_2 = _words(root / path / "cpu.max")
    if len(version_2) == 2:
        return None if version_2[0] == "max" else int(version_2[0]) / int(version_2[1])
    directory = root / "cpu" / path
    quota, period = _words(directory / "cpu.cfs_quota_us"), _words(directory / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line]
    except OSError:
        return []
