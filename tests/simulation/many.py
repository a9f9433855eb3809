"""Many schedules, in several processes, and what they have shown.

python -m tests.simulation --schedules 50000
python -m tests.simulation --seed 477
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tests.simulation.faults import KINDS
from tests.simulation.life import draw, live, minimised
from tests.simulation.world import PHASES

SCHEDULES_PER_JOB = 50
PROCESSES_MAX = 2
FAILURES_MAX = 5
"""After so many nothing new is learnt."""


@dataclass
class Tally:
    """The sum of many lives."""

    lives: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each fault has struck in each phase."""
    looks_max: int = 0
    """Passes on a fresh view from the last fault to rest, in the longest of the lives."""
    replaced: int = 0
    """Pods that were replaced alone in the last attempts: lives without one prove nothing of it."""
    failing: list[int] = field(default_factory=list)
    """Seeds."""
    seconds: float = 0.0

    def add(self, other: "Tally") -> None:
        self.lives += other.lives
        self.pairs.update(other.pairs)
        self.looks_max = max(self.looks_max, other.looks_max)
        self.replaced += other.replaced
        self.failing += other.failing

    def missing(self) -> list[tuple[str, str]]:
        """Faults that have not struck in a phase in which they can."""
        every = ((kind, phase) for kind in sorted(KINDS) for phase in PHASES)
        return [
            pair for pair in every if pair[1] not in KINDS[pair[0]].never and not self.pairs[pair]
        ]

    def summary(self) -> str:
        rate = self.lives / self.seconds if self.seconds else 0.0
        return (
            f"{self.lives} schedules in {self.seconds:.1f} s ({rate:.0f}/s), "
            f"{sum(self.pairs.values())} faults, {self.replaced} replaced pods, at most "
            f"{self.looks_max} looks from the last fault to rest"
        )


def tally(seeds: Iterable[int]) -> Tally:
    """Live them one after the other."""
    done = Tally()
    for seed in seeds:
        life = live(draw(seed))
        done.lives += 1
        done.pairs.update(pair for pair in life.fired if pair[1] in PHASES)
        done.replaced += life.outcome["replaced"]
        done.looks_max = max(done.looks_max, life.looks_to_rest)
        if life.violations:
            done.failing.append(seed)
    return done


def tally_all(first: int, count: int) -> Tally:
    """The same on all cores, up to PROCESSES_MAX."""
    began = time.monotonic()
    jobs = [
        range(start, min(start + SCHEDULES_PER_JOB, first + count))
        for start in range(first, first + count, SCHEDULES_PER_JOB)
    ]
    done = Tally()
    with ProcessPoolExecutor(min(PROCESSES_MAX, os.cpu_count() or 1)) as pool:
        for one in pool.map(tally, jobs):
            done.add(one)
            if len(done.failing) >= FAILURES_MAX:
                pool.shutdown(cancel_futures=True)
                break
    done.seconds = time.monotonic() - began
    return done


def coverage(pairs: Counter[tuple[str, str]]) -> Table:
    """How often each fault has struck in each phase; a dash where it cannot."""
    table = Table("fault", *PHASES, title="faults by the phase in which they struck")
    for kind in sorted(KINDS):
        cells = [
            "-"
            if phase in KINDS[kind].never and not pairs[kind, phase]
            else str(pairs[kind, phase])
            for phase in PHASES
        ]
        table.add_row(kind, *cells)
    return table


def story_of(seed: int) -> str:
    """Why it fails, with as few faults as will do."""
    return minimised(draw(seed)).told()


def main() -> None:
    """Live many schedules, or one and tell it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="tell the life of this seed")
    wanted = parser.parse_args()
    console = Console(width=140)
    if wanted.seed is not None:
        life = live(draw(wanted.seed))
        told = story_of(wanted.seed) if life.violations else life.told()
        console.print(told, markup=False, highlight=False)
        sys.exit(1 if life.violations else 0)
    done = tally_all(wanted.first, wanted.schedules)
    console.print(coverage(done.pairs))
    console.print(done.summary(), highlight=False)
    for seed in done.failing:
        console.print(story_of(seed), markup=False, highlight=False)
    sys.exit(1 if done.failing else 0)
