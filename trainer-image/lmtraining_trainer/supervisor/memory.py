"""Whether the kernel has killed a process of ours for want of memory, and at which limit.

Promise: a kill is put down to memory only where the kernel itself has counted one in our cgroup
since the start; without a cgroup that can be read, nothing is claimed.
Trap avoided: a process that was killed for memory says nothing, and SIGKILL may be from anyone. In
a container our cgroup is the mount itself, while /proc tells its path on the node.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lmtraining_trainer.supervisor.environment import CGROUP_DIRECTORY

OWN_CGROUPS = Path("/proc/self/cgroup")
#: cgroup v1 writes "no limit" as the largest number of whole pages.
UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, kw_only=True)
class MemoryWatch:
    """The kernel's kills in one cgroup, from a moment on."""

    directory: Path | None
    """The cgroup; None where there is none that counts."""
    kills_before: int

    @classmethod
    def begun(cls, mounts: Path = CGROUP_DIRECTORY, own: Path = OWN_CGROUPS) -> Self:
        """From now on, in the cgroup of this process."""
        directory = next((d for d in _candidates(mounts, own) if _kills(d) is not None), None)
        return cls(directory=directory, kills_before=_kills(directory) or 0)

    @property
    def has_killed(self) -> bool:
        """Whether the kernel has killed for memory since."""
        return (_kills(self.directory) or 0) > self.kills_before

    @property
    def limit_bytes(self) -> int | None:
        """The cgroup's limit; None where it has none."""
        if self.directory is None:
            return None
        for name in ("memory.max", "memory.limit_in_bytes"):  # v2, v1
            text = _text(self.directory / name).strip()
            if text.isdigit() and int(text) < UNLIMITED_BYTES:
                return int(text)
        return None


def _candidates(mounts: Path, own: Path) -> Iterator[Path]:
    """Where the memory cgroup of this process may be, the likelier first."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            mount = mounts / "memory" if controllers else mounts
            yield mount / path.lstrip("/")
            yield mount


def _kills(directory: Path | None) -> int | None:
    """Processes that the kernel has killed for memory, of v2 and of v1."""
    if directory is None:
        return None
    for name in ("memory.events", "memory.oom_control"):
        for line in _text(directory / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdigit():
                return int(value)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
