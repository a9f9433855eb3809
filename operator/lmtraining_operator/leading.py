"""One term of this operator: it runs the jobs until it is told to stop or loses the right to.

Promise: when a term ends, every pass has ended before the right to write is given back, so the next
operator never meets a late write of this one. Traps avoided: kopf takes the process's signals for
itself, and on its way out waits for every task that is younger than it; both before the lease is
given back would cost the next operator seconds.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import kopf

from lmtraining_operator import handlers
from lmtraining_operator.election import Leadership
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.plan.writes import Pace
from lmtraining_operator.reconcile import JobKey, JobReconciler
from lmtraining_operator.tasks import JobTasks


class Leader:
    """The terms of one process, one after another."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        reconciler: Callable[[JobKey], JobReconciler],
        metrics: Metrics,
        namespaces: tuple[str, ...],
    ) -> None:
        self._leadership = leadership
        self._reconciler = reconciler
        self._metrics = metrics
        self._namespaces = namespaces
        self._stop = asyncio.Event()
        self._tasks: JobTasks | None = None
        """Those of the present term."""

    def count_by_state(self) -> Counter[str]:
        return self._tasks.count_by_state() if self._tasks else Counter()

    def pace(self) -> Pace:
        """How often each job is asked and written, as many as there are."""
        tasks = self._tasks
        return Pace.of(tasks.unfinished(), is_crowded=tasks.is_crowded()) if tasks else Pace()

    def oldest_unstarted_seconds(self) -> float:
        return self._tasks.oldest_unstarted_seconds() if self._tasks else 0.0

    def oldest_pass_seconds(self) -> float:
        return self._tasks.oldest_pass_seconds() if self._tasks else 0.0

    def not_ready(self) -> str:
        """Why this operator could not run the jobs, in a sentence; empty when it could."""
        return self._leadership.problem()

    async def run(self) -> None:
        """Follow and lead in turns, until told to stop."""
        self._take_signals()
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while await self._has_won(stopped):
                await self._lead(stopped)
        finally:
            stopped.cancel()
            await self._leadership.give_up()

    async def _has_won(self, stopped: "asyncio.Task[bool]") -> bool:
        """Wait for the right to write; False when told to stop first."""
        winning = asyncio.create_task(self._leadership.win())
        await asyncio.wait({stopped, winning}, return_when=asyncio.FIRST_COMPLETED)
        winning.cancel()
        with suppress(asyncio.CancelledError):
            await winning
        return not self._stop.is_set()

    async def _lead(self, stopped: "asyncio.Task[bool]") -> None:
        """One term."""
        self._tasks = tasks = JobTasks(self._reconciler, self._metrics)
        over = asyncio.Event()
        kept = asyncio.create_task(self._leadership.keep())
        older = asyncio.all_tasks()
        listeners = await kopf.spawn_tasks(
            registry=handlers.registry(tasks),
            settings=handlers.settings(),
            memories=handlers.NoMemories(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=over,
        )
        self._take_signals()
        listening = asyncio.create_task(kopf.run_tasks(listeners, ignored=older))
        self._metrics.leader.set(1)
        try:
            await asyncio.wait({stopped, kept, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._metrics.leader.set(0)
            await tasks.close()
            self._tasks = None
            kept.cancel()
            if self._stop.is_set():
                await self._leadership.give_up()
            over.set()
            await listening

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
