"""How old may the step in status be? The sum of the intervals, not a race against the clock."""

import random

import pytest

from lmtraining_operator.plan.writes import PROGRESS_SECONDS, REPORT_SECONDS_MIN
from lmtraining_operator.reconcile import AGAIN_SECONDS
from tests.unit.operator_world import World, job_body

pytestmark = pytest.mark.unit

STEP_SECONDS = 0.1
TRAINED_SECONDS = 300.0
WAKES_PER_STEP = 0.03
VISIBLE_SECONDS_MAX = 6.0
"""What is promised of a step, up to a request or two."""


async def age_of_steps(seed: int) -> list[float]:
    """Seconds from each step to the first status that has it: time is the world's, and events wake
    the operator whenever they like."""
    chance = random.Random(seed)
    world = World()
    world.add(job_body(training__budget__steps=1_000_000))
    operator = world.operator()
    await operator.look()
    world.start_all()
    outcome = await operator.look()
    taken: dict[int, float] = {}
    ages: list[float] = []
    now, look_at = 0.0, 0.0
    pull_at: float | None = None
    while now < TRAINED_SECONDS:
        now += STEP_SECONDS
        world.pass_time(STEP_SECONDS)
        world.train(steps=1)
        taken[world.step] = now
        if now >= look_at or chance.random() < WAKES_PER_STEP:
            outcome = await operator.look()
            look_at = now + outcome.look_seconds
        elif pull_at is not None and now >= pull_at:
            await operator.pull_report()
            outcome = await operator.after_report()
            look_at = min(look_at, now + outcome.look_seconds)
        else:
            continue
        pull_at = None if outcome.report_seconds is None else now + outcome.report_seconds
        shown = world.status.progress.step
        ages += [now - taken.pop(step) for step in list(taken) if step <= shown]
    return ages


@pytest.mark.parametrize("seed", range(3))
async def test_step_is_in_status_within_the_bound(seed: int) -> None:
    """P4: a write carries a report that is fresh, so a step waits for one write and not for a pull
    and a write."""
    ages = await age_of_steps(seed)
    assert len(ages) > TRAINED_SECONDS / STEP_SECONDS / 2
    granularity = STEP_SECONDS + AGAIN_SECONDS
    assert max(ages) <= PROGRESS_SECONDS + granularity < VISIBLE_SECONDS_MAX
    assert max(ages) > REPORT_SECONDS_MIN, "writes are coalesced at all"
