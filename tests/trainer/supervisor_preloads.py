"""What goes wrong while the fork server imports: this module, told by the environment."""

import os
import signal

from lmtraining_api import JobFile
from lmtraining_trainer.rank_link import RankLink, RankPlace

FAULT = "LMTRAINING_TEST_FAULT"


def never(job: JobFile, place: RankPlace, link: RankLink) -> None:
    """No rank comes as far as this."""


match os.environ.get(FAULT):
    case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    case "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    case "eats":
        eaten = [b"x" * 2**20 for _ in range(4096)]
