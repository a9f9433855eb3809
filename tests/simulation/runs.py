"""What is true of nodes, containers, rounds and run directories.

Promise: values, and nothing that acts on them; the API server shows less of it, and later.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Place:
    """A node, as far as its pods can reach others."""

    name: str
    is_cut_off: bool = False
    is_removed: bool = False
    is_off: bool = False
    """Whether it is cut off because nothing runs on it."""
    is_broken: bool = False
    """Whether a device of it fails whoever uses it, as it says itself."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    message: str
    reason: str
    time: float


@dataclass(eq=False)
class Container:
    """A supervisor with its ranks: the truth about a pod."""

    uid: str
    name: str
    job_uid: str
    attempt: int
    replica: int
    node: Place
    address: str
    replicas: int
    on_end: Callable[["Container"], None]
    table: frozenset[str] = frozenset()
    """UIDs of the pods in the newest peer table it has read."""
    gang: "Gang | None" = None
    digest: str = ""
    """Of the gang of its newest round."""
    is_writing: bool = False
    """Whether its ranks may write to the run directory."""
    is_stopping: bool = False
    was_orphaned: bool = False
    """Somebody outside took its pod from the API server by force while it ran."""
    ended: Ended | None = None
    alone_since: float = 0.0

    @property
    def is_running(self) -> bool:
        return self.ended is None

    @property
    def is_armed(self) -> bool:
        return len(self.table) == self.replicas


@dataclass(eq=False)
class Gang:
    """One round: containers that train together."""

    members: list[Container]
    round: int
    resumed_from: int
    digest: str
    fault: dict[str, Any] | None = None
    state: str = "Starting"
    first_step_time: float | None = None
    step_time: float | None = None
    replayed: int = 0


@dataclass(eq=False)
class Run:
    """The run directory of one job UID, and who trains in it."""

    uid: str
    steps: int
    step: int = 0
    highest: int = 0
    saved: int = 0
    saved_time: float = 0.0
    finished: bool = False
    round: int = 0
    attempt: int = 0
    gang: Gang | None = None
    stepped: set[tuple[int, str]] = field(default_factory=set)
    """Attempt and digest of every gang that has made a step."""
