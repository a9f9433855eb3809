"""The operator keeps its promises in every world that a seed can draw: P1 to P5, P10, P12."""

import os

import pytest
from rich.console import Console

from tests.simulation.life import draw, live
from tests.simulation.many import coverage, story_of, tally_all

pytestmark = pytest.mark.simulation

SCHEDULES = int(os.environ.get("LMTRAINING_SIMULATION_SCHEDULES", "2000"))
FIRST = int(os.environ.get("LMTRAINING_SIMULATION_SEED", "0"))


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


def test_equal_schedules_are_equal_lives() -> None:
    """Else no seed could be looked at again."""
    for seed in range(5):
        assert live(draw(seed)).story == live(draw(seed)).story
