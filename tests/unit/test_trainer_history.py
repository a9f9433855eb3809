"""The past of a run: bounded, true after a rewind, and gone on with by a later attempt."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lmtraining_api import RemedyReport, TrainerReport
from lmtraining_api.history import HISTORY_FILE, POINTS_MAX, Point, RunHistory, point_of
from lmtraining_trainer.history import PAST_LINES_MAX, Curve, History

pytestmark = pytest.mark.unit

LONG = 20 * POINTS_MAX
"""Steps of a run of which most are no point of their own."""
BEGAN = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def report(step: int, loss: float | None = None, **values: object) -> TrainerReport:
    now = BEGAN + timedelta(seconds=step)
    given = {
        "job_uid": "u", "attempt": 1, "round": 1, "state": "Training", "report_time": now,
        "step": step, "total_steps": 100_000, "step_time": now if step else None,
        "loss": 1000.0 / step if loss is None and step else loss, "gradient_norm": 0.5,
        "learning_rate": 6e-4, "tokens_per_second": 1e4,
    }  # fmt: skip
    return TrainerReport.model_validate(given | values)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def history(directory: Path, clock: Clock | None = None) -> History:
    return History(directory, job_uid="u", job_name="tiny", clock=clock or Clock())


def test_a_long_run_stays_bounded_and_keeps_its_extremes(tmp_path: Path) -> None:
    kept = history(tmp_path)
    for step in range(1, LONG + 1):
        kept.hear(report(step, loss=50.0 if step == LONG * 3 // 4 else None))
    found = kept.document()
    assert POINTS_MAX // 2 <= len(found.points) <= POINTS_MAX
    assert found.points[-1].step == LONG
    assert max(point.loss_max or 0.0 for point in found.points[10:]) == 50.0
    steps = [point.step for point in found.points]
    assert steps == sorted(set(steps))
    last = found.points[-1]
    assert last.loss == pytest.approx(1000.0 / LONG, rel=2e-3)
    assert len(found.model_dump_json(by_alias=True, exclude_none=True)) < 256 * 1024


def test_steps_that_are_done_again_replace_what_was_said_first(tmp_path: Path) -> None:
    kept = history(tmp_path)
    for step in range(1, 51):
        kept.hear(report(step))
    done = RemedyReport(
        remedy="Rewind", fault="Divergence", step=50, to_step=30, message="loss 9", time=BEGAN
    )
    for step in range(31, 36):
        kept.hear(
            report(step, loss=7.0, step_time=BEGAN + timedelta(hours=1, seconds=step),
                   last_remedy=done)
        )  # fmt: skip
    found = kept.document()
    assert [point.step for point in found.points] == list(range(1, 36))
    assert {point.loss for point in found.points[30:]} == {7.0}
    assert [(one.kind, one.step) for one in found.happenings] == [("Start", 1), ("Rewind", 50)]


def test_validation_belongs_to_its_step_and_a_loss_that_is_not_finite_is_absent() -> None:
    kept = History(Path("unused"), clock=Clock())
    kept.hear(report(1))
    kept.hear(report(2, loss_is_finite=False).model_copy(update={"loss": None}))
    kept.hear(report(2, validation_loss=3.5, validation_step=2))
    first, second = kept.document().points
    assert (first.validation_loss, second.validation_loss) == (None, 3.5)


def test_a_round_is_told_with_its_cause(tmp_path: Path) -> None:
    kept = history(tmp_path)
    kept.hear(report(3))
    fault = {
        "round": 1, "failure_class": "Crash", "reason": "Crash", "message": "rank 1 died",
        "step": 3, "time": BEGAN,
    }  # fmt: skip
    kept.hear(report(3, round=2, last_fault=fault))
    assert kept.document().happenings[-1].message == "round 2 after rank 1 died"


def test_lines_come_ever_more_rarely(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One percent of the time since the start, and the newest step is always told at the end."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    kept = history(tmp_path, clock)
    for step in range(1, 2001):
        clock.now = step * 10.0
        kept.hear(report(step))
    kept.close()
    points = [point_of(line, BEGAN) for line in caplog.messages]
    assert 300 < len(points) < 600
    assert points[-1] is not None
    assert points[-1].step == 2000
    assert points[-1].loss == pytest.approx(0.5)


def test_a_later_attempt_goes_on_from_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = history(tmp_path)
    for step in range(1, 501):
        first.hear(report(step))
    first.close()
    written = RunHistory.model_validate_json((tmp_path / HISTORY_FILE).read_bytes())
    assert [point.step for point in written.points] == list(range(1, 501))
    caplog.set_level(logging.INFO)
    second = history(tmp_path)
    second.read()
    past = [point_of(line, BEGAN) for line in caplog.messages]
    assert 0 < len(past) <= PAST_LINES_MAX
    assert past[0] is not None
    assert past[0].time == written.points[0].time, "when it was, not when it is told"
    second.hear(report(401, attempt=2))
    assert [point.step for point in second.document().points] == list(range(1, 402))


def test_a_broken_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_text('{"points": [')
    kept = history(tmp_path)
    kept.read()
    kept.hear(report(1))
    assert len(kept.document().points) == 1


def test_a_pod_that_does_not_lead_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kept = History(None)
    kept.read()
    kept.hear(report(1))
    kept.close()
    assert not caplog.messages


def test_points_of_twice_the_length_mean_the_same() -> None:
    curve = Curve(points=[], stride=4)
    for step in range(1, 9):
        curve.add(report_point(step))
    first, second = curve.points
    assert (first.step, first.loss, first.loss_min, first.loss_max) == (4, 2.5, 1.0, 4.0)
    assert (second.step, second.loss) == (8, 6.5)


def report_point(step: int) -> Point:
    return Point(step=step, time=BEGAN, loss=float(step))


def test_p4_the_history_of_a_run_that_is_not_ours_yet_is_left_alone(tmp_path: Path) -> None:
    """Two jobs with one checkpoint.path: the second is refused, and has said a little before."""
    theirs = history(tmp_path)
    for step in range(1, 9):
        theirs.hear(report(step))
    theirs.close()
    before = (tmp_path / HISTORY_FILE).read_bytes()
    clock = Clock()
    ours = History(tmp_path, job_uid="other", job_name="other", clock=clock)
    ours.read()
    for seconds in (0.0, 1000.0):
        clock.now = seconds
        ours.hear(report(0, state="Starting", job_uid="other"))
    ours.close()
    assert (tmp_path / HISTORY_FILE).read_bytes() == before
