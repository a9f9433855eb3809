"""The learning rate as a table."""

import math

import pytest

from lmtraining_api.job import Training
from lmtraining_trainer.schedule import learning_rate

pytestmark = pytest.mark.unit


def training(*, steps: int, warmup: float, final: float = 0.1, peak: float = 1.0) -> Training:
    return Training.model_validate(
        {
            "budget": {"steps": steps},
            "batchTokens": 8,
            "optimizer": {"learningRate": peak},
            "schedule": {"warmupFraction": warmup, "finalFraction": final},
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
    assert learning_rate(training(steps=100, warmup=0.1), step) == pytest.approx(rate)


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_rate_is_positive_and_at_most_the_peak_at_every_step(steps: int, warmup: float) -> None:
    spec = training(steps=steps, warmup=warmup, final=0.01, peak=3e-4)
    rates = [learning_rate(spec, step) for step in range(steps)]
    assert all(0 < rate <= 3e-4 * (1 + 1e-12) and math.isfinite(rate) for rate in rates)
