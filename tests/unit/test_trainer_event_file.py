"""The event files in a run directory, as TensorBoard itself reads them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from lmtraining_api.history import Point, RunHistory
from lmtraining_trainer.event_file import DIRECTORY, EventFiles

pytestmark = pytest.mark.unit

BEGAN = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def history(last: int) -> RunHistory:
    points = [
        Point(
            step=step,
            time=BEGAN + timedelta(seconds=step),
            loss=10.0 / step,
            validation_loss=1.5 if step == 200 else None,
        )
        for step in range(1, last + 1)
    ]
    return RunHistory(points=points)


def curves(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    read = EventAccumulator(str(directory / DIRECTORY))
    read.Reload()
    return {
        tag: [(one.step, one.wall_time, one.value) for one in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_reads_the_curves_of_all_attempts_as_one(tmp_path: Path) -> None:
    first = EventFiles(tmp_path)
    for last in (50, 50, 100):
        first.follow(history(last))
    second = EventFiles(tmp_path)  # another attempt finds where the first one stood
    for last in (80, 150, 300):
        second.follow(history(last))
    found = curves(tmp_path)
    assert set(found) == {"loss", "validation_loss"}
    assert [step for step, _, _ in found["loss"]] == list(range(1, 301))
    step, time, value = found["loss"][99]
    assert (step, time) == (100, (BEGAN + timedelta(seconds=100)).timestamp())
    assert value == pytest.approx(0.1)
    assert [(s, v) for s, _, v in found["validation_loss"]] == [(200, 1.5)]
    assert len(list((tmp_path / DIRECTORY).glob("events.out.tfevents.*"))) == 2


def test_each_record_has_the_checksums_that_tensorboard_insists_on(tmp_path: Path) -> None:
    EventFiles(tmp_path).follow(history(3))
    (file,) = (tmp_path / DIRECTORY).glob("events.out.tfevents.*")
    events = list(EventFileLoader(str(file)).Load())
    assert [event.step for event in events] == [0, 1, 2, 3]
    assert events[0].file_version == "brain.Event:2"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # within the last record
    file.write_bytes(content)
    assert len(list(EventFileLoader(str(file)).Load())) == 3, "a damaged record is found out"


def test_a_figure_too_large_for_the_format_is_the_largest_there_is(tmp_path: Path) -> None:
    points = [Point(step=1, time=BEGAN, gradient_norm=1e300, loss=-1e300)]
    EventFiles(tmp_path).follow(RunHistory(points=points))
    found = curves(tmp_path)
    assert found["gradient_norm"][0][2] == pytest.approx(3.4028235e38)
    assert found["loss"][0][2] == pytest.approx(-3.4028235e38)


def test_nothing_new_makes_no_file(tmp_path: Path) -> None:
    files = EventFiles(tmp_path)
    files.follow(RunHistory())
    assert list(tmp_path.iterdir()) == []
