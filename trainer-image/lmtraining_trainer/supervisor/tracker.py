"""The process that tells a job's tracker, as the supervisor of the lead pod sees it.

Promise: the training neither waits for it nor ends with it, and a recovery is not held up by it. At
the end of a finished run it has a limited time for its last words; what it could not tell by then
is in the history of the run directory all the same.
Trap avoided: a process that outlives the supervisor: its standard input is a pipe from us, which
the kernel closes.
"""

import logging
import subprocess
import sys
from typing import Final

from lmtraining_api import ExitCode, ExitRecord, JobFile

MODULE = "lmtraining_trainer.tracking"
#: A tracker that is out costs one request of this; one that is slow may take its time.
LAST_WORDS_SECONDS_MAX = 30.0
#: Where another attempt follows, which tells the rest.
HURRIED_SECONDS_MAX = 1.0
STATUS: Final = {ExitCode.FINISHED: "FINISHED", ExitCode.PREEMPTED: "SCHEDULED"}

logger = logging.getLogger(__name__)


class Tracker:
    """Started once, with the first step; ended once."""

    def __init__(self, job: JobFile) -> None:
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._was_started = False

    def start(self) -> None:
        """Where the job has a tracker; harmless when it runs."""
        if self._was_started or self._job.spec.tracking.mlflow is None:
            return
        self._was_started = True
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the ranks
            )
        except OSError as error:
            logger.warning("no process for tracking (%s): the training goes on", error.strerror)
            return
        self._say(self._job.model_dump_json(by_alias=True))

    def close(self, record: ExitRecord) -> None:
        """Let it say how the attempt ended."""
        process = self._process
        if process is None or process.stdin is None:
            return
        self._say(STATUS.get(record.exit_code, "FAILED"))
        has_finished = record.exit_code == ExitCode.FINISHED
        try:
            process.stdin.close()
            process.wait(LAST_WORDS_SECONDS_MAX if has_finished else HURRIED_SECONDS_MAX)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def _say(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError:  # it has ended, which is nobody's concern
            return
