"""The ranks of one pod, as their supervisor holds them.

Promise: `close` leaves no rank behind, and is called on every way out; should the fork server
itself be killed, its ranks end when this process does. How each rank ended is known once, from its
own last word or, where it had none, from its exit code.
Trap avoided: a rank that dies leaves its last words in the pipe, so the pipe is drained before the
exit code is believed; and the pipe's end proves nothing, since a rank's own children hold it too.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from lmtraining_trainer.rank_link import RankUpdate
from lmtraining_trainer.supervisor.failure import RankEnd, end_of_patience, end_of_process
from lmtraining_trainer.supervisor.fork_server import ForkServer
from lmtraining_trainer.supervisor.rank_process import RankTask, decoded, rank_main

#: Ranks whose peer has failed get this long to save what they can and say why they end.
FAILED_GANG_SECONDS_MAX = 2.0
#: A process that was killed is gone within this, unless the kernel holds it in I/O.
KILLED_SECONDS_MAX = 5.0
#: Words read from one rank in one turn, so that a talkative one cannot keep the others waiting.
WORDS_PER_TURN_MAX = 64


@dataclass(kw_only=True)
class _Rank:
    number: int
    process: ForkServerProcess
    pipe: Connection
    end: RankEnd | None = None
    gone: bool = False


@dataclass(kw_only=True)
class Ranks:
    """Started ranks. `poll` moves everything on; all else only looks."""

    _ranks: list[_Rank] = field(default_factory=list)
    _patience_ended: bool = False

    def start(self, tasks: Sequence[RankTask], fork_server: ForkServer) -> None:
        """Fork one rank per task."""
        for task in tasks:
            receiver, sender = fork_server.context.Pipe(duplex=False)
            process = fork_server.context.Process(target=rank_main, args=(sender, task))
            process.start()
            sender.close()
            self._ranks.append(_Rank(number=task.place.rank, process=process, pipe=receiver))

    @property
    def numbers(self) -> list[int]:
        return [rank.number for rank in self._ranks]

    @property
    def processes(self) -> dict[int, int]:
        """Process ids of the ranks that live, by number."""
        return {
            rank.number: rank.process.pid
            for rank in self._ranks
            if not rank.gone and rank.process.pid is not None
        }

    def fail(self, end: RankEnd) -> None:
        """Kill a rank that will not end by itself; this is how it ended."""
        for rank in self._ranks:
            if rank.number == end.rank and not rank.gone and rank.process.pid is not None:
                rank.end = end
                with suppress(ProcessLookupError):
                    os.kill(rank.process.pid, signal.SIGKILL)

    @property
    def ends(self) -> list[RankEnd]:
        """How the ranks that have ended did, in no order."""
        return [rank.end for rank in self._ranks if rank.end is not None]

    @property
    def all_gone(self) -> bool:
        """True once every process is reaped."""
        return all(rank.gone for rank in self._ranks)

    def poll(self, timeout_seconds: float, wake: Sequence[int] = ()) -> list[RankUpdate]:
        """What ranks said, after waiting for a word, a death or a byte on `wake`."""
        living = [rank for rank in self._ranks if not rank.gone]
        watched: list[Connection | int] = [*wake]
        for rank in living:
            watched.append(rank.process.sentinel)
            if not rank.pipe.closed:
                watched.append(rank.pipe)
        wait(watched, timeout_seconds)
        return [update for rank in living for update in self._turn(rank)]

    def stop(self) -> None:
        """Ask all to save and stop."""
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Kill and reap what is left, within `KILLED_SECONDS_MAX`; every rank has an end then."""
        self._patience_ended = True
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + KILLED_SECONDS_MAX
        while not self.all_gone and time.monotonic() < deadline:
            self.poll(max(0.0, deadline - time.monotonic()))
        for rank in self._ranks:
            rank.end = rank.end or end_of_patience(rank=rank.number, now=time.monotonic())

    def _turn(self, rank: _Rank) -> list[RankUpdate]:
        """Read one rank; its process is looked at first, so that all its words are in the pipe."""
        exit_code = rank.process.exitcode
        updates = self._read(rank, all_of_it=exit_code is not None)
        if exit_code is not None:
            rank.gone = True
            rank.pipe.close()
            rank.end = rank.end or self._end_of(exit_code, rank.number)
        return updates

    def _end_of(self, exit_code: int, number: int) -> RankEnd:
        """The end of a rank without a last word. What we killed did not fail."""
        if self._patience_ended and exit_code == -signal.SIGKILL:
            return end_of_patience(rank=number, now=time.monotonic())
        return end_of_process(exit_code, rank=number, now=time.monotonic())

    def _read(self, rank: _Rank, *, all_of_it: bool) -> list[RankUpdate]:
        updates: list[RankUpdate] = []
        words = 0
        try:
            while (all_of_it or words < WORDS_PER_TURN_MAX) and rank.pipe.poll(0):
                words += 1
                word = decoded(rank.pipe.recv_bytes(), rank=rank.number)
                if isinstance(word, RankEnd):
                    rank.end = word
                else:
                    updates.append(word)
        except (EOFError, OSError):
            rank.pipe.close()
        return updates

    def _signal(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            if not rank.gone and rank.process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(rank.process.pid, number)
