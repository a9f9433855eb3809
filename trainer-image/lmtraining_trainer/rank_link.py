"""What a rank is told, and how it speaks to its supervisor.

Promise: a rank knows nothing of pods, HTTP or Kubernetes. It is given its place, says what it does
through `RankLink`, and is asked to stop through the same. Rank 0's words become the report.
Trap avoided: a signal handler that does anything but set a flag.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from lmtraining_api import State, Wishes
from lmtraining_trainer.phase import Phase


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank stands in the gang."""

    rank: int
    world_size: int
    local_rank: int
    """Index within its pod, and of its device."""
    replica: int
    """Index of its pod."""
    attempt: int
    round: int
    lead_address: str
    """Where rank 0 serves the rendezvous store."""
    rendezvous_port: int
    pod_name: str = ""
    gang: str = ""
    """Digest of the pods that meet; a rank of another gang is never met."""

    @property
    def is_lead(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class RankUpdate:
    """One thing a rank says. `fields` are fields of `TrainerReport`, by their Python names."""

    rank: int
    state: State
    fields: dict[str, Any]


class RankLink(Protocol):
    """The rank's side of the line to its supervisor."""

    def say(self, state: State, **fields: object) -> None:
        """Report a state and any fields of `TrainerReport`. Cheap; also the rank's heartbeat."""

    def enter(self, phase: Phase) -> None:
        """Turn to another kind of work. A heartbeat too, of about a microsecond."""

    def stop_requested(self) -> bool:
        """True once this rank was asked to save and stop. Ranks may see it at different steps, so
        they must agree before they act."""

    def wishes(self) -> Wishes | None:
        """What is wanted beyond training on, where anybody has said; the same object until it
        changes. Asked of rank 0 alone."""
