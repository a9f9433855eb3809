"""What a rank trains with, in one value."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import torch
from torch import nn

from lmtraining_api import RobustnessReport, TrainingSpec
from lmtraining_trainer import rng
from lmtraining_trainer.budgets import Budgets
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.micro_batch import Batch
from lmtraining_trainer.evaluation import ValidationPlan
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.guard import Remedies
from lmtraining_trainer.interval import SaveClock
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.precision import Format, autocast
from lmtraining_trainer.requests import Following
from lmtraining_trainer.resume import Resumed
from lmtraining_trainer.run import Run
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.schedule import learning_rate
from lmtraining_trainer.speed import Speed
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.step import Measured
from lmtraining_trainer.straggler import OwnWork, Stragglers
from lmtraining_trainer.utilisation import Utilisation
from lmtraining_trainer.voice import Voice


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A batch after its backward pass; its gradients are in the model."""

    position: int
    batch: Batch
    drawn_from: rng.Drawn
    """Where the generators stood before it."""
    measured: Measured


@dataclass
class Trainer:
    """What a rank trains with. Only `state`, `remedies`, `resumed`, `ahead`, `speed`, `own_work`,
    `stragglers`, the time of the first step, `robustness` and `zero_share` change, and what a
    person may change: the budget and the interval in `spec`, `budgets`, `save_clock`,
    `following`."""

    spec: TrainingSpec
    gang: Gang
    voice: Voice
    run: Run | None
    """The run directory, on the lead."""
    device: torch.device
    precision: Format
    wrapped: nn.Module
    """Model and loss as they are trained: wrapped, or sharded, where there are several ranks."""
    with_loss: ModelLoss
    """Model and loss themselves."""
    state: TrainState
    plan: BatchPlan
    utilisation: Utilisation
    validation: ValidationPlan
    resumed: Resumed
    remedies: Remedies
    """What was done about bad steps, as the journal has it."""
    saver: Saver
    budgets: Budgets
    """The budget of each step, for its learning rate; the newest is in `spec`."""
    following: Following = field(default_factory=Following)
    """On the lead: which wishes have been followed."""
    reads_late: bool = False
    """The host reads a step's verdict after it has given the device the next batch."""
    ahead: Computed | None = None
    """The next batch, where it was computed before the verdict was read."""
    speed: Speed = field(default_factory=Speed)
    own_work: OwnWork = field(default_factory=OwnWork)
    stragglers: Stragglers = field(default_factory=Stragglers)
    save_clock: SaveClock | None = None
    """On the lead, where checkpoint.everySteps leaves the interval open."""
    first_step_time: datetime | None = None
    robustness: list[RobustnessReport] = field(default_factory=list)
    """What the model stands, once training has ended."""
    zero_share: float | None = None
    """Share of the weights that are zero, once training has ended, where that was asked for."""

    @property
    def total_steps(self) -> int:
        """Of the newest budget."""
        return self.budgets.newest

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: the schedule's, lowered by rewinds."""
        step = self.state.counters.step
        scheduled = learning_rate(self.spec.training, step, total_steps=self.budgets.at(step))
        return scheduled * self.remedies.rate_factor(step)

    @property
    def is_stale(self) -> bool:
        """Whether the run has not come any further for longer than its patience."""
        stopping = self.spec.training.early_stopping
        stale = self.state.counters.stale_validations
        return stopping is not None and stale >= stopping.patience

    @property
    def stale_notice(self) -> str:
        """Which weights are exported where those are not the newest, and why the run ended before
        its budget did; else empty."""
        counters, best = self.state.counters, self.state.counters.best_step
        ended = f"stopped early at step {counters.step}: " if self.is_stale else ""
        if self.state.best is None or best == counters.step:
            return ""
        if best is None:
            return f"{ended}no validation was finite, so the newest weights are exported"
        return (
            f"{ended}no validation since step {best} was below "
            f"{counters.best_validation_loss or 0.0:.4f}, whose weights are exported"
        )

    @property
    def remedies_taken(self) -> dict[str, Any]:
        """The report's fields about remedies."""
        counters = self.state.counters
        return {
            "skipped_steps": self.remedies.skips,
            "rewinds": self.remedies.rewinds,
            "rate_scale": self.remedies.rate_scale,
            "clipped_steps": counters.clipped_steps,
            "is_stable": self.is_stable,
        }

    @property
    def is_stable(self) -> bool:
        """False from a remedy until as many good steps as make a checkpoint healthy."""
        newest = self.remedies.newest_step
        steps = self.state.counters.step
        return newest is None or steps - newest >= self.spec.stability.healthy_steps

    def is_due(self, every_steps: int) -> bool:
        """At every so many steps and at the last."""
        step = self.state.counters.step
        return step % every_steps == 0 or step == self.total_steps

    @property
    def saves_now(self) -> bool:
        """Whether the spec asks for a checkpoint of this step."""
        checkpoint = self.spec.checkpoint
        dues = (checkpoint.every_steps, checkpoint.keep_every_steps, self.total_steps)
        return any(self.is_due(steps) for steps in dues if steps)

    @property
    def wants_save(self) -> bool:
        """Whether this rank wants a checkpoint of the step that is about to be taken."""
        if self.save_clock is None:
            return False
        step = self.state.counters.step + 1
        validates = step % self.spec.training.evaluation.every_steps == 0
        early = validates and self.spec.checkpoint.keep_best > 0
        return self.saver.is_idle and self.save_clock.is_due(early=early)

    @property
    def has_news(self) -> bool:
        """Whether this rank, the lead, was told of wishes that nobody follows yet."""
        return self.gang.is_lead and self.following.is_news(self.voice.wishes())

    def tokens_per_second(self, step_seconds: float | None) -> float | None:
        """The speed of steps of that length."""
        return self.spec.training.batch_tokens / step_seconds if step_seconds else None

    def speed_fields(self, step_seconds: float | None) -> dict[str, float | None]:
        """The report's fields about the speed of steps of that length."""
        speed = self.tokens_per_second(step_seconds)
        return {"tokens_per_second": speed, "mfu": self.utilisation.at(speed)}

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.precision)
