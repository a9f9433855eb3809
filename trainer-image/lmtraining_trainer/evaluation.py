"""Validation: the same sequences every time, shared by the ranks.

Promise: the validation loss of two steps, or of two runs on the same data, differ by the model
alone.
Trap avoided: validation on one rank while the others wait in a collective; with shards each forward
pass is one, so all ranks make as many.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmtraining_api import TrainingSpec
from lmtraining_trainer.data import PreparedData
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.sharding import is_sharded
from lmtraining_trainer.tasks import Examples, task_of

Noise = Callable[[ModelLoss, MicroBatch, NDArray[np.int64]], AbstractContextManager[MicroBatch]]
"""A context that disturbs a batch, or the model, for one forward pass; the sequences of the batch
have these numbers."""


def _quiet(
    _: ModelLoss, batch: MicroBatch, __: NDArray[np.int64]
) -> AbstractContextManager[MicroBatch]:
    return nullcontext(batch)


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """Which validation sequences are read: spread evenly over the text, the same every time."""

    examples: Examples
    """The validation data as the task reads it."""
    numbers: NDArray[np.int64]
    """Which of them."""
    counted: int = 0
    """How many things are counted beside the loss."""
    figures: Callable[[Sequence[float]], dict[str, float]] = lambda _: {}
    """What they say of the model."""

    @classmethod
    def of(cls, spec: TrainingSpec, data: PreparedData) -> "ValidationPlan":
        """The plan of `spec`; the validation text has at least 2 tokens."""
        task = task_of(spec)
        examples = task.validation(spec, data)
        count = min(examples.count, spec.training.evaluation.sequences)
        numbers = np.arange(count, dtype=np.int64) * examples.count // count
        return cls(
            examples=examples,
            numbers=numbers,
            counted=task.counted(data),
            figures=task.figures,
        )


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What a validation found."""

    loss: float | None
    """Mean over the sequences, nats per token or per example; None where it is not finite."""
    figures: dict[str, float]
    """What else the task measures, by the name that the report has for it."""


def validate(
    model: ModelLoss,
    plan: ValidationPlan,
    *,
    micro_batch_sequences: int,
    gang: Gang,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    alive: Callable[[], None],
    noise: Noise = _quiet,
) -> Validated:
    """Mean loss over the plan's sequences, and what the task counts in them.

    `model` is not wrapped, but may be sharded; dropout is off meanwhile and no generator is used.
    """
    total, counts = 0.0, np.zeros(plan.counted)
    model.train(False)
    with torch.no_grad():
        for part in _parts(plan, gang, micro_batch_sequences, together=is_sharded(model)):
            read = part if len(part) else plan.numbers[:1]
            batch = plan.examples.read(read, read, device)
            with noise(model, batch, read) as batch, autocast():
                loss, *counted = model(*batch.tensors).flatten().tolist()
                total += loss * len(part)
                counts += np.array(counted) * bool(len(part))
            alive()
    model.train()
    total, *sums = gang.sum([total, *counts.tolist()])
    loss = total / len(plan.numbers)
    return Validated(loss=loss if math.isfinite(loss) else None, figures=plan.figures(sums))


def _parts(
    plan: ValidationPlan, gang: Gang, sequences: int, *, together: bool
) -> Iterator[NDArray[np.int64]]:
    """What this rank reads, so many sequences at a time. Where the ranks go through the model
    `together`, one that has nothing left goes on with empty parts for as long as another has."""
    own = plan.numbers[gang.rank :: gang.world_size]
    longest = -(-len(plan.numbers) // gang.world_size) if together else len(own)
    for first in range(0, longest, sequences):
        yield own[first : first + sequences]
