"""What operators are known to get wrong does not get through: the oracles bite.

Beside the schedules, not after them: the tests of a file stay in one process.
"""

import pytest
from rich.console import Console

from tests.simulation.life import Fault, Schedule, draw, live, minimised
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.world import Shape

pytestmark = pytest.mark.simulation

SEEDS_PER_BUG_MAX = 1000


@pytest.mark.parametrize("bug", sorted(MUTANTS))
def test_planted_bug_is_found(bug: str, capsys: pytest.CaptureFixture[str]) -> None:
    with planted(bug):
        for seed in range(SEEDS_PER_BUG_MAX):
            life = live(draw(seed))
            if life.violations:
                assert not any("raised" in one for one in life.violations), "broken, not found"
                with capsys.disabled():
                    Console().print(f"\n  seed {seed}: {bug}: {life.violations[0][:120]}")
                return
    raise AssertionError(f"not found by {SEEDS_PER_BUG_MAX} seeds")


def test_failing_life_is_told_with_few_faults() -> None:
    """What has nothing to do with it is left out, and the rest can be read."""
    bug = "a disruption is charged"
    needed = Fault("pod is drained", "Training", 0.3, 1)
    others = tuple(Fault("events come twice", phase, 0.0, 2) for phase in ("Pending", "Saving"))
    with planted(bug):
        life = minimised(Schedule(1, Shape(), (*others, needed)))
    assert life.schedule.faults == (needed,)
    told = life.told()
    assert "violated: 1 restarts are charged for 0 faults" in told
    assert "pod is drained in Training" in told
    assert "-- Recovering" in told
