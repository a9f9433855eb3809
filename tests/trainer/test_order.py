"""The order of the samples is arithmetic (resume is one integer, P7)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtraining_trainer.data.order import sample_order

pytestmark = pytest.mark.trainer


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), sequences=st.integers(1, 3000), epoch=st.integers(0, 2**31))
def test_every_epoch_reads_each_sequence_once(seed: int, sequences: int, epoch: int) -> None:
    samples = np.arange(epoch * sequences, (epoch + 1) * sequences)
    assert sorted(sample_order(seed, samples, sequences)) == list(range(sequences))


def test_a_sample_does_not_depend_on_what_it_is_asked_with() -> None:
    together = sample_order(3, np.arange(500), 77)
    alone = [int(sample_order(3, np.array([index]), 77)[0]) for index in range(500)]
    assert together.tolist() == alone


def test_epochs_and_seeds_differ() -> None:
    first, second = (sample_order(1, np.arange(at, at + 100), 100) for at in (0, 100))
    other_seed = sample_order(2, np.arange(100), 100)
    assert (first != second).any()
    assert (first != other_seed).any()
    # Not merely a rotation or a stride: neighbours are scattered.
    assert len(set(np.diff(first).tolist())) > 50


def test_the_order_is_what_it_was_when_runs_were_begun() -> None:
    """A change here would make every running job read other samples after a restart."""
    assert sample_order(1, np.arange(8), 1000).tolist() == EXPECTED


EXPECTED = [771, 269, 642, 294, 413, 424, 747, 291]
