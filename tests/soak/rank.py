"""A rank of the kill storm: trains as any rank does, and can be held at a chosen instant.

Promise: rank 0 counts what it says and each name that it opens, makes, renames or removes in its
run directory, by phase; at the instant that the plan asks for it waits until it is released, in
whatever thread or child process it is then. So a kill can be put between any two acts of a save.
Trap avoided: kills by the clock alone hardly ever hit a save of a few milliseconds.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lmtraining_api import JobFile, State, Wishes
from lmtraining_trainer.files import write_json
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank import run_rank
from lmtraining_trainer.rank_link import RankLink, RankPlace
from lmtraining_trainer.supervisor.fork_server import LIBRARIES
from tests.trainer.rank_support import Injection, _inject

for library in LIBRARIES:  # as the product's fork server has them
    import_module(library)

POLL_SECONDS = 0.001
FILE_EVENTS = frozenset(
    {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir"}
)
#: The rank whose gradients the bad batches spoil: not the one that keeps the journal.
SPOILED_RANK = 1


def storm_directory(run_directory: Path) -> Path:
    """What the storm and its ranks have to tell each other."""
    return run_directory.parent / "storm"


def run(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """The rank function."""
    storm = storm_directory(Path(job.run_directory))
    plan = json.loads((storm / "plan.json").read_text())
    life = {"rank": os.getpid(), "fork server": os.getppid(), "gang": [place.attempt, place.round]}
    write_json(storm / f"life-{place.rank}.json", life)
    if place.rank == SPOILED_RANK:
        _inject(tuple(Injection(position=at, what="nan") for at in plan["bad_positions"]))
    if not place.is_lead:
        run_rank(job, place, link)
        return
    instants = Instants(storm, plan, place, link)
    sys.addaudithook(instants.hook(Path(job.run_directory)))
    run_rank(job, place, instants)


@dataclass
class Instants:
    """A `RankLink` that counts instants by phase and stops at the one that was asked for."""

    storm: Path
    plan: dict[str, Any]
    place: RankPlace
    link: RankLink
    phase: str = "Starting"
    step: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    has_stepped: bool = False
    is_armed: bool = True

    def say(self, state: State, **fields: object) -> None:
        self.link.say(state, **fields)
        if "first_step_time" in fields and not self.has_stepped:
            self.has_stepped = True
            path = self.storm / f"stepped-{self.place.attempt}-{self.place.round}"
            path.write_text(str(time.time()))
        step = fields.get("step")
        self.step = step if isinstance(step, int) else self.step
        self.phase = "Rewinding" if state == "Loading" and self.has_stepped else state
        self._count(self.phase)

    def enter(self, phase: Phase) -> None:
        self.link.enter(phase)

    def stop_requested(self) -> bool:
        return self.link.stop_requested()

    def wishes(self) -> Wishes | None:
        return self.link.wishes()

    def hook(self, run_directory: Path) -> Callable[[str, tuple[Any, ...]], None]:
        """For `sys.addaudithook`."""
        inside, checkpoints = f"{run_directory}/", f"{run_directory}/checkpoints"

        def heard(event: str, arguments: tuple[Any, ...]) -> None:
            if not self.is_armed or event not in FILE_EVENTS:
                return
            path = str(arguments[0])
            within_a_tree = event in {"os.remove", "os.rmdir"} and not path.startswith("/")
            if path.startswith(inside) or within_a_tree:
                saves = self.phase == "Training" and path.startswith(checkpoints)
                self._count("Checkpointing" if saves else self.phase)

        return heard

    def _count(self, phase: str) -> None:
        self.counts[phase] += 1
        if self.is_armed and self.counts[phase] == self.plan["instants"].get(phase):
            self.is_armed = False
            self._hold(phase)

    def _hold(self, phase: str) -> None:
        number, place = self.plan["number"], self.place
        held = {
            "phase": phase,
            "step": self.step,
            "attempt": place.attempt,
            "round": place.round,
        }
        write_json(self.storm / f"held-{number}.json", held)
        while not (self.storm / f"released-{number}").exists():
            time.sleep(POLL_SECONDS)
