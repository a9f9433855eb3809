"""The learning rate as a table."""

import math

import pytest

from lmtraining_api.job import Training
from lmtraining_trainer.budgets import Budgets
from lmtraining_trainer.schedule import learning_rate

pytestmark = pytest.mark.unit


def training(*, warmup: float, peak: float = 1.0, **schedule: float | str) -> Training:
    return Training.model_validate(
        {
            "budget": {"steps": 1},
            "batchTokens": 8,
            "optimizer": {"learningRate": peak},
            "schedule": {"warmupFraction": warmup, **schedule},
        }
    )


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),  # the first step is not wasted on a rate of 0
        (4, 0.5),
        (9, 1.0),  # the peak, at the end of the warm-up
        (54, 0.55),  # halfway down the cosine
        (99, 0.1),  # the last step has the final rate
    ],
)
def test_warm_up_and_cosine(step: int, rate: float) -> None:
    assert learning_rate(training(warmup=0.1), step, total_steps=100) == pytest.approx(rate)


def test_a_step_has_the_rate_of_the_budget_that_held_when_it_was_first_taken() -> None:
    """P7: also where it is taken again, by a resume or after a way back."""
    budgets = Budgets(first=10).with_change(4, 20)
    assert [budgets.at(step) for step in (0, 3, 4, 19)] == [10, 10, 20, 20]
    back = budgets.with_change(2, 40)
    assert [back.at(step) for step in (1, 2, 4)] == [10, 40, 40]
    assert (budgets.newest, back.newest, Budgets(first=7).newest) == (20, 40, 7)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("linear", {9: 1.0, 54: 0.55, 99: 0.1}),
        ("constant", {0: 0.1, 9: 1.0, 54: 1.0, 99: 1.0}),
        # the last 40 of 100 steps: at a quarter of them, half of the way down
        ("wsd", {9: 1.0, 59: 1.0, 69: 0.55, 99: 0.1}),
    ],
)
def test_the_other_schedules(name: str, rates: dict[int, float]) -> None:
    own = {"decayFraction": 0.4} if name == "wsd" else {}
    spec = training(warmup=0.1, name=name, **own)
    found = {step: learning_rate(spec, step, total_steps=100) for step in rates}
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_rate_is_positive_and_at_most_the_peak_at_every_step(
    steps: int, warmup: float, name: str
) -> None:
    final = {} if name == "constant" else {"finalFraction": 0.01}
    spec = training(warmup=warmup, peak=3e-4, name=name, **final)
    rates = [learning_rate(spec, step, total_steps=steps) for step in range(steps)]
    assert all(0 < rate <= 3e-4 * (1 + 1e-12) and math.isfinite(rate) for rate in rates)
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
