"""One serial task per job: what wakes it, what it survives, how many there are at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lmtraining_operator.gateway import ApiError
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.reconcile import JobKey, Outcome
from lmtraining_operator.tasks import (
    ERRORS_TO_TELL,
    PASSES_AT_ONCE_MAX,
    STARTS_AT_ONCE_MAX,
    JobTasks,
)

pytestmark = pytest.mark.unit

KEY = JobKey("team", "tiny")
LONG = Outcome(look_seconds=1000)
WAIT_SECONDS_MAX = 5.0


class FakeReconciler:
    """Answers each look with the next outcome, then with a long wait."""

    def __init__(self, key: JobKey, outcomes: list[Outcome | Exception]) -> None:
        self.key, self.outcomes = key, outcomes
        self.looks = self.pulls = self.after = self.at_once = self.at_once_max = 0
        self.heard: Outcome | None = None
        self.state, self.attempt, self.unstarted_seconds = "Training", 1, 7.0
        self.event_errors: list[ApiError] = []
        self.hold: asyncio.Event | None = None
        self.pull_forever = False
        self.troubles: list[str] = []

    async def tell_trouble(self, sentence: str) -> None:
        self.troubles.append(sentence)

    async def look(self) -> Outcome:
        self.looks += 1
        if self.hold is not None:
            await self.hold.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else LONG
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def pull_report(self) -> bool:
        self.pulls += 1
        if self.pull_forever:
            await asyncio.Event().wait()
        return True

    def hear(self) -> Outcome | None:
        return self.heard

    async def after_report(self) -> Outcome:
        self.after += 1
        return LONG


class Bench:
    """Tasks over fake reconcilers."""

    def __init__(self) -> None:
        self.metrics = Metrics("test")
        self.outcomes: list[Outcome | Exception] = []
        self.made: list[FakeReconciler] = []
        self.tasks = JobTasks(self.make, self.metrics)  # type: ignore[arg-type]

    def make(self, key: JobKey) -> FakeReconciler:
        self.made.append(FakeReconciler(key, self.outcomes))
        return self.made[-1]

    @property
    def one(self) -> FakeReconciler:
        return self.made[0]

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(f"lmtraining_operator_{name}", labels)
        return found or 0.0


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.tasks.close()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not holds():  # noqa: ASYNC110  the condition is the test's, not an event of the code
            await asyncio.sleep(0.001)


async def test_events_that_come_together_are_one_pass(bench: Bench) -> None:
    for _ in range(100):
        bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks)
    bench.tasks.wake(KEY)
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 2)
    assert len(bench.made) == 1


async def test_what_is_told_while_a_pass_waits_for_its_slot_needs_no_other(bench: Bench) -> None:
    hold = asyncio.Event()
    for number in range(PASSES_AT_ONCE_MAX):
        bench.tasks.wake(JobKey("team", f"job-{number}"))
    for reconciler in bench.made:
        reconciler.hold = hold
    await until(lambda: sum(r.looks for r in bench.made) == PASSES_AT_ONCE_MAX)
    bench.tasks.wake(KEY)
    await until(lambda: bench.tasks._first_passes._waiters)
    bench.tasks.wake(KEY)
    assert bench.tasks._jobs[KEY].woken.is_set()
    hold.set()
    await until(lambda: bench.made[-1].looks == 1)
    assert not bench.tasks._jobs[KEY].woken.is_set()


async def test_known_jobs_do_not_wait_for_all_of_the_new_ones(bench: Bench) -> None:
    """P4: a pod of theirs that died is told, however many jobs come in meanwhile."""
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 1)
    for number in range(STARTS_AT_ONCE_MAX * 3):
        bench.tasks.wake(JobKey("team", f"job-{number}"))
    for reconciler in bench.made[1:]:
        reconciler.hold = asyncio.Event()
    await until(bench.tasks._first_passes.locked)
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 2)


async def test_own_status_write_wakes_nobody(bench: Bench) -> None:
    bench.tasks.job_changed(KEY, ("uid", 1))
    await until(lambda: bench.one.looks == 1)
    bench.tasks.job_changed(KEY, ("uid", 1))
    assert not bench.tasks._jobs[KEY].woken.is_set()
    bench.tasks.job_changed(KEY, ("uid", 2))
    assert bench.tasks._jobs[KEY].woken.is_set()
    await until(lambda: bench.one.looks == 2)


async def test_job_that_nothing_wakes_is_looked_at_again(bench: Bench) -> None:
    bench.outcomes = [Outcome(look_seconds=0.01)]
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 2)
    assert bench.tasks.oldest_unstarted_seconds() == 7.0


async def test_ended_job_has_no_task_and_can_be_woken_again(bench: Bench) -> None:
    bench.outcomes = [Outcome(look_seconds=1, is_done=True)]
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 1 and bench.tasks.oldest_pass_seconds() == 0.0)
    assert bench.tasks.count_by_state() == {"Training": 1}
    assert bench.tasks.oldest_unstarted_seconds() == 0.0, "an ended job waits for nothing"
    bench.outcomes = [Outcome(look_seconds=1, is_done=True, is_gone=True)]
    bench.tasks.wake(KEY)
    await until(lambda: not bench.tasks.count_by_state())
    assert len(bench.made) == 2


async def test_event_during_the_last_pass_is_not_lost(bench: Bench) -> None:
    """A job made again under its name while the old one ends."""
    bench.outcomes = [Outcome(look_seconds=1, is_done=True, is_gone=True)]
    bench.tasks.wake(KEY)
    bench.one.hold = asyncio.Event()
    await until(lambda: bench.one.looks == 1)
    bench.tasks.wake(KEY)
    bench.one.hold.set()
    await until(lambda: bench.one.looks == 2)


async def test_error_is_counted_and_tried_again(bench: Bench) -> None:
    bench.outcomes = [ApiError(500, "InternalError", "etcd is away"), ValueError("spec text")]
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 1)
    await until(lambda: bench.value("reconcile_errors_total", reason="InternalError") == 1)
    bench.tasks.wake(KEY)
    await until(lambda: bench.value("reconcile_errors_total", reason="ValueError") == 1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ApiError(422, "Invalid", "status is too long"), "422 Invalid: status is too long"),
        (ValueError("s3://secret"), "ValueError in the operator"),
    ],
)
async def test_a_job_that_cannot_be_looked_at_again_and_again_says_so_once(
    bench: Bench, error: Exception, told: str
) -> None:
    """P4; and P11: the text of a foreign error may quote the spec."""
    bench.outcomes = [error] * (ERRORS_TO_TELL + 2)
    for looks in range(1, ERRORS_TO_TELL + 3):
        bench.tasks.wake(KEY)
        await until(lambda looks=looks: bench.one.looks == looks)
        await until(lambda: bench.tasks.oldest_pass_seconds() == 0.0)
        assert len(bench.one.troubles) == (looks >= ERRORS_TO_TELL)
    assert f"failed {ERRORS_TO_TELL} times in a row" in bench.one.troubles[0]
    assert told in bench.one.troubles[0]
    assert "secret" not in bench.one.troubles[0]


async def test_log_of_an_error_has_no_text_of_the_spec(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """P11: the text of a foreign error may quote the spec."""
    bench.outcomes = [ValueError("s3://secret")]
    bench.tasks.wake(KEY)
    await until(lambda: caplog.records)
    (record,) = caplog.records
    assert "secret" not in record.getMessage()
    assert record.exc_info is None
    assert (record.job, record.reason) == ("tiny", "ValueError")  # type: ignore[attr-defined]


async def test_report_is_pulled_between_looks(bench: Bench) -> None:
    bench.outcomes = [Outcome(look_seconds=1000, report_seconds=0.001)]
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.after == 1)
    assert bench.one.looks == 1
    assert bench.value("report_pulls_total", result="ok") == 1


async def test_event_cuts_a_pull_short(bench: Bench) -> None:
    """A pod that died does not keep its replacement waiting for its report."""
    bench.outcomes = [Outcome(look_seconds=1000, report_seconds=0.001)]
    bench.tasks.wake(KEY)
    bench.one.pull_forever = True
    await until(lambda: bench.one.pulls == 1)
    bench.tasks.wake(KEY)
    await until(lambda: bench.one.looks == 2)
    assert bench.one.after == 0


async def test_a_report_of_which_nothing_comes_waits_for_no_slot(bench: Bench) -> None:
    """P4: with a thousand jobs, reports would else hold up what has happened to others."""
    again = Outcome(look_seconds=1000, report_seconds=0.001)
    bench.outcomes = [again]
    bench.tasks.wake(KEY)
    bench.one.heard = again
    await until(lambda: bench.one.pulls == 3)
    assert bench.one.after == 0
    bench.one.heard = None
    await until(lambda: bench.one.after == 1)


async def test_many_jobs_are_a_queue(bench: Bench) -> None:
    """A thousand jobs after a restart do not stampede, and wait as names: nothing is made for
    them."""
    hold, jobs = asyncio.Event(), STARTS_AT_ONCE_MAX * 3
    for number in range(jobs):
        bench.tasks.wake(JobKey("team", f"job-{number}"))
    assert len(bench.made) == STARTS_AT_ONCE_MAX
    assert bench.tasks.count_by_state().total() == jobs, "each is counted, also in the queue"
    assert bench.tasks.unfinished() == jobs
    assert bench.tasks.is_crowded()
    for reconciler in bench.made:
        reconciler.hold = hold
    await until(lambda: sum(r.looks for r in bench.made) == PASSES_AT_ONCE_MAX)
    now = asyncio.get_running_loop().time()
    waiting = [job for job in bench.tasks._jobs.values() if job.pass_since is None]
    assert len(waiting) == STARTS_AT_ONCE_MAX - PASSES_AT_ONCE_MAX, "to wait for a slot is no age"
    oldest = bench.tasks.oldest_pass_seconds()
    assert 0 < oldest <= asyncio.get_running_loop().time() - now + 1
    hold.set()
    await until(lambda: sum(r.looks for r in bench.made) == jobs)
    assert not bench.tasks.is_crowded()


async def test_job_in_the_queue_is_looked_at_once(bench: Bench) -> None:
    """Whatever its events said meanwhile, its first pass sees the world as it is then."""
    for number in range(STARTS_AT_ONCE_MAX):
        bench.tasks.wake(JobKey("team", f"job-{number}"))
    bench.tasks.job_changed(KEY, ("uid", 1))
    bench.tasks.job_changed(KEY, ("uid", 2))
    bench.tasks.wake(KEY)
    await until(lambda: KEY in bench.tasks._jobs)
    bench.tasks.job_changed(KEY, ("uid", 2))
    await until(lambda: bench.made[-1].looks)
    assert not bench.tasks._jobs[KEY].woken.is_set()
    assert [one.key for one in bench.made].count(KEY) == 1


async def test_close_stops_everything_and_nothing_starts_after(bench: Bench) -> None:
    bench.tasks.wake(KEY)
    bench.one.hold = asyncio.Event()
    await until(lambda: bench.one.looks)
    await bench.tasks.close()
    bench.tasks.wake(JobKey("team", "later"))
    assert len(bench.made) == 1
