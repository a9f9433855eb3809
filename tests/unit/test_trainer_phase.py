"""What a rank does, as its supervisor reads it."""

from pathlib import Path
from typing import get_args

import pytest

from lmtraining_api import State, Wishes
from lmtraining_trainer.phase import PHASE_OF_STATE, Phase, PhaseReader, PhaseWriter
from lmtraining_trainer.voice import Voice

pytestmark = pytest.mark.unit

OF_THE_SUPERVISOR = {"Waiting", "Failed", "Unknown"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reader(tmp_path: Path) -> PhaseReader:
    return PhaseReader(tmp_path / "phases", now=0.0)


@pytest.fixture
def writer(tmp_path: Path, reader: PhaseReader, clock: Clock) -> PhaseWriter:
    return PhaseWriter(tmp_path / "phases", clock)


def lived(writer: PhaseWriter, clock: Clock, *phases: tuple[Phase, float]) -> None:
    for phase, seconds in phases:
        writer.enter(phase)
        clock.now += seconds


def test_a_rank_that_never_wrote_starts_since_it_was_made(tmp_path: Path) -> None:
    sign = PhaseReader(tmp_path / "phases", now=7.0).sign()
    assert (sign.phase, sign.at) == (Phase.STARTUP, 7.0)
    assert not any(sign.longest.values())


def test_the_supervisor_reads_phase_time_and_the_longest_of_each(
    reader: PhaseReader, writer: PhaseWriter, clock: Clock
) -> None:
    lived(writer, clock, (Phase.OTHER, 0.0), (Phase.DATA, 1.0), (Phase.FORWARD, 3.0))
    lived(writer, clock, (Phase.DATA, 0.5), (Phase.FORWARD, 2.0))
    sign = reader.sign()
    assert (sign.phase, sign.at) == (Phase.FORWARD, 4.5)
    assert (sign.longest[Phase.DATA], sign.longest[Phase.FORWARD]) == (1.0, 3.0)
    assert sign.longest[Phase.OPTIMIZER] == 0.0


def test_a_sign_of_life_within_a_phase_parts_it(
    reader: PhaseReader, writer: PhaseWriter, clock: Clock
) -> None:
    lived(writer, clock, (Phase.OTHER, 0.0), (Phase.EVAL, 2.0))
    writer.alive()
    clock.now += 3.0
    writer.enter(Phase.OTHER)
    assert reader.sign().longest[Phase.EVAL] == 3.0


def test_what_came_before_the_steps_says_nothing_about_them(
    reader: PhaseReader, writer: PhaseWriter, clock: Clock
) -> None:
    lived(writer, clock, (Phase.COLLECTIVE, 50.0), (Phase.STARTUP, 60.0), (Phase.OTHER, 1.0))
    assert not any(reader.sign().longest.values())
    lived(writer, clock, (Phase.COLLECTIVE, 2.0), (Phase.OTHER, 0.0))
    assert reader.sign().longest[Phase.COLLECTIVE] == 2.0


def test_another_round_begins_anew_beside_a_writer_that_lives(
    tmp_path: Path, writer: PhaseWriter, clock: Clock
) -> None:
    again = PhaseReader(tmp_path / "phases", now=9.0)
    lived(writer, clock, (Phase.SAVE, 1.0))
    assert (again.sign().phase, again.sign().at) == (Phase.STARTUP, 9.0)


def test_every_state_of_a_rank_begins_with_a_phase() -> None:
    assert set(get_args(State)) - OF_THE_SUPERVISOR == set(PHASE_OF_STATE)


class Link:
    """Remembers the phases."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def say(self, state: State, **fields: object) -> None: ...

    def enter(self, phase: Phase) -> None:
        self.phases.append(phase)

    def stop_requested(self) -> bool:
        return False

    def wishes(self) -> Wishes | None:
        return None


def test_a_voice_goes_back_to_the_phase_it_was_in() -> None:
    link = Link()
    voice = Voice(link)
    voice.say("Evaluating")
    with voice.during(Phase.COLLECTIVE):
        voice.alive()
    with pytest.raises(ValueError, match="odd"), voice.during(Phase.COLLECTIVE):
        raise ValueError("odd")
    voice.say("Training")
    assert link.phases == ["eval", "collective", "eval", "collective", "eval", "other"]
