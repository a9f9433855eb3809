"""The range test: what it tries, and what it makes of a loss that falls, stalls and explodes."""

import itertools
import math
import random
from pathlib import Path

import pytest

from lmtraining_trainer.rate_range import (
    UNSETTLED_LOSSES,
    RangeTest,
    range_test,
    rates_to_try,
    smoothed,
)
from tests.trainer.rank_support import NO_SECRETS, job_of, tiny_spec, write_text
from tests.trainer.supervisor_pods import corpus, spec
from tests.trainer.terminal import Terminal

pytestmark = pytest.mark.trainer


def test_rates_grow_by_one_factor_around_the_jobs_own() -> None:
    rates = rates_to_try(1e-3, 51)
    assert (rates[0], rates[-1]) == pytest.approx((1e-6, 1e-1))
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * 50)
    assert rates_to_try(1.0, 5)[-1] == 10.0


@pytest.mark.parametrize(
    ("losses", "suggestion"),
    [
        ([5.0, 4.9, 4.0, 3.9, 6.0], 2.0),
        ([5.0, 5.1, 5.2, 6.0, 7.0], None),
        ([5.0], None),
    ],
)
def test_the_suggestion_is_where_the_loss_falls_fastest(
    losses: list[float], suggestion: float | None
) -> None:
    """Once the running mean has settled."""
    before = UNSETTLED_LOSSES
    rates = [0.0] * before + [float(2**power) for power in range(len(losses))]
    assert RangeTest(rates=rates, losses=[9.0] * before + losses).suggestion == suggestion


def test_the_noise_of_the_first_losses_is_not_taken_for_their_fall() -> None:
    """A loss that is flat up to a rate of 1e-3 and falls from there on, with the noise of small
    batches: the suggestion is where it falls, whatever was drawn."""
    rates = rates_to_try(1e-3, 200)
    for seed in range(200):
        drawn = random.Random(seed)
        falling = (8.0 - 1.2 * max(0.0, math.log(rate / 1e-3)) for rate in rates)
        losses = smoothed([loss + drawn.gauss(0.0, 0.2) for loss in falling])
        suggested = RangeTest(rates=rates, losses=losses).suggestion
        assert suggested is not None, seed
        assert suggested > 1e-3, seed


def test_the_running_mean_of_a_constant_is_that_constant() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)


def test_a_job_is_tried_until_it_explodes_and_its_files_are_left_alone(tmp_path: Path) -> None:
    small = tiny_spec(
        write_text(tmp_path / "text.jsonl"),
        model={"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        training={"optimizer": {"name": "sgd", "learningRate": 1.0}},
    )
    job = job_of(small, tmp_path)
    tried = range_test(job, steps=40, credentials=NO_SECRETS, say=lambda _: None)
    assert tried.suggestion is not None
    assert tried.rates[0] < tried.suggestion <= 10.0
    assert min(tried.losses) < tried.losses[0]
    assert all(map(math.isfinite, tried.losses))
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_to_write_in_the_job(terminal: Terminal) -> None:
    job = terminal.job(spec(corpus(terminal.directory / "corpus")))
    code, output = terminal.type("suggest-rate", str(job), "--steps", "50")
    assert code == 0, output
    assert "rate " in output
    assert "Try training.optimizer.learningRate: " in output or "never fell" in output
