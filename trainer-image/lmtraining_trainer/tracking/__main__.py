"""`python -m lmtraining_trainer.tracking`: the process that tells a job's tracker.

Promise: it looks at the history of the run again and again, so an outage loses nothing, and holds
nothing itself that a kill could lose. On its standard input are the job file in one line and, when
the run has ended, how; where the supervisor dies, its end.
Trap avoided: this runs beside the training, so it waits for its tracker at a lower priority and
asks a silent one ever more rarely.
"""

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lmtraining_api import JobFile, names
from lmtraining_api.history import HISTORY_FILE, RunHistory
from lmtraining_trainer.mounted_secret import options_in
from lmtraining_trainer.tracking.mlflow import MlflowRun, Status
from lmtraining_trainer.tracking.server import Server, TrackerError

LOOK_SECONDS = 5.0
OUTAGE_SECONDS_MAX = 60.0
NICENESS = 10

logger = logging.getLogger(__name__)


@dataclass
class Telling:
    """One tracker, told again and again."""

    run: MlflowRun
    directory: Path
    clock: Callable[[], float] = time.monotonic
    _fails: int = 0
    _quiet_until: float = float("-inf")

    def look(self, status: Status, *, is_last: bool = False) -> bool:
        """Tell what is new, unless the tracker is out; whether all is told."""
        if self.clock() < self._quiet_until and not is_last:
            return False
        try:
            if not is_last:
                self.run.turn(status)
            history = self._history()
            told = self.run.follow(history) if history else 0
            if is_last:
                self.run.turn(status)
        except TrackerError as error:
            self._failed(error)
            return False
        if self._fails:
            logger.info("tracking.mlflow answers again: %d steps were told", told)
        self._fails = 0
        return True

    def _history(self) -> RunHistory | None:
        try:
            return RunHistory.model_validate_json((self.directory / HISTORY_FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def _failed(self, error: TrackerError) -> None:
        if not self._fails:
            logger.warning("tracking.mlflow.uri: %s: the training goes on, trying again", error)
        self._fails += 1
        wait = min(OUTAGE_SECONDS_MAX, LOOK_SECONDS * 2**self._fails)
        self._quiet_until = self.clock() + wait


def run_of(job: JobFile, credentials: Path) -> MlflowRun | None:
    """What the job's tracker is, or None where it has none. Raises OSError."""
    tracker = job.spec.tracking.mlflow
    if tracker is None:
        return None
    secret = tracker.credentials
    options = options_in(credentials / secret.secret_ref.name) if secret else {}
    server = Server(uri=tracker.uri, secret=options)
    return MlflowRun(server=server, job=job, experiment=tracker.experiment)


def main() -> None:
    """Until standard input ends."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(NICENESS)
    job = JobFile.model_validate_json(sys.stdin.buffer.readline())
    try:
        run = run_of(job, Path(names.CREDENTIALS_DIRECTORY))
    except OSError as error:
        logger.warning("tracking.mlflow.credentials: not readable (%s)", type(error).__name__)
        return
    if run is None:
        return
    telling = Telling(run=run, directory=Path(job.run_directory))
    while not (last := _last_word(LOOK_SECONDS)):
        telling.look("RUNNING")
    telling.look(last, is_last=True)


def _last_word(seconds: float) -> Status | None:
    """How the run has ended, once it has; a supervisor that says nothing will come again."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return None
    said = sys.stdin.buffer.readline().decode().strip()
    return next((status for status in get_args(Status) if status == said), "SCHEDULED")


if __name__ == "__main__":
    main()
