"""A run of Weights & Biases, by its own client.

Promise: one run for each job UID: every attempt resumes it. With an API key the client sends, and
how far the server was told is in the run's own summary; without one it writes the files that
`wandb sync` sends later, and how far those go is in a file beside them. That one is written a look
later, when the client has flushed: a kill repeats a few steps and loses none.
Traps avoided: the client would send the machine, the environment and the program too, report its
own errors to its makers, and keep the key on disk. The axis of its curves only grows, and the steps
after a rewind would be dropped: so they are drawn over a figure of their own.
"""

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lmtraining_api import JobFile, names
from lmtraining_api.history import RunHistory
from lmtraining_api.job import WandbTracking
from lmtraining_trainer.tracking.run import Status, parameters
from lmtraining_trainer.tracking.server import TrackerError
from lmtraining_trainer.unsent import Position, unsent

# Read when it is imported.
os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}

import wandb

STEP = "step"
POSITION = f"{names.GROUP}/position".replace(".", "_")
POSITION_FILE = "position.json"
INIT_SECONDS_MAX = 10.0
FINISH_SECONDS_MAX = 25.0
FLUSH_SECONDS = 1.0
_HTTP_ERROR = re.compile(r"\berror (\d{3})\b")


@dataclass
class WandbRun:
    """The run of a job."""

    job: JobFile
    tracker: WandbTracking
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    """token: the API key."""
    _run: wandb.Run | None = field(default=None, repr=False)
    _position: Position = field(default_factory=Position)
    _flushed: Position = field(default_factory=Position)
    """What of it is in the files by now."""

    def follow(self, history: RunHistory) -> int:
        """Tell what is new; how many steps that were. Raises TrackerError."""
        run = self._opened()
        try:
            return self._tell(run, history)
        except Exception as error:  # whatever its client raises, the training goes on
            raise self._given_up(error) from error

    def turn(self, status: Status) -> None:
        """Let the run have that status. Raises TrackerError."""
        run = self._opened()
        if status == "RUNNING":
            return
        try:
            if status == "SCHEDULED":
                run.mark_preempting()
            run.finish(exit_code=0 if status == "FINISHED" else 1)
            self._note(self._position)
        except Exception as error:
            raise self._given_up(error) from error

    def _tell(self, run: wandb.Run, history: RunHistory) -> int:
        self._note(self._flushed)
        self._flushed = self._position
        readings, self._position = unsent(history, self._position)
        for one in readings:
            run.log({STEP: one.step, **one.values})
        if readings:
            run.summary[POSITION] = self._position.model_dump_json()
        return len(readings)

    def _given_up(self, error: Exception) -> TrackerError:
        """After an error: the next look opens the run anew."""
        self._run = None
        with suppress(Exception):  # a client that is dead says so
            wandb.teardown(1)  # else it would find the run in use
        return TrackerError(f"not told ({_word_for(error)})")

    @property
    def _sends(self) -> bool:
        return self.tracker.credentials is not None

    @property
    def _file(self) -> Path:
        return Path(self.job.run_directory) / "wandb" / POSITION_FILE

    def _note(self, position: Position) -> None:
        if not self._sends:
            self._file.write_text(position.model_dump_json())

    def _opened(self) -> wandb.Run:
        """Resume the run, or make it."""
        if self._run is not None:
            return self._run
        if self._sends and "token" not in self.secret:
            raise TrackerError("the Secret of credentials has no key token")
        before = self._directories()
        try:
            run = wandb.init(
                id=self.job.job_uid,
                resume="allow",
                name=self.job.job_name,
                project=self.tracker.project,
                entity=self.tracker.entity,
                config=parameters(self.job),
                dir=self.job.run_directory,
                mode="online" if self._sends else "offline",
                settings=wandb.Settings(
                    api_key=self.secret.get("token"),
                    base_url=self.tracker.uri,
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    finish_timeout=FINISH_SECONDS_MAX,
                    host=self.job.namespace,
                    init_timeout=INIT_SECONDS_MAX,
                    save_code=False,
                    silent=True,
                    symlink=False,  # a volume may know none
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                    x_transaction_log_flush_interval=FLUSH_SECONDS,
                ),
            )
        except Exception as error:
            given_up = self._given_up(error)
            for directory in self._directories() - before:
                shutil.rmtree(directory, ignore_errors=True)
            raise given_up from error
        run.define_metric(STEP, hidden=True)
        run.define_metric("*", step_metric=STEP)
        self._position = self._flushed = self._known(run)
        self._run = run
        return run

    def _directories(self) -> set[Path]:
        """One for each time that the run was opened."""
        return set((Path(self.job.run_directory) / "wandb").glob("*run-*"))

    def _known(self, run: wandb.Run) -> Position:
        try:
            said = dict(run.summary).get(POSITION, "") if self._sends else self._file.read_bytes()
            return Position.model_validate_json(said)
        except (OSError, ValueError):
            return Position()


def _word_for(error: Exception) -> str:
    """Without its text, which may quote an answer."""
    code = _HTTP_ERROR.search(str(error))
    return f"HTTP {code[1]}" if code else type(error).__name__
