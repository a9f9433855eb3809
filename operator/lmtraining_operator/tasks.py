"""One serial task per unfinished job.

Promise: events only wake; a job that nothing wakes is looked at anyway; a pass that fails is tried
again ever more slowly, and the others do not notice; after ERRORS_TO_TELL of them an event of the
job says so; at most PASSES_AT_ONCE_MAX passes, as many first ones of a job, and PULLS_AT_ONCE_MAX
pulls run at a time, so that a thousand jobs after a restart are a queue and not a stampede, and
neither new jobs nor the known ones wait for all of the others; until its first pass a job is a name
in that queue, so thousands of finished ones need no more memory than STARTS_AT_ONCE_MAX of them.
Traps avoided: kopf can miss a deletion, so a GET that says 404 ends the task; a dead pod's report
is waited for while its replacement could be made, so an event cuts a pull short; our own status
write is an event too, so a job wakes its task only when more than its status has changed; what is
told while a pass waits for its slot is seen by that pass, and needs no other.
"""

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from lmtraining_api.conditions import Succeeded
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.plan.backoff import backoff_seconds
from lmtraining_operator.reconcile import JobKey, JobReconciler, Outcome

PASSES_AT_ONCE_MAX = 16
PULLS_AT_ONCE_MAX = 128
STARTS_AT_ONCE_MAX = 2 * PASSES_AT_ONCE_MAX
"""Jobs that have a task and have not been looked at yet."""
DEBOUNCE_SECONDS = 0.02
"""Events that come together are one pass."""
ERROR_SECONDS_MIN = 0.5
ERROR_SECONDS_MAX = 60.0
ERRORS_TO_TELL = 5
"""Errors in a row that are more than a passing trouble of the API server: about 15 seconds."""
CLOSE_SECONDS_MAX = 2.0
FRAMES_MAX = 10

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    """A running task and what wakes it."""

    reconciler: JobReconciler
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    seen: object = None
    """What the last job event said besides status."""
    errors: int = 0
    pass_since: float | None = None
    """Loop time at which the pass under way got its slot."""
    task: asyncio.Task[None] | None = None


class JobTasks:
    """The tasks of all unfinished jobs."""

    def __init__(self, make: Callable[[JobKey], JobReconciler], metrics: Metrics) -> None:
        self._make = make
        self._metrics = metrics
        self._jobs: dict[JobKey, _Job] = {}
        self._new: dict[JobKey, object] = {}
        """Jobs to be looked at for the first time, oldest first, with what their events said."""
        self._starting = 0
        self._ended: dict[JobKey, str] = {}
        """State of each job whose task is done, for the count by state."""
        self._passes = asyncio.Semaphore(PASSES_AT_ONCE_MAX)
        self._first_passes = asyncio.Semaphore(PASSES_AT_ONCE_MAX)
        self._pulls = asyncio.Semaphore(PULLS_AT_ONCE_MAX)
        self._is_closed = False

    def wake(self, key: JobKey) -> None:
        """Look at that job soon."""
        if self._is_closed:
            return
        if job := self._jobs.get(key):
            job.woken.set()
        else:
            self._look_first(key, self._new.get(key))

    def job_changed(self, key: JobKey, seen: object) -> None:
        """Look at that job if `seen` (all of it that matters but status) is new."""
        if self._is_closed:
            return
        job = self._jobs.get(key)
        if job is None:
            self._look_first(key, seen)
        elif job.seen != seen:
            job.seen = seen
            job.woken.set()

    def count_by_state(self) -> Counter[str]:
        states = Counter(list(self._ended.values()))
        states.update(job.reconciler.state for job in list(self._jobs.values()))
        if self._new:
            states[Succeeded.PENDING] += len(self._new)
        return states

    def unfinished(self) -> int:
        """How many jobs are looked at, or wait for that."""
        return len(self._jobs) + len(self._new)

    def is_crowded(self) -> bool:
        """Whether jobs wait to be looked at for the first time."""
        return bool(self._new)

    def oldest_unstarted_seconds(self) -> float:
        """Of the job that has waited longest for its pods to run."""
        jobs = list(self._jobs.values())
        return max((job.reconciler.unstarted_seconds for job in jobs), default=0.0)

    def oldest_pass_seconds(self) -> float:
        """Age of the oldest pass under way. To wait for a slot is no age: a queue is no fault."""
        now = asyncio.get_running_loop().time()
        ages = [now - j.pass_since for j in self._jobs.values() if j.pass_since is not None]
        return max(ages, default=0.0)

    async def close(self) -> None:
        """Stop all tasks. A pass that is cut short is done again by the next operator."""
        self._is_closed = True
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS_MAX)

    def _look_first(self, key: JobKey, seen: object) -> None:
        """Look at a job without a task, as soon as its turn comes."""
        self._ended.pop(key, None)
        self._new[key] = seen
        self._start()

    def _start(self) -> None:
        """Give as many of the new jobs a task as may have their first pass at once."""
        while self._new and self._starting < STARTS_AT_ONCE_MAX and not self._is_closed:
            key = next(iter(self._new))
            self._jobs[key] = job = _Job(reconciler=self._make(key), seen=self._new.pop(key))
            self._starting += 1
            job.task = asyncio.create_task(self._run(key, job), name=f"job {key}")

    async def _run(self, key: JobKey, job: _Job) -> None:
        """Until the job has ended or is gone."""
        loop = asyncio.get_running_loop()

        async def look() -> Outcome:
            job.woken.clear()
            return await job.reconciler.look()

        slots = self._first_passes
        while True:
            await asyncio.sleep(DEBOUNCE_SECONDS)
            outcome = await self._pass(job, look, slots)
            if slots is self._first_passes:
                slots = self._passes
                self._starting -= 1
                self._start()
            look_at = loop.time() + outcome.look_seconds
            while not outcome.is_done and not await self._is_time_to_look(job, outcome, look_at):
                outcome = await self._hear(job)
                look_at = min(look_at, loop.time() + outcome.look_seconds)
            if outcome.is_done and not job.woken.is_set():
                break
        del self._jobs[key]
        self._ended[key] = job.reconciler.state
        if outcome.is_gone:
            del self._ended[key]

    async def _hear(self, job: _Job) -> Outcome:
        """What comes of a report: mostly nothing, and that waits for no slot. With a thousand jobs
        they would hold up those to which something has happened."""
        try:
            outcome = job.reconciler.hear()
        except Exception as error:
            return await self._failed(job, error)
        return outcome or await self._pass(job, job.reconciler.after_report, self._passes)

    async def _is_time_to_look(self, job: _Job, outcome: Outcome, look_at: float) -> bool:
        """Wait; False when a report has come in before anything else."""
        left = max(look_at - asyncio.get_running_loop().time(), 0.0)
        if outcome.report_seconds is None or outcome.report_seconds >= left:
            await _first(job.woken, asyncio.sleep(left))
            return True
        return await _first(job.woken, self._pull(job, outcome.report_seconds))

    async def _pull(self, job: _Job, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        async with self._pulls:
            is_ok = await job.reconciler.pull_report()
        self._metrics.report_pulls.labels("ok" if is_ok else "failed").inc()

    async def _pass(
        self, job: _Job, what: Callable[[], Awaitable[Outcome]], slots: asyncio.Semaphore
    ) -> Outcome:
        """One pass. An error is logged, counted, and followed by an ever longer wait."""
        loop = asyncio.get_running_loop()
        async with slots:
            job.pass_since = started = loop.time()
            try:
                outcome = await what()
                job.errors = 0
            except Exception as error:
                outcome = await self._failed(job, error)
            finally:
                job.pass_since = None
                self._metrics.reconcile_seconds.observe(loop.time() - started)
        self._log_event_errors(job)
        return outcome

    async def _failed(self, job: _Job, error: Exception) -> Outcome:
        reason = error.reason if isinstance(error, ApiError) else type(error).__name__
        self._metrics.count_error(reason)
        wait = backoff_seconds(first=ERROR_SECONDS_MIN, limit=ERROR_SECONDS_MAX, earlier=job.errors)
        job.errors += 1
        is_answer = isinstance(error, ApiError)
        if isinstance(error, ApiError):
            wait = max(wait, error.retry_after_seconds)
        logger.error(
            "the job could not be looked at; trying again in %.1f s: %s",
            wait,
            error if is_answer else type(error).__name__,
            extra={**self._who(job), "reason": reason}
            | ({} if is_answer else {"frames": _frames(error)}),
        )
        if job.errors == ERRORS_TO_TELL:
            what = str(error) if is_answer else f"{type(error).__name__} in the operator"
            await job.reconciler.tell_trouble(
                f"the operator failed {job.errors} times in a row to look at this job, and tries "
                f"again every {ERROR_SECONDS_MAX:.0f} s: {what}; its log has more"
            )
        return Outcome(look_seconds=wait)

    def _log_event_errors(self, job: _Job) -> None:
        for error in job.reconciler.event_errors:
            self._metrics.count_error("EventNotWritten")
            logger.warning("an event could not be written: %s", error, extra=self._who(job))
        job.reconciler.event_errors = []

    def _who(self, job: _Job) -> dict[str, object]:
        key = job.reconciler.key
        return {"namespace": key.namespace, "job": key.name, "attempt": job.reconciler.attempt}


def _frames(error: Exception) -> list[str]:
    """Where it was raised. The text of a foreign error may quote the spec: left out (P11)."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


async def _first(event: asyncio.Event, other: Awaitable[None]) -> bool:
    """Wait for the event or the other, which is cut short by the event. True: the event came."""
    waiter = asyncio.ensure_future(event.wait())
    work = asyncio.ensure_future(other)
    try:
        await asyncio.wait({waiter, work}, return_when=asyncio.FIRST_COMPLETED)
        if event.is_set():
            return True
        work.result()
        return False
    finally:
        for task in (waiter, work):
            task.cancel()
