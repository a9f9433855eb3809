"""The operator keeps its promises in every world that a seed can draw: P1 to P5, P10, P12."""

import os

import pytest
from rich.console import Console

from tests.simulation.cluster import REMOVED_SECONDS
from tests.simulation.life import Fault, Schedule, draw, live
from tests.simulation.many import coverage, story_of, tally_all
from tests.simulation.world import Shape

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


def test_a_node_that_tells_of_broken_hardware_is_avoided() -> None:
    """By the next pod already: the node itself is evidence enough."""
    life = live(Schedule(1, Shape(), (Fault("device breaks", "Training", 0.3, 1),)))
    assert not life.violations, life.told()
    assert (life.outcome["state"], len(life.outcome["avoided"])) == ("Completed", 1)


def test_a_node_that_is_out_of_service_is_not_waited_for() -> None:
    """The same machine is waited for 90 s and longer where nobody says that it is off."""
    fault = Fault("node is out of service", "Training", 0.3, 1)
    life = live(Schedule(1, Shape(replicas=3), (fault,)))
    assert not life.violations, life.told()
    said = [(time, text.strip()) for time, text in life.story]
    declared = next(time for time, text in said if text.endswith("is declared out of service"))
    forced = [t for t, text in said if text.startswith("operator: deleted Pod") and t > declared]
    assert forced, life.told()
    assert forced[0] - declared < REMOVED_SECONDS / 2
