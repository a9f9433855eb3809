"""What a tracker has not been told yet: each step once, whatever befalls run and tracker."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from lmtraining_api.history import POINTS_MAX, Happening, Point, RunHistory
from lmtraining_trainer.history import Curve
from lmtraining_trainer.unsent import Position, Reading, unsent

pytestmark = pytest.mark.unit

BEGAN = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def point(step: int, *, second: int | None = None, **values: float) -> Point:
    time = BEGAN + timedelta(seconds=step if second is None else second)
    return Point(step=step, time=time, **{"loss": 10.0 / step, **values})


def history(*points: Point, rewound_at: int | None = None) -> RunHistory:
    happenings = []
    if rewound_at is not None:
        time = BEGAN + timedelta(seconds=rewound_at)
        happenings = [Happening(step=1, time=time, kind="Rewind")]
    return RunHistory(points=list(points), happenings=happenings)


def told(*histories: RunHistory, readings_max: int = 1000) -> list[Reading]:
    """What a tracker hears that looks at one history after the other."""
    found, position = [], Position()
    for one in histories:
        while True:
            readings, position = unsent(one, position, readings_max=readings_max)
            if not readings:
                break
            found += readings
    return found


def steps(readings: list[Reading], name: str = "loss") -> list[int]:
    return [one.step for one in readings if name in one.values]


@pytest.mark.parametrize("readings_max", [1, 3, 1000])
def test_each_step_is_told_once_however_often_one_looks(readings_max: int) -> None:
    first = history(*(point(step) for step in range(1, 6)))
    later = history(*(point(step) for step in range(1, 12)))
    found = told(first, first, later, later, readings_max=readings_max)
    assert steps(found) == list(range(1, 12))
    assert found[3].values == {"loss": 2.5}
    assert found[3].time == BEGAN + timedelta(seconds=4)


def test_steps_done_again_after_a_fault_are_not_told_again() -> None:
    before = history(*(point(step) for step in range(1, 11)))
    again = [point(step, second=100 + step) for step in range(6, 9)]
    after = history(*(point(step) for step in range(1, 6)), *again)
    rest = history(*after.points, *(point(step, second=100 + step) for step in range(9, 13)))
    assert steps(told(before, after, rest)) == list(range(1, 13))


@pytest.mark.parametrize("readings_max", [1, 1000])
def test_steps_after_a_rewind_are_others_and_are_told(readings_max: int) -> None:
    before = history(*(point(step) for step in range(1, 11)))
    rewound = history(*before.points, rewound_at=50)
    others = [point(step, second=100 + step, loss=7.0) for step in range(6, 13)]
    after = history(*before.points[:5], *others[:2], rewound_at=50)
    rest = history(*before.points[:5], *others, rewound_at=50)
    found = told(before, rewound, after, rest, rest, readings_max=readings_max)
    assert steps(found) == [*range(1, 11), *range(6, 13)]
    assert [one.values["loss"] for one in found[10:]] == [7.0] * 7


def test_a_validation_that_comes_after_its_step_was_told_is_told_once() -> None:
    points = [point(step) for step in range(1, 6)]
    late = [*points[:-1], points[-1].model_copy(update={"validation_loss": 3.0})]
    more = [*late, point(6), point(7, validation_loss=2.0)]
    found = told(history(*points), history(*late), history(*more), history(*more))
    assert steps(found) == list(range(1, 8))
    assert steps(found, "validation_loss") == [5, 7]


def test_a_curve_that_grows_coarser_is_told_without_gap_or_repetition() -> None:
    curve, found, position = Curve(points=[]), [], Position()
    for step in range(1, 5 * POINTS_MAX):
        curve.add(point(step))
        if step % 100 == 0:
            curve.validated(1.0 / step)
        if step % 7 == 0:
            readings, position = unsent(RunHistory(points=curve.whole()), position)
            found += readings
    for name in ("loss", "validation_loss"):
        assert max(Counter(steps(found, name)).values()) == 1, name
        assert steps(found, name) == sorted(steps(found, name))
    assert max(b - a for a, b in pairwise(steps(found))) <= 8
    assert len(steps(found, "validation_loss")) == 5 * POINTS_MAX // 100


def test_what_is_not_known_is_not_told() -> None:
    found = told(history(Point(step=1, time=BEGAN, gradient_norm=2.0), Point(step=2, time=BEGAN)))
    assert [one.values for one in found] == [{"gradient_norm": 2.0}]
