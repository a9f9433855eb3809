"""The rank that `bench.recovery` kills: under our supervisor or under torchrun, the same training.

Promise: it trains as any rank does; beside that it leaves its process number, and rank 0 the time
of the first step of its round with what it took to load, and word that it has trained for a while.
Trap avoided: another script for the other launcher, which would compare two trainings.
"""

import argparse
import os
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bench.checkpoint import Silence
from lmtraining_api import JobFile, State, Wishes
from lmtraining_trainer.files import write_json
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank import run_rank
from lmtraining_trainer.rank_link import RankLink, RankPlace
from lmtraining_trainer.supervisor.fork_server import LIBRARIES

STEPS_BETWEEN_STRIKES = 20

for library in LIBRARIES:  # as the product's fork server has them
    import_module(library)


@dataclass
class Marking:
    """A `RankLink` that leaves marks."""

    marks: Path
    place: RankPlace
    link: RankLink
    load_seconds: float = 0.0
    steps: int = 0

    def say(self, state: State, **fields: object) -> None:
        self.link.say(state, **fields)
        if isinstance(seconds := fields.get("load_seconds"), float):
            self.load_seconds = seconds
        if "first_step_time" in fields:  # with each step of rank 0
            self.steps += 1
            if self.steps == 1:
                self._leave("stepped", time=time.time(), load_seconds=self.load_seconds)
            if self.steps == STEPS_BETWEEN_STRIKES:
                self._leave("trained")

    def enter(self, phase: Phase) -> None:
        self.link.enter(phase)

    def stop_requested(self) -> bool:
        return self.link.stop_requested()

    def wishes(self) -> Wishes | None:
        return self.link.wishes()

    def _leave(self, what: str, **fields: float) -> None:
        write_json(self.marks / f"{what}-{self.place.round}.json", fields)


def run(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """The rank function of our supervisor."""
    marks = Path(job.run_directory).parent / "marks"
    write_json(marks / f"rank-{place.rank}-{place.round}.json", {"process": os.getpid()})
    run_rank(job, place, Marking(marks, place, link))


def main() -> None:
    """Under torchrun, on one node."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job_file", type=Path)
    parser.add_argument("rendezvous_port", type=int)
    arguments = parser.parse_args()
    rank = int(os.environ["RANK"])
    place = RankPlace(
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=rank,
        replica=0,
        attempt=1,
        round=int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1,
        lead_address="127.0.0.1",
        rendezvous_port=arguments.rendezvous_port,
    )
    job = JobFile.model_validate_json(arguments.job_file.read_bytes())
    run(job, place, Silence())


if __name__ == "__main__":
    main()
