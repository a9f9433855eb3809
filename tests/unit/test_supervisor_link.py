"""The line between a rank and its supervisor: never in the way of training, never misunderstood."""

import json
import math
import multiprocessing
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtraining_api import CheckpointReport, FailureClass, Wishes
from lmtraining_api.report_parts import labels_shown
from lmtraining_trainer.phase import PhaseReader, PhaseWriter
from lmtraining_trainer.rank_link import RankUpdate
from lmtraining_trainer.supervisor.failure import RankEnd
from lmtraining_trainer.supervisor.rank_process import (
    UPDATE_BYTES_MAX,
    PipeLink,
    decoded,
    encoded_update,
    load_function,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _link(sender: Connection, directory: Path) -> PipeLink:
    path = directory / "phases"
    PhaseReader(path, now=0.0)
    return PipeLink(sender, PhaseWriter(path), path.with_name("wishes.json"))


def _fields(body: bytes) -> dict[str, Any]:
    update = decoded(body, rank=0)
    assert isinstance(update, RankUpdate)
    return update.fields


def test_a_full_pipe_does_not_hold_training_up_and_nothing_is_lost(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    link = _link(sender, tmp_path)
    for step in range(5_000):  # far more than a pipe holds
        link.say("Training", step=step, **({"resumed_from_step": 7} if step == 4_000 else {}))
    said = []
    while receiver.poll(0):
        said.append(_fields(receiver.recv_bytes()))
    assert 0 < len(said) < 5_000
    link.say("Checkpointing", loss=1.0)
    last = _fields(receiver.recv_bytes())
    assert last == {"step": 4_999, "resumed_from_step": 7, "loss": 1.0}
    link.say("Training", step=5_000)
    assert _fields(receiver.recv_bytes()) == {"step": 5_000}


def test_a_supervisor_that_is_gone_is_not_the_ranks_error(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    receiver.close()
    link = _link(sender, tmp_path)
    link.say("Training", step=1)
    link.say_end(RankEnd(rank=0, outcome="Finished", time=0.0))


def test_what_is_not_json_crosses_as_json() -> None:
    checkpoint = CheckpointReport(step=1, path="p", time=NOW, size_bytes=2, sha256="s")
    fields = _fields(
        encoded_update(
            "Training",
            {
                "loss": np.float32(1.5),
                "step": np.int64(3),
                "gradient_norm": math.nan,
                "step_time": NOW,
                "checkpoint": checkpoint,
                "odd": object(),
            },
        )
    )
    assert (fields["loss"], fields["step"], fields["odd"]) == (1.5, 3, "<object>")
    assert math.isnan(fields["gradient_norm"])
    assert datetime.fromisoformat(fields["step_time"]) == NOW
    assert CheckpointReport.model_validate(fields["checkpoint"]) == checkpoint


def test_labels_of_any_script_are_told() -> None:
    """P4: of those that fit, as many as fit, and how many more."""
    labels = [f"{number:02}" + "語" * 20 for number in range(60)]
    shown = labels_shown(labels)
    assert shown[:-1] == labels[: len(shown) - 1]
    assert len(shown) > 10
    assert shown[-1] == f"and {60 - (len(shown) - 1)} more"
    fields = {"labels": shown, "message": "m" * 500, "step": 0}
    assert _fields(encoded_update("Training", fields)) == fields


def test_no_word_is_longer_than_a_pipe_takes_at_once(caplog: pytest.LogCaptureFixture) -> None:
    body = encoded_update("Training", {"message": "語" * 5000, "step": 3})
    assert len(body) <= UPDATE_BYTES_MAX
    assert _fields(body) == {"step": 3}
    body = encoded_update("Training", {"export_path": "x" * 5000, "message": "whole", "step": 3})
    assert _fields(body) == {"message": "whole", "step": 3}, "P4: what fits is not left out"
    assert "the report goes without export_path" in caplog.text
    body = encoded_update("Training", {"export_path": "x" * 5000})
    assert (len(body) <= UPDATE_BYTES_MAX, _fields(body)) == (True, {})


def test_an_end_crosses_whole(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    end = RankEnd(
        rank=3,
        outcome="Failed",
        time=1.5,
        failure_class=FailureClass.DATA,
        reason="EmptyData",
        message="語" * 1024,
        frames=("a.py:1 f", "b.py:2 g"),
    )
    _link(sender, tmp_path).say_end(end)
    assert decoded(receiver.recv_bytes(), rank=3) == end


def test_a_rank_function_is_named_by_its_path() -> None:
    assert load_function("json:dumps") is json.dumps


def test_a_wish_is_read_when_it_is_another_one(tmp_path: Path) -> None:
    """The same object until then: the loop asks at every step."""
    _, sender = multiprocessing.Pipe(duplex=False)
    place = _link(sender, tmp_path)
    assert place.wishes() is None
    path = tmp_path / "wishes.json"
    for steps in (40, 50):
        path.with_suffix(".new").write_text(
            Wishes(generation=1, budget_steps=steps).model_dump_json()
        )
        path.with_suffix(".new").rename(path)
        found = place.wishes()
        assert found is not None
        assert found.budget_steps == steps
        assert place.wishes() is found
