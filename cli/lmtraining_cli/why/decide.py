"""The order in which causes are looked for.

Promise: what the job cannot go on without comes first; of two causes that both hold, the one that
must be mended first is named. What pods and events say comes before the job's own conditions, which
are old while no operator runs.
"""

from collections.abc import Callable

from lmtraining_cli.snapshot import Snapshot
from lmtraining_cli.why import ended, intent, obstacles, placement, training, volumes
from lmtraining_cli.why.finding import Finding

_QUESTIONS: tuple[Callable[[Snapshot], Finding | None], ...] = (
    intent.being_deleted,
    ended.ended,
    intent.not_seen,
    intent.paused,
    intent.not_accepted,
    intent.suspended,
    obstacles.refused,
    obstacles.gated,
    obstacles.image,
    obstacles.container,
    volumes.claim,
    volumes.mount,
    placement.unschedulable,
    volumes.silent_claim,
    training.node_lost,
    training.backoff,
    training.unreachable,
    training.stalled,
    obstacles.starting,
    training.recovering,
    training.preparing,
    intent.not_followed,
    training.unstable,
    training.straggler,
    training.storage_trouble,
    training.slow,
    training.notice,
)


def why(snapshot: Snapshot) -> Finding:
    """The cause of what a person sees."""
    for question in _QUESTIONS:
        found = question(snapshot)
        if found is not None:
            return found
    return training.all_well(snapshot)
