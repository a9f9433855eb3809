"""From the intent to rank 0: what may change while the ranks train.

Promise: what the newest intent wants lies whole in a file that rank 0 can read at any moment.
Trap avoided: a pipe to a rank that is busy fills up; of a wish only the newest counts. A wish that
cannot be written down is no reason to end a gang that trains.
"""

from pathlib import Path

from lmtraining_api import Wishes
from lmtraining_trainer.supervisor.assignment import WISHES_FILE, Assignment
from lmtraining_trainer.supervisor.intent import wishes_of

LOOK_SECONDS = 0.2
"""Between two looks at the intent."""


class WishPost:
    """On the lead pod."""

    def __init__(self, assignment: Assignment, scratch: Path) -> None:
        self._assignment = assignment
        self._path = scratch / WISHES_FILE
        self._wishes: Wishes | None = None
        self._looked_at = float("-inf")

    def pass_on(self, now: float) -> None:
        """Write down what is wanted, where it is something else than before."""
        given = self._assignment
        if not given.leads or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        found = wishes_of(given.read_intent(), identity=given.identity, job=given.job)
        if found is None or found == self._wishes:
            return
        beside = self._path.with_suffix(".new")
        try:
            beside.write_text(found.model_dump_json())
            beside.rename(self._path)
        except OSError:
            return  # the scratch space is full, say; tried again at the next look
        self._wishes = found
