"""What runs in a rank's process, around the rank function.

Promise: a rank that ends says how, on its pipe; one whose supervisor is gone ends at once, so that
no rank ever writes into a run that nobody watches (P1). SIGTERM sets a flag and does nothing else.
Saying something never blocks training: while the pipe is full, words are kept and said together
with the next ones.
Trap avoided: objects on the pipe. Only JSON crosses, so the supervisor never imports torch because
a rank reported a tensor.
"""

import faulthandler
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from pydantic_core import to_jsonable_python

from lmtraining_api import CODE_OF_CLASS, ExitCode, FailureClass, JobFile, State, Wishes
from lmtraining_trainer.errors import Preempted
from lmtraining_trainer.phase import Phase, PhaseWriter
from lmtraining_trainer.rank_link import RankLink, RankPlace, RankUpdate
from lmtraining_trainer.supervisor.evidence import STACK_SIGNAL
from lmtraining_trainer.supervisor.failure import (
    RankEnd,
    end_of_exception,
    finished,
)
from lmtraining_trainer.supervisor.wake import STOP_SIGNALS

logger = logging.getLogger(__name__)

RankFunction = Callable[[JobFile, RankPlace, RankLink], object]

#: Below PIPE_BUF: a pipe that is writable takes this much without blocking, and whole.
UPDATE_BYTES_MAX = 4000


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What a rank is started with."""

    job: JobFile
    place: RankPlace
    function: str
    """module:name of the rank function."""
    log: Path | None = None
    """Where its output goes; None: where the supervisor's goes."""
    stack: Path
    """Where it writes its stack when it is asked to."""
    phases: Path
    """Where it writes what it is doing."""
    wishes: Path
    """Where it reads what is wanted beyond training on."""


class PipeLink:
    """`RankLink` over a pipe, a file for the phases, and one for wishes."""

    def __init__(self, pipe: Connection, phases: PhaseWriter, wishes_file: Path) -> None:
        self._pipe = pipe
        self._wishes_file = wishes_file
        self._wishes: Wishes | None = None
        self._wishes_seen = (0, 0)
        self._phases = phases
        self._unsaid: dict[str, object] = {}
        self._stop = False
        self._lock = threading.Lock()

    def say(self, state: State, **fields: object) -> None:
        """Report; what the pipe has no room for is said next time."""
        self._phases.alive()
        with self._lock:
            self._unsaid.update(fields)
            if not self._writable():
                return
            try:
                self._pipe.send_bytes(encoded_update(state, self._unsaid))
            except OSError:
                return  # the supervisor is gone: the watcher ends this process
            self._unsaid.clear()

    def enter(self, phase: Phase) -> None:
        """Turn to another kind of work."""
        self._phases.enter(phase)

    def stop_requested(self) -> bool:
        """True once SIGTERM has come."""
        return self._stop

    def wishes(self) -> Wishes | None:
        """What the supervisor has written down last. A look costs a microsecond: the file is
        renamed into its place, and read only when it is another one."""
        try:
            found = self._wishes_file.stat()
        except OSError:
            return self._wishes
        if (found.st_ino, found.st_mtime_ns) != self._wishes_seen:
            self._wishes_seen = (found.st_ino, found.st_mtime_ns)
            self._wishes = Wishes.model_validate_json(self._wishes_file.read_bytes())
        return self._wishes

    def request_stop(self) -> None:
        """The signal handler: a flag and nothing else."""
        self._stop = True

    def say_end(self, end: RankEnd) -> None:
        """The last word; waits for room."""
        with self._lock:
            try:
                self._pipe.send_bytes(json.dumps({"end": asdict(end)}).encode())
            except OSError:
                return

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._pipe.fileno(), select.POLLOUT)
        return bool(poll.poll(0))


def rank_main(pipe: Connection, task: RankTask) -> NoReturn:
    """The whole life of a rank."""
    rank = task.place.rank
    link = PipeLink(pipe, PhaseWriter(task.phases), task.wishes)
    for number in (signal.SIGINT, signal.SIGHUP):  # from a terminal, to the whole group
        signal.signal(number, signal.SIG_IGN)  # the supervisor acts
    signal.signal(signal.SIGTERM, lambda *_: link.request_stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _die_with_supervisor()
    if task.log is not None:
        _redirect_output(task.log)
    # Kept open for life. The handler is C: it answers while Python waits inside a library.
    stack = task.stack.open("a")
    faulthandler.register(STACK_SIGNAL, file=stack)
    try:
        function = load_function(task.function)
        function(task.job, task.place, link)
        end = finished(rank, now=time.monotonic())
    except BaseException as error:  # SystemExit too: a rank may not leave unseen
        if not isinstance(error, Preempted):
            traceback.print_exc()
        end = end_of_exception(error, rank=rank, now=time.monotonic())
    link.say_end(end)
    # No interpreter shutdown: a library's thread or finalizer that hangs must not keep the pod.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(CODE_OF_CLASS[end.failure_class] if end.failure_class else ExitCode.FINISHED)


def load_function(path: str) -> RankFunction:
    """The function at module:name."""
    module, _, name = path.partition(":")
    function: RankFunction = getattr(importlib.import_module(module), name)
    return function


def encoded_update(state: State, fields: Mapping[str, object]) -> bytes:
    """The words of a rank as JSON, without the longest where they are too long together; the log
    names those."""
    plain = to_jsonable_python(fields, fallback=_plain)
    while len(body := json.dumps({"state": state, "fields": plain}).encode()) > UPDATE_BYTES_MAX:
        longest = max(plain, key=lambda name: len(json.dumps(plain[name])))
        logger.warning("the report goes without %s, which is too long for it", longest)
        del plain[longest]
    return body


def decoded(body: bytes, *, rank: int) -> RankUpdate | RankEnd:
    """What came over the pipe."""
    document: dict[str, Any] = json.loads(body)
    if "end" in document:
        end = document["end"]
        failure = FailureClass(end["failure_class"]) if end["failure_class"] else None
        frames = tuple(end["frames"])
        return RankEnd(**end | {"frames": frames, "ranks": (), "failure_class": failure})
    return RankUpdate(rank=rank, state=document["state"], fields=document["fields"])


def _plain(value: object) -> object:
    """A number of numpy or torch as Python's; anything else by its type, which no field accepts."""
    item = getattr(value, "item", None)
    return item() if callable(item) else f"<{type(value).__name__}>"


def _die_with_supervisor() -> None:
    """Watch the pipe that only the supervisor holds open; its end is the supervisor's end."""
    supervisor = parent_process()
    if supervisor is None:
        return

    def watch() -> None:
        wait([supervisor.sentinel])
        os._exit(ExitCode.UNKNOWN)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
