"""The processes that tell a job's trackers, as the supervisor of the lead pod sees them.

Promise: the training neither waits for them nor ends with them, and a recovery is not held up by
them. At the end of a finished run they have a limited time for their last words; what they could
not tell by then is in the history of the run directory all the same.
Traps avoided: a process that outlives the supervisor: its standard input is a pipe from us, which
the kernel closes. One tracker that is out and holds up another: each has a process of its own.
"""

import logging
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

from lmtraining_api import ExitCode, ExitRecord, JobFile

MODULE = "lmtraining_trainer.tracking"
#: A tracker that is out costs one request of this; one that is slow may take its time.
LAST_WORDS_SECONDS_MAX = 30.0
#: Where another attempt follows, which tells the rest.
HURRIED_SECONDS_MAX = 1.0
STATUS: Final = {ExitCode.FINISHED: "FINISHED", ExitCode.PREEMPTED: "SCHEDULED"}

logger = logging.getLogger(__name__)


class Trackers:
    """Started once, with the first step; ended once."""

    def __init__(self, job: JobFile) -> None:
        self._job = job
        self._processes: list[subprocess.Popen[bytes]] = []
        self._were_started = False

    def start(self) -> None:
        """Those that the job has; harmless when they run."""
        if self._were_started:
            return
        self._were_started = True
        tracking = self._job.spec.tracking
        for name in type(tracking).model_fields:
            if getattr(tracking, name) is not None:
                self._start(name)

    def _start(self, name: str) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the ranks
            )
        except OSError as error:
            logger.warning("no process for tracking (%s): the training goes on", error.strerror)
            return
        _say(process, self._job.model_dump_json(by_alias=True))
        self._processes.append(process)

    def close(self, record: ExitRecord) -> None:
        """Let them say how the attempt ended."""
        for process in self._processes:
            _say(process, STATUS.get(record.exit_code, "FAILED"), is_last=True)
        has_finished = record.exit_code == ExitCode.FINISHED
        limit = LAST_WORDS_SECONDS_MAX if has_finished else HURRIED_SECONDS_MAX
        ends_at = time.monotonic() + limit
        for process in self._processes:
            try:
                process.wait(max(0.0, ends_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _say(process: subprocess.Popen[bytes], line: str, *, is_last: bool = False) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # it has ended, which is nobody's concern
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
    if is_last:
        with suppress(OSError):
            process.stdin.close()
