"""From the silence of a rank to the end of the one that hangs.

Promise: a rank is looked at within `TOGETHER_SECONDS` and a turn of the supervisor's loop after its
limit; one is blamed at a time, with the evidence of all kept first.
Trap avoided: limits differ by phase, so a rank that only waits may be late long before the one it
waits for. It is left alone until all ranks of its pod are late, and for a while longer where the
cause may be in another pod, whose supervisor then ends it.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from lmtraining_trainer.phase import PhaseReader, Sign
from lmtraining_trainer.supervisor.assignment import Assignment
from lmtraining_trainer.supervisor.evidence import Evidence, evidence_of, phases_file
from lmtraining_trainer.supervisor.failure import RankEnd
from lmtraining_trainer.supervisor.hangs import keep
from lmtraining_trainer.supervisor.silence import (
    WAITING_PATIENCE_SECONDS,
    culprit,
    end_of_silence,
    limit_seconds,
    seconds_left,
    where_each_was,
)

TOGETHER_SECONDS = 0.5
"""Ranks that fall silent because of one fall silent within this of each other."""
LOOK_AGAIN_SECONDS = 10.0
"""Between two looks at the same late ranks, which wait for others."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen when some ranks were late."""

    time: float
    late: tuple[int, ...]
    evidence: Evidence


class HangWatch:
    """The signs of life of the ranks of one pod. `signs` may be called from any thread."""

    def __init__(self, assignment: Assignment, scratch: Path) -> None:
        self._assignment = assignment
        self._scratch = scratch
        self._limit_min_seconds = float(assignment.job.spec.stability.silence_seconds)
        self._readers: Mapping[int, PhaseReader] = {}
        self._keeper: Thread | None = None
        """Writes what was found of a hang."""
        self._left_alone: frozenset[int] = frozenset()
        """Late ranks that were not blamed when they were looked at."""
        self._look_again_at = 0.0

    def begin_round(self, ranks: Iterable[int]) -> None:
        """Before these ranks start."""
        now = time.monotonic()
        self._readers = {
            rank: PhaseReader(phases_file(self._scratch, rank), now=now) for rank in ranks
        }
        self._left_alone = frozenset()

    def signs(self) -> dict[int, Sign]:
        """Of every rank of this round."""
        return {rank: reader.sign() for rank, reader in self._readers.items()}

    def seconds_left(self) -> float:
        """Until there may be something to look at."""
        now = time.monotonic()
        left = [*self._left(now).values(), self._look_again_at - now]
        return min((seconds for seconds in left if seconds > 0.0), default=float("inf"))

    def look(self, processes: Mapping[int, int], *, round_number: int) -> Look | None:
        """What there is to be seen of these living ranks, by number, with their process ids; None
        while none is late."""
        now = time.monotonic()
        left = {rank: seconds for rank, seconds in self._left(now).items() if rank in processes}
        late = frozenset(rank for rank, seconds in left.items() if seconds < 0.0)
        if not late:
            self._left_alone = frozenset()
            return None
        if any(0.0 <= seconds < TOGETHER_SECONDS for seconds in left.values()):
            return None
        if late == self._left_alone and now < self._look_again_at:
            return None
        logger.warning("no sign of life for too long: rank %s", ", ".join(map(str, sorted(late))))
        evidence = evidence_of(self._scratch, processes)
        self._keep(evidence, round_number)
        return Look(time=now, late=tuple(sorted(late)), evidence=evidence)

    def verdict(self, look: Look, living: Iterable[int]) -> RankEnd | None:
        """The end of the rank that hangs, of those that were late and are so still; None where they
        wait for ranks that may yet be found."""
        now, signs, found = time.monotonic(), self.signs(), look.evidence.stacks
        left, alive = self._left(now), frozenset(living)
        late = [rank for rank in look.late if rank in alive and left[rank] < 0.0]
        if not late:
            return None
        late.sort(key=lambda rank: signs[rank].at)
        rank, waits = culprit(late, signs, found)
        limit = self._limit(signs[rank])
        age = look.time - signs[rank].at
        if waits and self._may_be_elsewhere(age, limit, is_last=alive <= frozenset(late)):
            self._left_alone = frozenset(look.late)
            self._look_again_at = now + LOOK_AGAIN_SECONDS
            return None
        for number, text in sorted(found.items()):
            logger.error("stack of rank %d, newest call first:\n%s", number, text)
        return end_of_silence(
            rank,
            seconds=age,
            limit=limit,
            ranks=where_each_was({rank: signs[rank] for rank in alive}, found, now=look.time),
            stack=found.get(rank, ""),
            now=now,
        )

    def _may_be_elsewhere(self, age: float, limit: float, *, is_last: bool) -> bool:
        """Whether the rank that is waited for may be another than a late one of this pod."""
        if not is_last:
            return True
        has_other_pods = self._assignment.job.spec.workers.replicas > 1
        return has_other_pods and age < 2 * limit + WAITING_PATIENCE_SECONDS

    def _left(self, now: float) -> dict[int, float]:
        return {
            rank: seconds_left(sign, limit_min_seconds=self._limit_min_seconds, now=now)
            for rank, sign in self.signs().items()
        }

    def _limit(self, sign: Sign) -> float:
        return limit_seconds(sign, limit_min_seconds=self._limit_min_seconds)

    def _keep(self, evidence: Evidence, round_number: int) -> None:
        if self._keeper is not None and self._keeper.is_alive():
            return  # the storage hangs
        given = self._assignment
        self._keeper = keep(
            evidence.files,
            Path(given.job.run_directory),
            job_uid=given.job.job_uid,
            attempt=given.identity.attempt,
            round_number=round_number,
        )
