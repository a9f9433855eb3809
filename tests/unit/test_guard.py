"""The guard: what it finds, what it does about it, what it leaves alone."""

import json
import math
import random
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from lmtraining_api import JournalEntry
from lmtraining_api.training import Stability
from lmtraining_trainer.guard import (
    Fault,
    Remedies,
    Remedy,
    Sample,
    Window,
    judge_sample,
    noise_scale,
    notice,
)
from lmtraining_trainer.guard.detectors import clip_norm, divergence, loss_spike
from lmtraining_trainer.guard.policy import Judgement
from lmtraining_trainer.guard.trend import Trend
from tests.unit.guard_traces import (
    LIMITS,
    NOTHING_DONE,
    SEQUENCES,
    TRACES,
    Trace,
    alarms,
    falling,
    judged,
    seen,
)


def quiet(steps: int = 64, loss: float = 3.0) -> Window:
    """A window after steps whose loss wavers by a hundredth."""
    window = Window()
    for step in range(steps):
        window = window.with_good(
            position=step * SEQUENCES, loss=loss + 0.01 * (-1) ** step, gradient_norm=0.5
        )
    return window


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "norm"])
def test_p6_what_is_not_finite_is_skipped_and_forgotten(bad: float, where: str) -> None:
    before = quiet()
    observation = seen(64, bad) if where == "loss" else seen(64, 3.0, norm=bad)
    judgement = judged(before, observation)
    assert judgement.remedy is Remedy.SKIP
    assert judgement.finding and judgement.finding.fault is Fault.NON_FINITE
    after = judgement.window
    assert (after.losses, after.norm_mean, after.norm_variance) == (
        before.losses, before.norm_mean, before.norm_variance,
    )  # fmt: skip
    assert judged(after, seen(65, 3.0)).remedy is Remedy.ACCEPT  # one NaN blinds and alarms nothing
    assert judged(after, seen(65, 15.0)).remedy is Remedy.SKIP


@pytest.mark.parametrize("where", ["loss", "norm"])
def test_p6_after_one_nan_a_loss_that_stays_high_is_found_at_each_step(where: str) -> None:
    """Running sums that a NaN has entered say for ever that all is well."""
    nan = seen(64, math.nan) if where == "loss" else seen(64, 3.0, norm=math.nan)
    window = judged(quiet(), nan).window
    assert clip_norm(window, LIMITS, 1.0) == clip_norm(quiet(), LIMITS, 1.0)
    for step in range(65, 154):
        judgement = judged(window, seen(step, 50.0, norm=500.0))
        assert judgement.finding and judgement.finding.fault is Fault.LOSS_SPIKE
        window = judgement.window
    assert judged(window, seen(154, 3.0)).remedy is Remedy.ACCEPT


@pytest.mark.parametrize("factor", [2.0, 5.0, 50.0])
def test_a_loss_spike_is_skipped_and_does_not_raise_its_own_threshold(factor: float) -> None:
    window = quiet()
    judgement = judged(window, seen(64, 3.0 * factor))
    assert judgement.remedy is Remedy.SKIP
    assert judgement.finding and judgement.finding.fault is Fault.LOSS_SPIKE
    assert f"{3.0 * factor:.3f}" in judgement.finding.message
    assert judgement.window.losses == window.losses


def test_a_quiet_loss_may_waver_a_little() -> None:
    assert judged(quiet(), seen(64, 3.45)).remedy is Remedy.ACCEPT


def test_a_fall_of_the_loss_is_no_fault() -> None:
    assert judged(quiet(), seen(64, 0.5)).remedy is Remedy.ACCEPT


def test_a_gradient_of_zero_is_skipped() -> None:
    judgement = judged(quiet(), seen(64, 3.0, norm=0.0))
    assert judgement.finding and judgement.finding.fault is Fault.ZERO_GRADIENT


def test_three_bad_batches_among_sixteen_are_rewound_round() -> None:
    window = quiet()
    for step in (64, 68):
        judgement = judged(window, seen(step, math.nan))
        assert judgement.remedy is Remedy.SKIP
        window = judgement.window
        for between in range(step + 1, step + 4):
            window = judged(window, seen(between, 3.0)).window
    judgement = judged(window, seen(72, math.nan))
    assert judgement.remedy is Remedy.REWIND
    assert judgement.window.bad_positions == (64 * 8, 68 * 8, 72 * 8)


def test_bad_batches_far_apart_are_skipped_one_by_one() -> None:
    window = quiet()
    for step in range(64, 64 + 200, 20):
        judgement = judged(window, seen(step, math.nan))
        assert judgement.remedy is Remedy.SKIP
        window = judgement.window
        for between in range(step + 1, step + 20):
            window = judged(window, seen(between, 3.0)).window


def test_a_slow_rise_is_divergence() -> None:
    window, remedies = quiet(), []
    for step in range(64, 400):
        judgement = judged(window, seen(step, 3.0 + 0.005 * (step - 64)))
        remedies.append(judgement.remedy)
        if judgement.remedy is not Remedy.ACCEPT:
            break
        window = judgement.window
    assert judgement.remedy is Remedy.REWIND
    assert judgement.finding and judgement.finding.fault is Fault.DIVERGENCE
    assert "divergenceNats 0.5" in judgement.finding.message
    assert len(remedies) < 0.5 / 0.005 + 32  # half a nat, and half the window


def test_the_budget_ends_the_remedies() -> None:
    limits = Stability(rewinds_max=1, skipped_steps_max=1)
    spent_skips = Remedies(skips=1)
    assert judged(quiet(), seen(64, math.nan), limits=limits, remedies=spent_skips).remedy is (
        Remedy.REWIND
    )
    spent = Remedies(skips=1, rewinds=1)
    assert judged(quiet(), seen(64, math.nan), limits=limits, remedies=spent).remedy is Remedy.STOP


def test_p7_a_batch_that_the_journal_knows_is_skipped_without_a_charge() -> None:
    known = Remedies(positions=frozenset({64 * 8}), skips=10)
    judgement = judged(quiet(), seen(64, 3.0), remedies=known)
    assert judgement.remedy is Remedy.SKIP
    assert judgement.finding and judgement.finding.fault is Fault.KNOWN_BAD
    assert judgement.window == judged(quiet(), seen(64, math.nan)).window


def test_adaptive_clipping_follows_the_norm_and_its_own_result() -> None:
    window = quiet()
    usual = clip_norm(window, LIMITS, 1.0)
    assert 0.5 < usual < 0.7
    assert clip_norm(window, Stability(adaptive_clip=False), 1.0) == 1.0
    assert clip_norm(quiet(10), LIMITS, 1.0) == 1.0
    after = judged(window, seen(64, 3.0, norm=500.0)).window
    assert clip_norm(after, LIMITS, 1.0) < 1.1 * usual  # a burst does not open the gate


def test_p7_the_window_comes_back_from_json_to_the_last_bit() -> None:
    window = judged(quiet(200, loss=math.pi), seen(200, math.nan)).window
    assert Window.of_json(json.loads(json.dumps(window.json()))) == window
    newer = window.json() | {"field_of_a_newer_version": 1}
    assert Window.of_json(newer) == window


def test_the_window_is_bounded() -> None:
    window = quiet(1000)
    for step in range(1000, 1100):
        window = window.with_bad(step * SEQUENCES)
    assert (len(window.losses), len(window.positions), len(window.bad_positions)) == (128, 16, 16)


def rewound(
    *, to_step: int, start: int, end: int, rate_scale: float
) -> tuple[str, dict[str, object]]:
    return "Rewound", {
        "to_step": to_step,
        "from_position": start,
        "to_position": end,
        "rate_scale": rate_scale,
        "rewarm_steps": 100,
        "fault": "NonFinite",
    }


def journal(*kinds: tuple[str, dict[str, object]]) -> list[JournalEntry]:
    return [
        JournalEntry.model_validate(
            {
                "sequence": number,
                "time": "2026-01-01T00:00:00Z",
                "attempt": 1,
                "round": 1,
                "kind": kind,
                "step": 0,
                "detail": detail,
            }
        )
        for number, (kind, detail) in enumerate(kinds)
    ]


def test_the_journal_is_the_whole_of_the_remedies() -> None:
    first = rewound(to_step=100, start=880, end=960, rate_scale=1.0)
    second = rewound(to_step=100, start=960, end=1000, rate_scale=0.5)
    done = Remedies.of_journal(journal(("Skipped", {"position": 8}), first, second))
    assert (done.skips, done.rewinds, done.lineage) == (1, 2, 2)
    assert Remedies.of_json(json.loads(json.dumps(done.json()))) == done
    assert [done.position_from(position) for position in (872, 880, 959, 1000)] == [
        872, 1000, 1000, 1000,
    ]  # fmt: skip
    assert done.rate_factor(99) == 0.5
    assert done.rate_factor(100) == pytest.approx(0.005)
    assert done.rate_factor(199) == done.rate_factor(10_000) == 0.5
    heir = Remedies.of_journal(journal(first, ("Started", {"taken_over": True})))
    assert (heir.rewinds, heir.lineage, heir.windows) == (0, 1, ((880, 960),))


def test_skips_are_counted_once_and_anew_for_a_job_that_takes_over() -> None:
    started, skip = ("Started", {"taken_over": False}), ("Skipped", {"position": 8})
    other, taken = ("Skipped", {"position": 16}), ("Started", {"taken_over": True})
    once = Remedies.of_journal(journal(started, skip, started, skip, other))
    assert (once.positions, once.skips) == ({8, 16}, 2)
    inherited = Remedies.of_journal(journal(started, skip, taken, other))
    assert (inherited.positions, inherited.skips) == ({8, 16}, 1)
    assert inherited.with_skip(8, step=0) == inherited
    assert inherited.with_skip(24, step=0).skips == 2


def test_the_first_rewind_blames_the_data_and_the_next_the_rate() -> None:
    none, one = Remedies(), Remedies(rewinds=1)
    assert (none.next_rate_scale, one.next_rate_scale) == (1.0, 0.5)
    assert replace(one, rate_scale=0.5).next_rate_scale == 0.25


@pytest.mark.parametrize("trace", TRACES)
def test_healthy_training_is_left_alone(trace: Trace) -> None:
    """At most one remedy in 100,000 healthy steps over all five traces; here 5,000 of each."""
    assert alarms(trace, 5_000) == []


def test_detectors_say_nothing_before_they_know_enough() -> None:
    young = quiet(15)
    assert loss_spike(young, seen(15, 100.0), LIMITS) is None
    assert divergence(quiet(31), LIMITS) is None


@pytest.mark.parametrize("trace", TRACES)
def test_a_loss_that_falls_ever_slower_is_no_plateau(trace: Trace) -> None:
    noise, trend = random.Random(20_261_123), Trend()
    flat = []
    for step, loss in enumerate(islice(trace(noise), 20_000)):
        trend = trend.with_loss(loss)
        flat += [step] if trend.flat_steps else []
    assert flat == []


def test_a_plateau_is_told_with_its_beginning_and_nothing_is_done() -> None:
    noise, window = random.Random(1), Window()
    for step in range(4_000):
        loss = falling(min(step, 1_500)) + noise.gauss(0, 0.05)
        judgement = judged(window, seen(step, loss))
        assert judgement.remedy is Remedy.ACCEPT
        window = judgement.window
    told = notice(window, None, step=4_000, total_steps=4_000, unigram_loss=9.0)
    (since,) = (int(word) for word in told.split() if word.isdigit())
    assert told.startswith("the loss has not fallen since step ")
    assert 1_300 <= since <= 2_100
    assert len(window.trend.means) <= 8


def test_p7_a_plateau_is_remembered_over_a_resume() -> None:
    window = quiet(1_000)
    again = Window.of_json(json.loads(json.dumps(window.json())))
    assert again.trend == window.trend
    assert again.trend.flat_steps == 1_000
    assert Window.of_json({}).trend == Trend()  # a checkpoint of a version that knew no trend


def sampled(**figures: float) -> Sample:
    usual: dict[str, Any] = {
        "learning_rate": 1e-3,
        "update_rms": 0.2,
        "weight_rms": 0.05,
        "swallowed": 0.01,
        "logit_bound": 20.0,
        "activation_max": 30.0,
        "part_norm": 2.0,
        "part_sequences": 1,
        "whole_norm": 1.0,
        "whole_sequences": 8,
    }
    return Sample(**usual | figures)


def judged_sample(window: Window, sample: Sample) -> Judgement:
    return judge_sample(window, sample, limits=LIMITS, remedies=NOTHING_DONE)


def after_samples(count: int = 16, **figures: float) -> Window:
    noise, window = random.Random(3), quiet()
    for _ in range(count):
        rms = 0.2 * math.exp(noise.gauss(0, 0.1))
        window = judged_sample(window, sampled(**{"update_rms": rms, **figures})).window
    return window


def test_an_update_far_beyond_its_history_rewinds_and_is_not_remembered() -> None:
    window = after_samples()
    judgement = judged_sample(window, sampled(update_rms=4.0))
    assert judgement.remedy is Remedy.REWIND
    assert judgement.finding and judgement.finding.fault is Fault.EXPLODING_UPDATE
    assert judgement.window == window
    assert judged_sample(window, sampled(update_rms=1.0)).remedy is Remedy.ACCEPT
    assert judged_sample(window, sampled(update_rms=0.0)).remedy is Remedy.ACCEPT
    assert judged_sample(after_samples(7), sampled(update_rms=4.0)).remedy is Remedy.ACCEPT


def test_a_rate_that_is_warmed_up_is_no_explosion() -> None:
    window = after_samples(learning_rate=1e-6)
    assert judged_sample(window, sampled(learning_rate=1e-2)).remedy is Remedy.ACCEPT


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_p6_weights_that_are_not_finite_are_rewound(bad: float) -> None:
    judgement = judged_sample(after_samples(), sampled(weight_rms=bad))
    assert judgement.remedy is Remedy.REWIND
    assert judgement.finding and judgement.finding.fault is Fault.NON_FINITE


def test_the_noise_scale_is_that_of_gradients_made_of_signal_and_noise() -> None:
    """|G|² = 4 and tr Σ = 96: at 24 sequences, noise and signal are alike."""

    def norm(sequences: int) -> float:
        return math.sqrt(4.0 + 96.0 / sequences)

    figures = {"part_norm": norm(2), "part_sequences": 2}
    figures |= {"whole_norm": norm(64), "whole_sequences": 64}
    assert noise_scale(after_samples(**figures)) == pytest.approx(24.0)


def test_the_noise_scale_is_unknown_where_there_is_one_part_only() -> None:
    assert noise_scale(after_samples(part_sequences=8)) is None
    assert noise_scale(after_samples(part_norm=math.nan)) is None
    assert noise_scale(Window()) is None


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({}, ""),
        ({"update_rms": 1e-12}, "too small to change the weights"),
        ({"swallowed": 0.6}, "training.optimizer.epsilon"),
        ({"logit_bound": 101.0}, "attention logits may exceed 100"),
    ],
)
def test_what_is_only_odd_is_told(figures: dict[str, float], words: str) -> None:
    told = notice(quiet(), sampled(**figures), step=64, total_steps=64, unigram_loss=9.0)
    assert bool(words) == bool(told)
    assert words in told


@pytest.mark.parametrize(
    ("loss", "step", "is_told"), [(5.99, 50, True), (5.99, 49, False), (5.9, 100, False)]
)
def test_a_run_that_learns_nothing_is_told_so_in_its_second_half(
    loss: float, step: int, is_told: bool
) -> None:
    """A rate so high that the loss never falls cannot rise either, so no detector sees it."""
    told = notice(quiet(loss=loss), None, step=step, total_steps=100, unigram_loss=6.0)
    assert ("nothing is learnt" in told) == is_told
    assert ("(6.000): lower training.optimizer.learningRate" in told) == is_told
