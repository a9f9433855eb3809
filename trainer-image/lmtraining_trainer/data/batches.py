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
from lmtraining_trainer.data.order import sample_order
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.errors import TrainerError


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward pass."""

    inputs: torch.Tensor
    """Tokens, int64 [sequences, sequence_length]."""
    targets: torch.Tensor
    """The token after each, int64, same shape."""


Batch = list[MicroBatch]
"""What one rank reads in one step: a micro-batch per accumulation."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of one rank."""

    data: PreparedData
    sequence_length: int
    seed: int
    world_size: int
    rank: int
    micro_batches: int
    """Micro-batches per rank and step."""
    micro_batch_sequences: int
    """Sequences of a micro-batch."""
    device: torch.device

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
        return cls(
            data=data,
            sequence_length=spec.data.sequence_length,
            seed=spec.training.seed,
            world_size=world_size,
            rank=rank,
            micro_batches=micro_batches,
            micro_batch_sequences=each,
            device=device,
        )

    @property
    def batch_sequences(self) -> int:
        """Sequences of a step, all ranks together."""
        return self.micro_batch_sequences * self.micro_batches * self.world_size

    @property
    def epoch_sequences(self) -> int:
        """Sequences of the training text."""
        return (len(self.data.train) - 1) // self.sequence_length

    def batch(self, position: int) -> Batch:
        """This rank's part of the batch whose first global sample index is `position`."""
        size = self.micro_batch_sequences
        firsts = (
            position + (micro_batch * self.world_size + self.rank) * size
            for micro_batch in range(self.micro_batches)
        )
        return [self._micro_batch(np.arange(first, first + size)) for first in firsts]

    def _micro_batch(self, samples: NDArray[np.int64]) -> MicroBatch:
        starts = sample_order(self.seed, samples, self.epoch_sequences) * self.sequence_length
        return windows(self.data.train, starts, self.sequence_length, self.device)


def windows(
    tokens: NDArray[np.uint16] | NDArray[np.uint32],
    starts: NDArray[np.int64],
    length: int,
    device: torch.device,
) -> MicroBatch:
    """The sequences of `length` tokens that begin at `starts`, with the token after each."""
    rows = tokens[starts[:, None] + np.arange(length + 1)[None, :]].astype(np.int64)
    both = torch.from_numpy(rows)
    if device.type == "cuda":  # pinned, so that the copy does not wait for the device
        both = both.pin_memory().to(device, non_blocking=True)
    return MicroBatch(inputs=both[:, :-1], targets=both[:, 1:])
