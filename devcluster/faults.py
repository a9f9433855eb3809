"""Faults that a test or a curious person can cause.

Promise: the fault is the real one; a killed supervisor gets no chance to save. Trap avoided: a
`kubectl delete --force` still sends SIGTERM first, and a trainer that is quick saves a checkpoint:
that is a preemption, not a crash.
"""

import os
import signal
from pathlib import Path

from devcluster.errors import DevclusterError
from lmtraining_api.names import ENV_POD_NAME


def kill_supervisor(pod: str) -> None:
    """SIGKILL the first process of a trainer pod of this machine (needs root, native or kind)."""
    os.kill(_supervisor(pod), signal.SIGKILL)


def kill_rank(pod: str) -> None:
    """SIGKILL a rank of a trainer pod of this machine: a child of the fork server, which is a child
    of the supervisor."""
    ranks = [rank for server in _children(_supervisor(pod)) for rank in _children(server)]
    if not ranks:
        raise DevclusterError(f"pod {pod} has no rank: has its training begun?")
    os.kill(ranks[0], signal.SIGKILL)


def _supervisor(pod: str) -> int:
    marker = f"{ENV_POD_NAME}={pod}".encode()
    firsts = (pid for pid in _processes() if marker in _environment(pid).split(b"\0"))
    first = next(filter(_is_first_of_its_namespace, firsts), None)
    if first is None:
        raise DevclusterError(f"pod {pod} has no process here: does it run, and are you root?")
    return first


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_first_of_its_namespace(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in lines)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
