"""The Trainer of transformers with our model, data and faults: the other side of bench.injections.

Promise: nothing of it is changed but where its batches come from, how the loss of a batch is
computed, and the fault.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset, SequentialSampler

from lmtraining_api import JobFile
from lmtraining_trainer.data import PreparedData, open_prepared
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.evaluation import ValidationPlan, validate
from lmtraining_trainer.files import nothing
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model
from lmtraining_trainer.precision import autocast
from lmtraining_trainer.step import Measured
from tests.trainer.injections import DATA_FAULTS, Injection, damaged, poisoned

CPU = torch.device("cpu")
LOGGED_DIGITS = 1e-2


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a run gave, and what it said of itself."""

    validation_loss: float
    losses: int
    """How many losses of steps it logged."""
    wrong_losses: int
    """How many of them were not those of the steps; of a rank alone, since it logs their mean."""


class _Samples(Dataset[dict[str, torch.Tensor]]):
    """The sequences in the order in which our trainer reads them."""

    def __init__(self, plan: BatchPlan, injections: tuple[Injection, ...], steps: int) -> None:
        size = plan.batch_sequences
        vocabulary = int(plan.data.train.max()) + 1
        self._rows: list[dict[str, torch.Tensor]] = []
        for step in range(steps):
            batch = plan.batch(step * size)
            for injection in injections:
                if injection.what in DATA_FAULTS and injection.position == step * size:
                    batch = poisoned(batch, injection, vocabulary)
            for inputs, targets in zip(batch[0].inputs, batch[0].targets, strict=True):
                self._rows.append({"input_ids": inputs, "labels": targets})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]


class _Trainer(transformers.Trainer):
    injections: tuple[Injection, ...] = ()
    sequences = 1
    true_losses: list[float]

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        logits = model(input_ids=inputs["input_ids"]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        loss = super().training_step(model, inputs, *arguments, **named)
        position = self.state.global_step * self.sequences
        for injection in self.injections:
            if injection.position == position and injection.what not in DATA_FAULTS:
                nil = torch.zeros(())
                measured = Measured(loss=loss, gradient_norm=nil, own_seconds=float)
                loss = damaged(model, self.optimizer, measured, injection).loss
        self.true_losses.append(float(loss))
        return loss


class _StopAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        if state.global_step == self._step:
            control.should_save = control.should_training_stop = True


def train_with_transformers(
    job: JobFile,
    injections: tuple[Injection, ...],
    *,
    ranks: int,
    directory: Path,
    stop_at: int | None,
) -> Told:
    """Train as one of `ranks` to the end of the budget."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    spec = job.spec
    cache = Path(job.data_cache_directory)
    (key,) = (path.parent.name for path in cache.glob("*/train.bin"))
    data = open_prepared(cache, key)
    if data is None:
        raise FileNotFoundError(cache)
    plan = BatchPlan.of(spec, data, rank=0, world_size=1, device=CPU)
    samples = _Samples(plan, injections, spec.training.budget.steps)
    model = build_model(spec)
    losses: list[float] = []

    def trainer(callbacks: list[Any]) -> _Trainer:
        made = _Trainer(
            model=model,
            args=_arguments(job, ranks, directory),
            train_dataset=samples,
            callbacks=callbacks,
        )
        made.injections, made.sequences = injections, plan.batch_sequences
        made.true_losses = losses
        return made

    if stop_at is not None:
        trainer([_StopAt(stop_at)]).train()
    done = trainer([])
    done.train(resume_from_checkpoint=True if stop_at is not None else None)
    logged = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    return Told(
        validation_loss=_validation_loss(job, model, data),
        losses=len(logged),
        wrong_losses=sum(not _agree(*pair) for pair in zip(logged, losses, strict=True)),
    )


def _arguments(job: JobFile, ranks: int, directory: Path) -> transformers.TrainingArguments:
    training = job.spec.training
    optimizer = training.optimizer
    return transformers.TrainingArguments(
        output_dir=str(directory / "trainer"),
        max_steps=training.budget.steps,
        per_device_train_batch_size=job.spec.batch_sequences // ranks,
        learning_rate=optimizer.settings["learning_rate"],
        adam_beta1=optimizer.settings["beta1"],
        adam_beta2=optimizer.settings["beta2"],
        adam_epsilon=optimizer.settings["epsilon"],
        weight_decay=optimizer.settings["weight_decay"],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(training.schedule.warmup_fraction * training.budget.steps),
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=training.seed,
    )


def _agree(logged: float, true: float) -> bool:
    if not math.isfinite(true):
        return not math.isfinite(logged)
    return math.isclose(logged, true, rel_tol=LOGGED_DIGITS)


class _Alone:
    """A gang of one, as far as validation needs it."""

    rank, world_size = 0, 1

    def sum(self, values: list[float]) -> list[float]:
        return values


def _validation_loss(job: JobFile, model: Any, data: PreparedData) -> float:
    gang: Any = _Alone()
    found = validate(
        ModelLoss(model),
        ValidationPlan.of(job.spec, data),
        micro_batch_sequences=8,
        gang=gang,
        device=CPU,
        autocast=lambda: autocast(CPU, "fp32"),
        alive=nothing,
    )
    return math.nan if found.loss is None else found.loss
