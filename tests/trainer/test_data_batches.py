"""Batches are arithmetic on one integer, the same samples for every world size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lmtraining_trainer.data import PreparedData
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.errors import TrainerError
from tests.trainer.rank_support import tiny_spec

pytestmark = pytest.mark.trainer


def plan(rank: int, world_size: int, **training: object) -> BatchPlan:
    tokens = np.arange(2000, dtype=np.uint16)
    data = PreparedData(
        key="k",
        train=tokens,
        validation=tokens,
        tokenizer_json="",
        tokenizer_sha256="",
        unigram_loss=0.0,
    )
    spec = tiny_spec("file:///x", training=training)
    return BatchPlan.of(spec, data, rank=rank, world_size=world_size, device=torch.device("cpu"))


def rows(world_size: int, position: int, **training: object) -> list[list[int]]:
    return sorted(
        row
        for rank in range(world_size)
        for micro_batch in plan(rank, world_size, **training).batch(position)
        for row in micro_batch.inputs.tolist()
    )


@pytest.mark.parametrize("position", [0, 8, 8 * 17])
def test_every_world_size_reads_the_same_sequences_of_a_step(position: int) -> None:
    alone = rows(1, position)
    assert len(alone) == 8
    assert rows(2, position) == rows(4, position) == alone
    assert rows(2, position, gradientAccumulation=4) == alone


def test_targets_are_the_next_tokens() -> None:
    (micro_batch,) = plan(0, 1).batch(3)
    assert torch.equal(micro_batch.targets, micro_batch.inputs + 1)  # the text counts up
    assert micro_batch.inputs.shape == (8, 16)
    assert micro_batch.inputs.dtype == torch.int64


def test_an_epoch_reads_every_sequence_once() -> None:
    sequences = (2000 - 1) // 16
    seen = [
        row[0] // 16
        for position in range(0, sequences, 4)
        for micro_batch in plan(0, 1, batchTokens=64).batch(position)
        for row in micro_batch.inputs.tolist()
    ]
    assert sorted(seen[:sequences]) == list(range(sequences))


def test_ranks_that_cannot_share_a_batch_are_refused_with_numbers(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"8 sequences .* 3 ranks"):
        plan(0, 3)
