"""`python -m lmtraining_trainer.tracking mlflow`: the process that tells one tracker of a job.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from lmtraining_api import BEGUN, JobFile, names
from lmtraining_api.history import HISTORY_FILE, RunHistory
from lmtraining_api.job import MlflowTracking, WandbTracking
from lmtraining_trainer.mounted_secret import options_in
from lmtraining_trainer.tracking.mlflow import MlflowRun
from lmtraining_trainer.tracking.run import Status, TrackedRun
from lmtraining_trainer.tracking.server import Server, TrackerError

LOOK_SECONDS = 5.0
OUTAGE_SECONDS_MAX = 60.0
NICENESS = 10

logger = logging.getLogger(__name__)


@dataclass
class Telling:
    """One tracker, told again and again."""

    name: str
    """Its field in spec.tracking."""
    run: TrackedRun
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
            logger.info("tracking.%s answers again: %d steps were told", self.name, told)
        self._fails = 0
        return True

    def _history(self) -> RunHistory | None:
        try:
            return RunHistory.model_validate_json((self.directory / HISTORY_FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def _failed(self, error: TrackerError) -> None:
        if not self._fails:
            words = "tracking.%s.uri: %s: the training goes on, trying again"
            logger.warning(words, self.name, error)
        self._fails += 1
        wait = min(OUTAGE_SECONDS_MAX, LOOK_SECONDS * 2**self._fails)
        self._quiet_until = self.clock() + wait


def mlflow_run(job: JobFile, tracker: MlflowTracking, secret: Mapping[str, str]) -> TrackedRun:
    """That of an MLflow server."""
    server = Server(uri=tracker.uri, secret=secret)
    return MlflowRun(server=server, job=job, experiment=tracker.experiment)


def wandb_run(job: JobFile, tracker: WandbTracking, secret: Mapping[str, str]) -> TrackedRun:
    """That of Weights & Biases. Raises ImportError where the image is without its client."""
    from lmtraining_trainer.tracking.wandb import WandbRun  # noqa: PLC0415 - not in every image

    return WandbRun(job=job, tracker=tracker, secret=secret)


def run_of(name: str, job: JobFile, credentials: Path) -> TrackedRun | None:
    """The run of that tracker of the job, or None where it cannot be told of anything."""
    tracker = getattr(job.spec.tracking, name)
    secret = tracker.credentials
    try:
        options = options_in(credentials / secret.secret_ref.name) if secret else {}
        return RUNS[name](job, tracker, options)
    except OSError as error:
        words = "tracking.%s.credentials: not readable (%s): the training goes on"
        logger.warning(words, name, type(error).__name__)
    except ImportError as error:
        words = (
            "tracking.%s: this trainer image is without the package %s: build one that has it "
            "(docs/tracking.md) and name it in workers.image: the training goes on"
        )
        logger.warning(words, name, error.name)
    return None


RUNS: Final[Mapping[str, Callable[[JobFile, Any, Mapping[str, str]], TrackedRun]]] = {
    "mlflow": mlflow_run,
    "wandb": wandb_run,
}


def main() -> None:
    """Until standard input ends."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(NICENESS)
    name = sys.argv[1]
    job = JobFile.model_validate_json(sys.stdin.buffer.readline(), context=BEGUN)
    run = run_of(name, job, Path(names.CREDENTIALS_DIRECTORY))
    if run is None:
        return
    telling = Telling(name=name, run=run, directory=Path(job.run_directory))
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
