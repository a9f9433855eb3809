"""The environment that torch must find when it is imported.

Promise: ranks share the pod's CPU limit instead of each starting a thread per core of the node, and
their threads sleep while they wait: with spinning barriers, two ranks that compete for a core ran 3
to 4 times slower. What the user has set in the environment stays.
Trap avoided: OpenMP and OpenBLAS read these when they are loaded, so they must be set before the
fork server starts, and a thread that OpenBLAS had started there would be lost in every fork.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

CGROUP_DIRECTORY = Path("/sys/fs/cgroup")


def rank_environment(*, cpus: float, ranks: int) -> dict[str, str]:
    """Variables for `ranks` ranks that share `cpus` cores."""
    threads = max(1, math.floor(cpus / ranks))
    return {
        "OMP_NUM_THREADS": str(threads),  # MKL's is its default, and torch takes over MKL's
        "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool: not used for training
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        # While the lead prepares the data, the other ranks of its pod wait.
        "RAYON_NUM_THREADS": str(max(1, math.floor(cpus))),
        "TOKENIZERS_PARALLELISM": "true",
        # Asking whether there is a CUDA device must not initialise CUDA in the fork server.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        # One line a second while a rank waits for the lead.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # A rank that is killed leaves its semaphores to the tracker, whose job that is.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
    }


def cpu_limit(directory: Path = CGROUP_DIRECTORY) -> float:
    """Cores that this process may use: its affinity, or its cgroup's limit where that is less."""
    return min([float(_affinity()), *_quotas(directory)])


def with_defaults(environment: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """`environment`, completed."""
    return {**defaults, **environment}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(directory: Path) -> list[float]:
    """The limit of cgroup v2 and of v1, as a container sees its own cgroup."""
    v2 = _words(directory / "cpu.max")
    quota = _words(directory / "cpu" / "cpu.cfs_quota_us")
    period = _words(directory / "cpu" / "cpu.cfs_period_us")
    pairs = [v2, [*quota, *period]]
    return [
        int(pair[0]) / int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[1]) > 0
    ]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
