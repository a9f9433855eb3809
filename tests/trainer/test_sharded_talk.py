"""What the writers of a gang say about one save: bounded, and never mixed with another save's."""

import errno
import threading

import pytest
from torch._C._distributed_c10d import HashStore, Store

from lmtraining_trainer.checkpoint import together
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.checkpoint.together import ENDED, WRITTEN, Line, Talk

pytestmark = pytest.mark.trainer


def talks(store: Store, ranks: int, step: int = 4) -> list[Talk]:
    return [Line(store, rank=r, world_size=ranks).talk(step, Pace(1.0)) for r in range(ranks)]


def test_what_is_told_is_heard_by_those_who_wait() -> None:
    lead, *others = talks(HashStore(), 3)
    heard: list[object] = []
    waiting = threading.Thread(target=lambda: heard.extend(lead.hear_all(WRITTEN)))
    waiting.start()
    for rank, other in reversed([*enumerate(others, 1)]):
        other.tell(WRITTEN, files={"part": rank})
    waiting.join(30)
    assert heard == [{"files": {"part": 1}}, {"files": {"part": 2}}]


def test_one_failure_is_everybodys_and_the_first_one_counts() -> None:
    lead, one, two = talks(HashStore(), 3)
    with pytest.raises(OSError), one.telling_failure():
        raise OSError(errno.ENOSPC, "No space left on device")
    for talk in (lead, two):
        with (
            pytest.raises(OSError, match="rank 1: No space left") as raised,
            talk.telling_failure(),
        ):
            talk.hear(ENDED, 0)
        assert raised.value.errno == errno.ENOSPC


def test_a_silent_rank_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SILENCE_SECONDS_MAX", 0.2)
    lead, _ = talks(HashStore(), 2)
    with pytest.raises(OSError, match="rank 1 has not come on for 0 s"):
        lead.hear(WRITTEN, 1)


def test_a_rank_that_comes_on_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its turns are the life of the one that waits."""
    monkeypatch.setattr(together, "ALIVE_SECONDS", 0.0)
    pace = Pace(1.0)
    store = HashStore()
    lead = Line(store, rank=0, world_size=2).talk(4, pace)
    theirs = Pace(1.0)
    other = Line(store, rank=1, world_size=2).talk(4, theirs)

    def work() -> None:
        while pace.turns < 3:
            theirs.turn()
        other.tell(WRITTEN)

    working = threading.Thread(target=work)
    working.start()
    assert lead.hear(WRITTEN, 1) == {}
    working.join(30)
    assert pace.turns >= 3


def test_the_words_of_another_save_are_not_met() -> None:
    store = HashStore()
    line, other = (Line(store, rank=rank, world_size=2) for rank in range(2))
    other.talk(4, Pace(1.0)).tell(WRITTEN, files={})
    first = line.talk(4, Pace(1.0))
    assert first.hear(WRITTEN, 1) == {"files": {}}
    again = line.talk(4, Pace(1.0))  # the same step, after a rewind
    other.talk(4, Pace(1.0)).tell(WRITTEN, files={"new": 1})
    assert again.hear(WRITTEN, 1) == {"files": {"new": 1}}


def test_nothing_is_left_once_it_is_forgotten() -> None:
    store = HashStore()
    lead, other = talks(store, 2)
    lead.tell(ENDED)
    other.tell(WRITTEN)
    assert store.num_keys() > 0
    lead.forget()
    assert store.num_keys() == 0
