"""The training loop, from top to bottom.

Promise: fetch, forward and backward, agree, judge, step or remedy, report, validate, save: what is
done in a step is done here, in this order, on every rank, and what they must agree on they agree on
first.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from lmtraining_trainer.data.batches import Batch
from lmtraining_trainer.errors import Preempted
from lmtraining_trainer.evaluation import validate
from lmtraining_trainer.guard import Judgement, Observation, Remedy, judge
from lmtraining_trainer.remedy import (
    compare_replicas,
    judge_update,
    rewind_or_stop,
    skip,
    without_corruption,
)
from lmtraining_trainer.robustness import robustness
from lmtraining_trainer.sampling import SAMPLE_STEPS, probe
from lmtraining_trainer.step import Verdict, agree, forward_backward, update
from lmtraining_trainer.trainer import Trainer

REPLICA_CHECK_STEPS = 100
"""Steps between two comparisons of the ranks' parameters; each save makes one too."""


def train(trainer: Trainer) -> None:
    """Train until the budget is used up. Raises Preempted, after saving, when any rank was asked to
    stop, TrainerError(DIVERGED) when the remedies are spent, TrainerError(PEER_LOST)."""
    state = trainer.state
    if state.counters.step == 0:
        _save(trainer)  # what a rewind can always go back to
    while state.counters.step < trainer.total_steps:
        judgement, verdict = _step(trainer)
        if verdict.stop:
            compare_replicas(trainer)
            trainer.saver.save("Stopping", state)
            raise Preempted(state.counters.step)
        if judgement.remedy is Remedy.ACCEPT:
            _after_step(trainer, wanted=verdict.save)
    # A stop right after the last step left its validation to this attempt.
    if state.counters.validation_step != state.counters.step:
        _validate(trainer)
    if trainer.spec.training.evaluation.robustness is not None:
        _test_robustness(trainer, draws=trainer.spec.training.evaluation.robustness.seeds)


def _step(trainer: Trainer) -> tuple[Judgement, Verdict]:
    """One batch: a step or a remedy; and what the ranks have agreed on."""
    started = time.perf_counter()
    state = trainer.state
    position = trainer.remedies.position_from(state.counters.position)
    state.counters = replace(state.counters, position=position)
    with trainer.voice.accounts.during("data_wait"):
        batch = trainer.plan.batch(position)
    verdict, judgement = without_corruption(trainer, partial(_judged, trainer, batch))
    match judgement.remedy:
        case Remedy.ACCEPT:
            probed = probe(trainer, batch) if _is_sampled(state.counters.step + 1) else None
            rate = _update(trainer, verdict, judgement)
            trainer.speed.add(time.perf_counter() - started)
            _report_step(trainer, verdict, rate)
            if probed is not None:
                judgement = judge_update(trainer, probed, verdict, rate)
        case Remedy.SKIP:
            skip(trainer, verdict, judgement)
        case _:
            rewind_or_stop(trainer, judgement)
    return judgement, verdict


def _is_sampled(step: int) -> bool:
    return step % SAMPLE_STEPS == 0


def _after_step(trainer: Trainer, *, wanted: bool) -> None:
    """What is due at this step: compare the ranks, validate, save."""
    state, spec = trainer.state, trainer.spec
    saves = wanted or trainer.saves_now
    compares = saves or trainer.is_due(REPLICA_CHECK_STEPS)
    if compares and not compare_replicas(trainer):
        return
    if trainer.is_due(spec.training.evaluation.every_steps):
        _validate(trainer)
    if saves:
        _save(trainer)
    trainer.saver.promote(state)


def _save(trainer: Trainer) -> None:
    trainer.saver.save("Checkpointing", trainer.state)
    if trainer.save_clock is not None:
        trainer.save_clock.restart()
        trainer.voice.say("Training", checkpoint_interval=trainer.save_clock.interval)


def _judged(trainer: Trainer, batch: Batch) -> tuple[Verdict, Judgement]:
    """Gradients of the batch, and what all ranks do with them."""
    with trainer.gang.peer_errors():
        measured = forward_backward(trainer.wrapped, batch, trainer.autocast)
    verdict = agree(
        trainer.gang,
        measured,
        stop=trainer.voice.stop_requested(),
        save=trainer.wants_save,
    )
    counters = trainer.state.counters
    judgement = judge(
        counters.window,
        Observation(
            step=counters.step,
            position=counters.position,
            loss=verdict.loss,
            gradient_norm=verdict.gradient_norm,
            is_finite=verdict.is_finite,
        ),
        limits=trainer.spec.stability,
        fixed_clip_norm=trainer.spec.training.gradient_clip_norm,
        remedies=trainer.remedies,
    )
    return verdict, judgement


def _update(trainer: Trainer, verdict: Verdict, judgement: Judgement) -> float:
    """Take the optimizer step; returns its learning rate."""
    state, training = trainer.state, trainer.spec.training
    rate = trainer.learning_rate
    update(
        trainer.state.model,
        state.optimizer,
        learning_rate=rate,
        clip_norm=judgement.clip_norm,
        gradient_norm=verdict.gradient_norm,
    )
    is_unusual = judgement.clip_norm < min(training.gradient_clip_norm, verdict.gradient_norm)
    state.counters = state.counters.accepted(
        tokens=training.batch_tokens,
        sequences=trainer.plan.batch_sequences,
        loss=verdict.loss,
        window=judgement.window,
        clipped=is_unusual,
        trained_seconds=trainer.voice.accounts.stepped(),
    )
    trainer.gang.step = state.counters.step
    return rate


def _report_step(trainer: Trainer, verdict: Verdict, rate: float) -> None:
    trainer.voice.say("Training", **_step_fields(trainer, verdict, rate))
    if trainer.run is not None:
        trainer.run.mark.record(trainer.state.counters.step)  # may wait for a busy disk


def _validate(trainer: Trainer) -> None:
    trainer.voice.say("Evaluating")
    counters = trainer.state.counters
    loss = _validation(trainer)()
    trainer.state.counters = counters.validated(loss)
    trainer.voice.say("Training", validation_loss=loss, validation_step=counters.step)


def _test_robustness(trainer: Trainer, *, draws: int) -> None:
    trainer.voice.say("Evaluating")
    trainer.robustness = robustness(
        lambda noise: _validation(trainer)(noise=noise),
        seed=trainer.spec.training.seed,
        draws=draws,
        unigram_loss=trainer.plan.data.unigram_loss,
    )
    trainer.voice.say("Training", robustness=trainer.robustness)


def _validation(trainer: Trainer) -> Callable[..., float | None]:
    return partial(
        validate,
        trainer.with_loss,
        trainer.validation,
        micro_batch_sequences=trainer.plan.micro_batch_sequences,
        gang=trainer.gang,
        device=trainer.device,
        autocast=trainer.autocast,
        alive=trainer.voice.alive,
    )


def _step_fields(trainer: Trainer, verdict: Verdict, rate: float) -> dict[str, Any]:
    """What the report says after a step; only the lead's words are read, the others' are a sign of
    life."""
    counters, now = trainer.state.counters, datetime.now(UTC)
    if not trainer.gang.is_lead:
        return {"step": counters.step}
    trainer.first_step_time = trainer.first_step_time or now
    step_seconds = trainer.speed.step_seconds
    left = trainer.total_steps - counters.step
    return {
        "step": counters.step,
        "tokens": counters.tokens,
        "step_time": now,
        "loss": verdict.loss,
        "loss_is_finite": True,
        "gradient_norm": verdict.gradient_norm,
        "learning_rate": rate,
        "tokens_per_second": trainer.tokens_per_second(step_seconds),
        "eta_seconds": None if step_seconds is None else step_seconds * left,
        "replayed_steps": trainer.resumed.replayed(counters.step),
        "first_step_time": trainer.first_step_time,
        "clipped_steps": counters.clipped_steps,
        "is_stable": trainer.is_stable,
    }
