"""A real rank that hangs in the phase that the environment names, once it has made some steps."""

import os
import signal

from lmtraining_api import JobFile, State
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank import run_rank
from lmtraining_trainer.rank_link import RankLink, RankPlace

HANGS = "tests.trainer.hanging_rank:hangs"
ENV_PHASE = "TEST_HANG_PHASE"
ENV_HOW = "TEST_HANG_HOW"
STEPS_BEFORE = 20
VICTIM = 1


def hangs(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """A life that hangs in round 1, and not again."""
    is_victim = place.rank == VICTIM and place.round == 1
    run_rank(job, place, HangingLink(link) if is_victim else link)


class HangingLink:
    """A `RankLink` whose rank enters the phase and does not come out of it."""

    def __init__(self, link: RankLink) -> None:
        self._link = link
        self._step = 0

    def say(self, state: State, **fields: object) -> None:
        step = fields.get("step")
        self._step = step if isinstance(step, int) else self._step
        self._link.say(state, **fields)

    def enter(self, phase: Phase) -> None:
        self._link.enter(phase)
        if phase == os.environ[ENV_PHASE] and self._step >= STEPS_BEFORE:
            if os.environ[ENV_HOW] == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            while True:  # answers signals, and looks busy
                pass

    def stop_requested(self) -> bool:
        return self._link.stop_requested()
