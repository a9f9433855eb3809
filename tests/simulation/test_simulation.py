"""The operator keeps its promises in every world that a seed can draw: P1 to P5, P10, P12."""

import os

import pytest
from rich.console import Console

from tests.simulation.life import Fault, Schedule, draw, live, minimised
from tests.simulation.many import coverage, story_of, tally_all
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.world import Shape

pytestmark = pytest.mark.simulation

SCHEDULES = int(os.environ.get("LMTRAINING_SIMULATION_SCHEDULES", "2000"))
FIRST = int(os.environ.get("LMTRAINING_SIMULATION_SEED", "0"))
SEEDS_PER_BUG_MAX = 1000


def test_every_life_keeps_the_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure tells the story of the first seed, with as few faults as show it; the table says
    that every fault has struck in every phase in which it can."""
    done = tally_all(FIRST, SCHEDULES)
    with capsys.disabled():
        console = Console(width=140)
        console.print()
        console.print(coverage(done.pairs))
        console.print(done.summary(), highlight=False)
    assert not done.failing, f"seeds {done.failing}:\n{story_of(done.failing[0])}"
    assert done.lives == SCHEDULES
    assert not done.missing()
    assert done.replaced > 0


@pytest.mark.parametrize("bug", sorted(MUTANTS))
def test_planted_bug_is_found(bug: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The oracles bite: what operators are known to get wrong does not get through."""
    with planted(bug):
        for seed in range(SEEDS_PER_BUG_MAX):
            life = live(draw(seed))
            if life.violations:
                with capsys.disabled():
                    Console().print(f"\n  seed {seed}: {bug}: {life.violations[0][:120]}")
                return
    raise AssertionError(f"not found by {SEEDS_PER_BUG_MAX} seeds")


def test_equal_schedules_are_equal_lives() -> None:
    """Else no seed could be looked at again."""
    for seed in range(5):
        assert live(draw(seed)).story == live(draw(seed)).story


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
