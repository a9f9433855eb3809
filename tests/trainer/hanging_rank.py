"""A real rank that hangs, in each round in the phase and the way that the environment names."""

import os
import signal
from dataclasses import dataclass, field

from lmtraining_api import JobFile, State, Wishes
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank import run_rank
from lmtraining_trainer.rank_link import RankLink, RankPlace

HANGS = "tests.trainer.hanging_rank:hangs"
ENV_PLAN = "TEST_HANGS"
"""phase:how of each round, parted by commas; how is stopped or spinning."""
STEPS_BEFORE = 20
VICTIM = 1


def hangs(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """A life that hangs in the rounds of the plan, and in no later one."""
    plan = os.environ[ENV_PLAN].split(",")
    if place.rank == VICTIM and place.round <= len(plan):
        phase, _, how = plan[place.round - 1].partition(":")
        link = HangingLink(link=link, phase=phase, how=how)
    run_rank(job, place, link)


@dataclass
class HangingLink:
    """A `RankLink` whose rank enters the phase and does not come out of it."""

    link: RankLink
    phase: str
    how: str
    steps: set[object] = field(default_factory=set)

    def say(self, state: State, **fields: object) -> None:
        if state == "Training" and "step" in fields:
            self.steps.add(fields["step"])
        self.link.say(state, **fields)

    def enter(self, phase: Phase) -> None:
        self.link.enter(phase)
        if phase != self.phase or len(self.steps) < STEPS_BEFORE:
            return
        if self.how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:  # it answers signals, and looks busy
            pass

    def stop_requested(self) -> bool:
        return self.link.stop_requested()

    def wishes(self) -> Wishes | None:
        return self.link.wishes()
