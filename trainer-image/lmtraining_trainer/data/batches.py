"""Which tokens a rank reads in a step: arithmetic on one integer.

Promise: the sequences of a step are the same for every world size, and the ranks together read each
of them once.
Trap avoided: a loader with workers and queues has state that a resume must rebuild; memory-mapped
tokens and an index need none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmtraining_api import FailureClass
from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.data.micro_batch import Batch, MicroBatch
from lmtraining_trainer.data.mixture import Mixture
from lmtraining_trainer.data.order import sample_order
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.tasks import Examples, task_of


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of one rank."""

    data: PreparedData
    examples: Examples
    """The training data as the task reads it."""
    seed: int
    world_size: int
    rank: int
    micro_batches: int
    """Micro-batches per rank and step."""
    micro_batch_sequences: int
    """Sequences of a micro-batch."""
    device: torch.device
    mixture: Mixture | None = None
    """Where the sources have weights; else each sequence of the text comes once an epoch."""

    @classmethod
    def of(
        cls,
        spec: TrainingSpec,
        data: PreparedData,
        *,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> "BatchPlan":
        """The plan of `spec` for one of `world_size` ranks, which may differ from the spec's (a run
        by hand). Raises TrainerError(CONFIGURATION) where they cannot share the batch evenly."""
        micro_batches = spec.training.gradient_accumulation
        each, rest = divmod(spec.batch_sequences, world_size * micro_batches)
        if rest or not each:
            raise TrainerError(
                FailureClass.CONFIGURATION,
                "UnevenBatch",
                f"a batch of {spec.batch_sequences} sequences (training.batchTokens / "
                f"data.sequenceLength) cannot be shared by {world_size} ranks x "
                f"training.gradientAccumulation {micro_batches}: choose a multiple",
            )
        examples = task_of(spec).training(spec, data)
        return cls(
            data=data,
            examples=examples,
            seed=spec.training.seed,
            world_size=world_size,
            rank=rank,
            micro_batches=micro_batches,
            micro_batch_sequences=each,
            device=device,
            mixture=mixture_of(spec, examples),
        )

    @property
    def batch_sequences(self) -> int:
        """Sequences of a step, all ranks together."""
        return self.micro_batch_sequences * self.micro_batches * self.world_size

    @property
    def epoch_sequences(self) -> int:
        """Sequences of the training text."""
        return self.examples.count

    def batch(self, position: int) -> Batch:
        """This rank's part of the batch whose first global sample index is `position`."""
        size = self.micro_batch_sequences
        firsts = (
            position + (micro_batch * self.world_size + self.rank) * size
            for micro_batch in range(self.micro_batches)
        )
        return [self._micro_batch(np.arange(first, first + size)) for first in firsts]

    def _micro_batch(self, samples: NDArray[np.int64]) -> MicroBatch:
        mixture = self.mixture
        numbers = (
            mixture.sequences_of(self.seed, samples)
            if mixture
            else sample_order(self.seed, samples, self.examples.count)
        )
        return self.examples.read(numbers, samples, self.device)


def mixture_of(spec: TrainingSpec, examples: Examples) -> Mixture | None:
    """How the sources of `spec` are mixed; None where they have no weights."""
    weights = [source.weight for source in spec.data.train if source.weight is not None]
    return Mixture.of(examples.counts, weights) if weights else None
