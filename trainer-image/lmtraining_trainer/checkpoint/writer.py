"""The writer: a thread that publishes one snapshot at a time beside the training; of the lead, or
of each rank where each writes its part.

Promise: whoever trains waits for storage only where it asks to; what the writer found, also
TrainerError("Fenced"), is raised where its result is taken up (`ended`, `marked`), and nowhere
else. One job is done after the other, in the order given.
Trap avoided: a writer that hangs is no hang of the rank, which trains on, and must not pass for
work either: `silent_seconds` tells, and who awaits it lives only while the writer does.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmtraining_api import CheckpointReport
from lmtraining_api.job import Checkpoint
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.checkpoint.retention import tidy
from lmtraining_trainer.checkpoint.together import Line, Talk
from lmtraining_trainer.checkpoint.write import (
    OtherRanks,
    Snapshot,
    write_checkpoint,
    write_part,
)
from lmtraining_trainer.heartbeat import HEARTBEAT_SECONDS
from lmtraining_trainer.run import Run


@dataclass(frozen=True, kw_only=True)
class Written:
    """A checkpoint that is intact."""

    report: CheckpointReport | None
    """None where another rank has published it."""
    tidy_error: OSError | None = None
    """Why older ones could not be deleted."""


Publish = Callable[[Snapshot, Pace], Written]
"""What a writer does with a snapshot. Raises OSError, TrainerError("Fenced")."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """A save, begun and perhaps ended."""

    step: int
    pace: Pace
    written: Future[Written]
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began; by a clock that nobody sets."""
        return time.monotonic() - self.began

    @property
    def silent_seconds(self) -> float:
        """Since the writer last came on with it."""
        return self.pace.silent_seconds()


class Writer:
    """One thread, one run. Used from the training's thread."""

    def __init__(self, publish: Publish, *, share: float) -> None:
        self._publish = publish
        self._share = share
        self._pool = ThreadPoolExecutor(1, "checkpoint-writer")
        self._marks: deque[Future[dict[str, Any]]] = deque()
        self.save: Save | None = None
        """What is being written, until it is taken up by `ended`."""

    def begin(self, snapshot: Snapshot) -> None:
        """Publish `snapshot`, which nobody changes meanwhile. Only after `ended` or at first."""
        pace = Pace(self._share)
        written = self._pool.submit(self._written, snapshot, pace)
        self.save = Save(step=snapshot.step, pace=pace, written=written)

    def mark(self, work: Callable[[], dict[str, Any]]) -> None:
        """Do something short in its turn; `marked` gives what is to be said of it."""
        self._marks.append(self._pool.submit(work))

    def ended(self) -> Save | None:
        """The save that has ended, once."""
        if self.save is None or not self.save.written.done():
            return None
        ended, self.save = self.save, None
        return ended

    def marked(self) -> Future[dict[str, Any]] | None:
        """What has been done since, each once."""
        return self._marks.popleft() if self._marks and self._marks[0].done() else None

    def give_time(self, seconds: float) -> None:
        """Wait so long at most for the save to end, which from now on goes at full speed."""
        if self.save is not None:
            self.save.pace.hurry()
            wait([self.save.written], seconds)

    def await_all(self, alive: Callable[[], None], *, silence_seconds: float) -> bool:
        """Until nothing is under way, at full speed; False once the writer has been at one piece of
        work for `silence_seconds`. `alive` is called for as long as it comes on."""
        began, turns = time.monotonic(), -1
        pending: set[Future[Any]] = {*self._marks, *([self.save.written] if self.save else [])}
        while pending:
            silent_seconds = time.monotonic() - began
            if self.save is not None:
                self.save.pace.hurry()
                silent_seconds = self.save.silent_seconds
                if self.save.pace.turns != turns:
                    turns = self.save.pace.turns
                    alive()
            if silent_seconds > silence_seconds:
                return False
            pending = wait(pending, HEARTBEAT_SECONDS).not_done
        return True

    def _written(self, snapshot: Snapshot, pace: Pace) -> Written:
        pace.turn()
        snapshot.await_copied()
        return self._publish(snapshot, pace)


def published_whole(run: Run, keep: Checkpoint) -> Publish:
    """On the lead, which writes all there is."""

    def publish(snapshot: Snapshot, pace: Pace) -> Written:
        return _tidied(run, keep, write_checkpoint(run, snapshot, pace))

    return publish


def published_with_parts(run: Run, keep: Checkpoint, line: Line) -> Publish:
    """On the lead, where each rank writes its part."""
    newest: list[Talk] = []

    def publish(snapshot: Snapshot, pace: Pace) -> Written:
        talk = line.talk(snapshot.step, pace)
        with talk.telling_failure():
            while newest:
                newest.pop().forget()
            newest.append(talk)
            report = write_checkpoint(run, snapshot, pace, OtherRanks(talk=talk))
        return _tidied(run, keep, report)

    return publish


def part_published(checkpoints: Path, line: Line) -> Publish:
    """On another rank: its part."""

    def publish(snapshot: Snapshot, pace: Pace) -> Written:
        talk = line.talk(snapshot.step, pace)
        with talk.telling_failure():
            write_part(checkpoints, snapshot, pace, talk)
        return Written(report=None)

    return publish


def _tidied(run: Run, keep: Checkpoint, report: CheckpointReport) -> Written:
    try:
        tidy(run, keep)
    except OSError as error:  # it is intact all the same
        return Written(report=report, tidy_error=error)
    return Written(report=report)
