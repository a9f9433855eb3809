"""P9: the time accounts add up to wall time, whatever happens to the ranks."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtraining_api import TimeAccounts
from lmtraining_trainer.accounts import CAUSE_OF_STATE, Accounts, Cause
from lmtraining_trainer.clock import Clock
from lmtraining_trainer.run import claim_run
from lmtraining_trainer.run.accounts_mark import MARK, MARK_SECONDS, Spent
from lmtraining_trainer.run.aside import Aside
from lmtraining_trainer.voice import Voice
from tests.trainer.rank_support import (
    Faults,
    LocalLink,
    job_of,
    place_of,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

ACTION_SECONDS_MAX = 3.0
#: Each figure of a report is rounded to a thousandth, and each start reads one that was.
ROUNDING_SECONDS = 0.05


class AtOnce(Aside):
    """Storage that takes no time."""

    def offer(self, write: Callable[[], object]) -> None:
        write()


@dataclass
class World:
    """A run whose clocks only the test moves, and what really happened in it."""

    directory: Path
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    elapsed: float = 0.0
    set_back: float = 0.0
    """How far somebody has set the wall clock back."""
    gangs: int = 0
    kills: int = 0
    trained: float = 0.0
    saved: float = 0.0
    voice: Voice = field(default_factory=lambda: Voice(LocalLink()))

    def start(self) -> None:
        self.gangs += 1
        self.voice = Voice(LocalLink())
        self.voice.accounts = Accounts(
            monotonic=lambda: self.elapsed, wall_time=self.wall_time, aside=AtOnce()
        )
        job = job_of(tiny_spec("file:///x"), self.directory)
        run = claim_run(job, place_of(attempt=self.gangs), now=self.wall_time)
        self.takes(0.25)  # of a slow disk
        self.voice.accounts.open(run)
        self.takes(0.5)
        if self.gangs > 1:
            self.load()
        self.voice.say("Training")
        self.takes(2.0)
        self.voice.accounts.stepped()  # the first one is not in the figures of the others
        self.voice.say("Training")

    def act(self, kind: str, seconds: float) -> None:
        voice = self.voice
        match kind:
            case "step":
                with voice.accounts.during("data_wait"):
                    self.takes(seconds / 10)
                self.takes(seconds)
                voice.accounts.stepped()
                self.trained += seconds
                voice.say("Training")
            case "skip":
                self.takes(seconds)
            case "evaluate":
                voice.say("Evaluating")
                self.takes(seconds)
            case "save":
                voice.say("Checkpointing")
                self.takes(seconds)
                self.saved = self.trained
            case "rewind":
                voice.say("Loading")
                self.takes(seconds)
                self.load()
        voice.say("Training")

    def load(self) -> None:
        self.voice.say("Loading")
        self.voice.accounts.loaded(self.saved)
        self.trained = self.saved

    def end(self, how: str, seconds: float) -> None:
        """However the ranks end; the next ones start after so many seconds."""
        if how == "stop":
            self.act("save", 0.5)
            self.voice.accounts.close()
        else:
            self.kills += 1
        if how == "node dies":
            (self.directory / "run" / MARK).unlink()
        self.takes(seconds)

    def wall_time(self) -> datetime:
        return self.began + timedelta(seconds=self.elapsed - self.set_back)

    def takes(self, seconds: float) -> None:
        self.elapsed += seconds


SECONDS = st.floats(0.0, ACTION_SECONDS_MAX)
ACTION = st.tuples(st.sampled_from(["step", "step", "skip", "evaluate", "save", "rewind"]), SECONDS)
GANG = st.tuples(
    st.lists(ACTION, max_size=20),
    st.sampled_from(["kill", "kill", "node dies", "stop"]),
    st.floats(0.0, 100.0),
)


@settings(max_examples=40, deadline=None)
@given(gangs=st.lists(GANG, min_size=1, max_size=5))
def test_p9_any_history_adds_up(gangs: list[tuple[list[tuple[str, float]], str, float]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory))
        node_deaths, dead_seconds, stopped_seconds = 0, 0.0, 0.0
        for actions, how, pause in gangs:
            world.start()
            for kind, seconds in actions:
                world.act(kind, seconds)
            world.end(how, pause)
            node_deaths += how == "node dies"
            if how == "stop":
                stopped_seconds += pause
            else:
                dead_seconds += pause
        world.start()
        spent = world.voice.accounts.seconds()
    assert spent.wall_seconds == pytest.approx(world.elapsed, abs=ROUNDING_SECONDS)
    assert all(seconds >= 0.0 for _, seconds in spent)
    assert spent.stopped == pytest.approx(stopped_seconds, abs=ROUNDING_SECONDS)
    assert spent.recovery >= dead_seconds - ROUNDING_SECONDS
    assert spent.productive <= world.trained + ROUNDING_SECONDS
    if not node_deaths:
        unmarked = world.kills * (MARK_SECONDS + 2 * ACTION_SECONDS_MAX)
        assert spent.productive >= world.trained - unmarked - ROUNDING_SECONDS


def test_p9_lost_steps_are_no_longer_productive_at_once(tmp_path: Path) -> None:
    """Not only when they have been done again, which a diverged run never does."""
    world = World(tmp_path)
    world.start()
    for kind in ("step", "save", "step", "step", "rewind"):
        world.act(kind, 2.0)
    spent = world.voice.accounts.seconds()
    assert (spent.productive, spent.replayed_steps, spent.recovery) == (2.0, 4.0, 2.0)
    assert (spent.checkpoint, spent.data_wait, spent.compile) == (2.0, 0.6, 2.0)


def test_p9_a_wall_clock_set_back_makes_no_negative_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    world.act("step", 3.0)
    world.act("save", 1.0)
    world.end("kill", 10.0)
    world.set_back = 3600.0
    world.start()
    spent = world.voice.accounts.seconds()
    assert (spent.recovery, spent.productive) == (0.0, 3.0)
    assert all(seconds >= 0.0 for _, seconds in spent)
    world.end("kill", 10.0)
    world.start()
    assert world.voice.accounts.seconds().recovery == pytest.approx(10.0)


def test_p9_a_replaced_gang_that_lives_on_does_not_touch_the_accounts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    old = world.voice
    world.end("kill", 5.0)
    world.start()
    known = world.voice.accounts.seconds()
    world.takes(5.0)
    old.say("Training")  # writes its mark over the newer one
    assert json.loads((tmp_path / "run" / MARK).read_text())["start"] == 0
    world.start()
    spent = world.voice.accounts.seconds()
    assert spent.recovery >= known.recovery + 5.0
    assert spent.wall_seconds == pytest.approx(world.elapsed, abs=ROUNDING_SECONDS)


def test_a_job_that_takes_a_run_over_has_accounts_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    world.act("step", 3.0)
    world.act("save", 1.0)
    checkpoint = {"existingRun": "Resume", "path": "x"}
    job = job_of(tiny_spec("file:///x", checkpoint=checkpoint), tmp_path, uid="uid-2")
    accounts = Accounts(monotonic=lambda: world.elapsed, wall_time=world.wall_time)
    accounts.open(claim_run(job, place_of(), now=world.wall_time))
    accounts.loaded(world.saved)
    assert accounts.seconds().wall_seconds == 0.0
    world.takes(1.0)
    accounts.loaded(world.saved - 1.0)
    assert accounts.seconds().replayed_steps == 0.0  # those seconds were the other job's


def test_no_more_is_moved_than_there_is() -> None:
    clock = Clock(state="a", since=0.0, past_seconds={"b": 2.0}).moved("b", "c", 5.0)
    assert clock.seconds(1.0) == {"a": 1.0, "b": 0.0, "c": 2.0}


def test_every_cause_is_a_field_of_the_report() -> None:
    assert set(get_args(Cause)) == set(TimeAccounts.model_fields)
    assert set(CAUSE_OF_STATE.values()) <= set(get_args(Cause))


def test_p9_kills_and_restarts_of_real_ranks_add_up(tmp_path: Path) -> None:
    """Against the wall clock: from the first start in the journal to the last mark."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2), tmp_path)
    kills = (Faults(kill_at={1: 5}), Faults(kill_at={0: 7}), Faults(kill_at={0: 10}), Faults())
    all_dead = []
    for attempt, faults in enumerate(kills, 1):
        outcomes = run_gang(job, 2, attempt=attempt, faults=faults)
        all_dead.append(datetime.now(UTC))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    starts = [
        datetime.fromisoformat(str(entry["time"]))
        for entry in journal(tmp_path)
        if entry["kind"] == "Started"
    ]
    mark = Spent.model_validate_json((tmp_path / "run" / MARK).read_bytes())
    spent = mark.accounts
    wall_seconds = (mark.as_of - starts[0]).total_seconds()
    assert spent.wall_seconds == pytest.approx(wall_seconds, abs=1.0), spent
    dead = (start - end for end, start in zip(all_dead, starts[1:], strict=False))
    assert spent.recovery > sum(pause.total_seconds() for pause in dead)
    assert min(spent.productive, spent.startup, spent.compile, spent.checkpoint) > 0.0
    assert spent.evaluation > 0.0
    assert spent.stopped == 0.0

    told = TimeAccounts.model_validate(outcomes[0].link.report["accounts"])
    assert told.productive == spent.productive
    assert told.goodput is not None and 0.0 < told.goodput < 1.0
    again = run_gang(job, 2, attempt=5)[0].link.report["accounts"]
    assert TimeAccounts.model_validate(again) == told, "a finished run says what it was"
