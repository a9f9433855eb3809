"""Gangs: ranks agree before they act, wait alive, and notice who went away."""

import socket
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from lmtraining_api import FailureClass
from lmtraining_trainer import gang as gang_module
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.voice import Voice
from tests.trainer.rank_support import (
    Faults,
    LocalLink,
    free_port,
    job_of,
    place_of,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer


def test_a_lead_that_fails_fails_the_others_at_once(tmp_path: Path) -> None:
    """The lead knows why; the others point at it, so that one failure is one failure."""
    job = job_of(tiny_spec("file:///nowhere.jsonl", world_size=4), tmp_path)
    started = time.monotonic()
    lead, *others = run_gang(job, 4)
    assert (lead.failure_class, lead.reason) == (FailureClass.DATA, "NoSuchFile")
    for outcome in others:
        assert outcome.failure_class is FailureClass.PEER_LOST
        # Whichever comes first: its last word, or the end of its connection.
        assert (
            "rank 0 failed while it did: prepare the data" in outcome.message
            or "a connection broke" in outcome.message
        )
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("rank", [0, 1])
def test_p3_one_ranks_wish_to_stop_is_everybodys(tmp_path: Path, rank: int) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2), tmp_path)
    outcomes = run_gang(job, 2, faults=Faults(stop_at={rank: 2}))
    assert [(outcome.end, outcome.step) for outcome in outcomes] == [("preempted", 3)] * 2
    assert outcomes[0].link.states[-2:] == ["Training", "Stopping"]


def test_a_stop_before_the_first_step_ends_all_ranks(tmp_path: Path) -> None:
    """A follower's wish reaches a lead that is busy with the data."""
    uri = write_text(tmp_path / "text.jsonl", documents=20_000)
    job = job_of(tiny_spec(uri, world_size=2), tmp_path)
    outcomes = run_gang(job, 2, faults=Faults(stop_at={1: -1}))
    assert [(outcome.end, outcome.step) for outcome in outcomes] == [("preempted", 0)] * 2
    assert not list((tmp_path / "cache").iterdir())


def test_ranks_that_wait_for_the_data_say_that_they_live(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl", documents=20_000)
    job = job_of(tiny_spec(uri, world_size=2, training={"budget": {"steps": 1}}), tmp_path)
    lead, other = run_gang(job, 2)
    assert (lead.end, other.end) == ("finished", "finished")
    messages = [update.fields.get("message", "") for update in lead.link.updates]
    assert any(message.startswith("tokenised ") for message in messages)
    assert sum(update.state == "Preparing" for update in other.link.updates) >= 2


def test_a_killed_lead_is_noticed_while_others_wait_for_it(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2), tmp_path)
    lead, other = run_gang(job, 2, faults=Faults(kill_at={0: 3}))
    assert lead.end == "died"
    assert (other.end, other.reason) == ("error", "PeerLost")
    assert other.step is not None and 2 <= other.step <= 3
    assert "lost a peer after step" in other.message


def test_p1_an_older_gang_never_meets_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the address of the newer lead and finds nothing there that is meant for it."""
    monkeypatch.setattr(gang_module, "LEAD_SILENCE_SECONDS_MAX", 1.0)
    monkeypatch.setattr(gang_module, "MEET_SECONDS_MAX", 6.0)
    port, errors = free_port(), []

    def newer_lead() -> None:
        try:
            Gang.meet("uid", place_of(0, 2, attempt=2, port=port), Voice(LocalLink()))
        except TrainerError as error:
            errors.append(error)

    lead = threading.Thread(target=newer_lead)
    lead.start()
    link = LocalLink(rank=1)
    with pytest.raises(TrainerError, match="rank 0 fell silent") as raised:
        Gang.meet("uid", place_of(1, 2, attempt=1, port=port), Voice(link))
    assert raised.value.failure_class is FailureClass.PEER_LOST
    assert link.updates  # it waited alive
    lead.join(30)
    assert [error.message.partition(": ")[2] for error in errors] == [
        "1 of 2 ranks did not come; that rank's own record says why"
    ]


def test_a_lead_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_module, "MEET_SECONDS_MAX", 1.0)
    port = free_port()
    with pytest.raises(TrainerError, match=rf"does not answer at 127.0.0.1 port {port}"):
        Gang.meet("uid", place_of(1, 2, port=port), Voice(LocalLink(rank=1)))


@pytest.mark.parametrize("stop", [False, True])
def test_a_port_that_accepts_and_hangs_up_is_given_up(
    monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    monkeypatch.setattr(gang_module, "MEET_SECONDS_MAX", 600.0 if stop else 1.0)
    monkeypatch.setattr(gang_module, "CONNECT_SECONDS_MAX", 0.5)
    monkeypatch.setattr(gang_module, "_store", _hung_up_on)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        link = LocalLink(rank=1, faults=Faults(stop_at={1: -1} if stop else {}))
        with pytest.raises(Preempted if stop else TrainerError):
            Gang.meet("uid", place_of(1, 2, port=port), Voice(link))
    assert link.updates  # it tried alive


def _hung_up_on(*_: object) -> None:
    raise dist.DistNetworkError("connection reset by peer")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TrainerError, match=f"cannot listen on port {port}"):
            Gang.meet("uid", place_of(0, 2, port=port), Voice(LocalLink()))
