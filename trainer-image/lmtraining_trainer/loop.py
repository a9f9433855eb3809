"""The training loop, from top to bottom.

Promise: fetch, forward and backward, agree, step or skip, report, validate, save: what is done in a
step is done here, in this order, on every rank, and what they must agree on they agree on first.
"""

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from lmtraining_api import FailureClass, TrainingSpec
from lmtraining_trainer.data import BatchPlan
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.evaluation import ValidationPlan, validate
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.precision import Format, autocast
from lmtraining_trainer.resume import Resumed
from lmtraining_trainer.run import Run
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.schedule import learning_rate
from lmtraining_trainer.speed import Speed
from lmtraining_trainer.state import Skips, TrainState
from lmtraining_trainer.step import Measured, Verdict, agree, forward_backward, update
from lmtraining_trainer.voice import Voice


@dataclass
class Trainer:
    """What a rank trains with. Only `state`, `skips`, `speed` and the time of the first step
    change."""

    spec: TrainingSpec
    gang: Gang
    voice: Voice
    run: Run | None
    """The run directory, on the lead."""
    device: torch.device
    precision: Format
    wrapped: nn.Module
    """Model and loss as they are trained: wrapped where there are several ranks."""
    with_loss: ModelLoss
    """Model and loss themselves."""
    state: TrainState
    plan: BatchPlan
    validation: ValidationPlan
    resumed: Resumed
    skips: Skips
    saver: Saver
    speed: Speed = field(default_factory=Speed)
    first_step_time: datetime | None = None

    @property
    def total_steps(self) -> int:
        return self.spec.training.budget.steps

    def is_due(self, every_steps: int) -> bool:
        """At every so many steps and at the last."""
        step = self.state.counters.step
        return step % every_steps == 0 or step == self.total_steps

    def tokens_per_second(self, step_seconds: float | None) -> float | None:
        """The speed of steps of that length."""
        return self.spec.training.batch_tokens / step_seconds if step_seconds else None

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.precision)


def train(trainer: Trainer) -> None:
    """Train until the budget is used up. Raises Preempted, after saving, when any rank was asked to
    stop, TrainerError(DIVERGED) when too many steps were bad, TrainerError(PEER_LOST)."""
    state = trainer.state
    while state.counters.step < trainer.total_steps:
        started = time.perf_counter()
        batch = trainer.plan.batch(state.counters.position)
        with trainer.gang.peer_errors():
            measured = forward_backward(trainer.wrapped, batch, trainer.autocast)
        verdict = agree(trainer.gang, measured, stop=trainer.voice.stop_requested())
        is_good = verdict.is_finite and state.counters.position not in trainer.skips.positions
        if is_good:
            rate = _update(trainer, measured, verdict)
            trainer.speed.add(time.perf_counter() - started)
            _report_step(trainer, verdict, rate)
        else:
            _skip(trainer, verdict)
        if verdict.stop:
            trainer.saver.save("Stopping", state)
            raise Preempted(state.counters.step)
        if is_good and trainer.is_due(trainer.spec.training.evaluation.every_steps):
            _validate(trainer)
        if is_good and trainer.is_due(trainer.spec.checkpoint.every_steps):
            trainer.saver.save("Checkpointing", state)
    # A stop right after the last step left its validation to this attempt.
    if state.counters.validation_step != state.counters.step:
        _validate(trainer)


def _update(trainer: Trainer, measured: Measured, verdict: Verdict) -> float:
    """Take the optimizer step; returns its learning rate."""
    state, training = trainer.state, trainer.spec.training
    rate = learning_rate(training, state.counters.step)
    update(
        trainer.state.model,
        state.optimizer,
        learning_rate=rate,
        clip_norm=training.gradient_clip_norm,
        gradient_norm=measured.gradient_norm,
    )
    state.counters = state.counters.accepted(
        tokens=training.batch_tokens, sequences=trainer.plan.batch_sequences, loss=verdict.loss
    )
    trainer.gang.step = state.counters.step
    return rate


def _report_step(trainer: Trainer, verdict: Verdict, rate: float) -> None:
    trainer.voice.say("Training", **_step_fields(trainer, verdict, rate))
    if trainer.run is not None:
        trainer.run.mark.record(trainer.state.counters.step)  # may wait for a busy disk


def _skip(trainer: Trainer, verdict: Verdict) -> None:
    """Change nothing but the position in the data (P6). Raises TrainerError(DIVERGED)."""
    state, position = trainer.state, trainer.state.counters.position
    state.optimizer.zero_grad(set_to_none=True)
    if position not in trainer.skips.positions:
        loss = verdict.loss if math.isfinite(verdict.loss) else None
        trainer.saver.note_skip(state.counters.step, position, loss=loss)
    trainer.skips = trainer.skips.with_position(position)
    state.counters = state.counters.skipped(sequences=trainer.plan.batch_sequences)
    trainer.voice.say(
        "Training", loss=None, loss_is_finite=False, skipped_steps=trainer.skips.of_this_job
    )
    limit = trainer.spec.stability.skipped_steps_max
    if trainer.skips.of_this_job > limit:
        raise TrainerError(
            FailureClass.DIVERGED,
            "TooManyBadSteps",
            f"{trainer.skips.of_this_job} steps had a loss or gradient that is not finite, more "
            f"than stability.skippedStepsMax {limit}, the newest after step "
            f"{state.counters.step}: lower training.optimizer.learningRate "
            f"{trainer.spec.training.optimizer.learning_rate:g}, lengthen "
            "training.schedule.warmupFraction, or set precision.compute to fp32",
            step=state.counters.step,
        )


def _validate(trainer: Trainer) -> None:
    trainer.voice.say("Evaluating")
    counters = trainer.state.counters
    loss = validate(
        trainer.with_loss,
        trainer.validation,
        micro_batch_sequences=trainer.plan.micro_batch_sequences,
        gang=trainer.gang,
        device=trainer.device,
        autocast=trainer.autocast,
        alive=trainer.voice.alive,
    )
    trainer.state.counters = counters.validated(loss)
    trainer.voice.say("Training", validation_loss=loss, validation_step=counters.step)


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
    }
