"""The speed of training is that of its steps."""

import pytest

from lmtraining_trainer.speed import STEPS_MEASURED, Speed

pytestmark = pytest.mark.unit


def _speed(*seconds: float) -> Speed:
    speed = Speed()
    for one in seconds:
        speed.add(one)
    return speed


def test_the_first_step_of_a_process_is_no_figure() -> None:
    """P4: an attempt of one step would else end with a speed that no other step had."""
    for speed in (_speed(), _speed(9.0)):
        assert (speed.step_seconds, speed.mean_step_seconds) == (None, None)
    speed = _speed(9.0, 1.0)
    assert (speed.step_seconds, speed.mean_step_seconds) == (1.0, 1.0)


def test_one_step_that_was_held_up_does_not_move_the_figure() -> None:
    assert _speed(9.0, *[1.0] * STEPS_MEASURED, 100.0).step_seconds == 1.0


def test_the_figure_follows_the_newest_steps_and_the_mean_has_all() -> None:
    speed = _speed(9.0, *[1.0] * STEPS_MEASURED, *[3.0] * STEPS_MEASURED)
    assert (speed.step_seconds, speed.mean_step_seconds) == (3.0, 2.0)
