"""Weighted sources: the shares that were asked for, by arithmetic alone (P7)."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lmtraining_trainer.data import PreparedData, open_prepared, prepare, wanted
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.mixture import SLOTS, Mixture, slots_of
from lmtraining_trainer.data.prepared import check_enough
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import read_json
from lmtraining_trainer.tasks.causal import Windows
from tests.trainer.rank_support import tiny_spec, write_text

pytestmark = pytest.mark.trainer

SEQUENCES = (100, 10, 300)


def mixture(*weights: float) -> Mixture:
    return Mixture.of(SEQUENCES, weights)


def sources_of(numbers: np.ndarray) -> list[int]:
    return [int(s) for s in np.searchsorted(np.cumsum(SEQUENCES), numbers, side="right")]


@pytest.mark.parametrize("weights", [(1, 1, 1), (9, 1, 0.5), (1000, 0.001, 1)])
def test_the_shares_are_those_of_the_weights(weights: tuple[float, ...]) -> None:
    """Exactly over SLOTS samples in a row, wherever they begin on a multiple, and nearly in every
    stretch."""
    numbers = mixture(*weights).sequences_of(7, np.arange(3 * SLOTS))
    for block in numbers.reshape(3, SLOTS):
        counts = Counter(sources_of(block))
        for source, weight in enumerate(weights):
            share = counts[source] / SLOTS
            assert share == pytest.approx(weight / sum(weights), abs=2 / SLOTS)
            assert counts[source] >= 1
    stretch = Counter(sources_of(numbers[1000:1512]))
    assert stretch[0] / 512 == pytest.approx(weights[0] / sum(weights), abs=0.1)


def test_each_source_reads_all_its_sequences_before_it_repeats_one() -> None:
    numbers = mixture(9, 1, 3).sequences_of(3, np.arange(2 * SLOTS))
    sources = np.array(sources_of(numbers))
    for source, sequences in enumerate(SEQUENCES):
        seen = Counter(numbers[sources == source].tolist())
        start = sum(SEQUENCES[:source])
        assert set(seen) == set(range(start, start + sequences))
        assert max(seen.values()) - min(seen.values()) <= 1


def test_no_sequence_reaches_from_one_source_into_the_next() -> None:
    sizes, length = (35, 17, 64), 8
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    windows = Windows(tokens=tokens, length=length, source_tokens=sizes)
    assert windows.counts == (4, 2, 7)
    numbers = np.arange(windows.count)
    batch = windows.read(numbers, numbers, torch.device("cpu"))
    ends = np.cumsum(sizes)
    for first, last in zip(batch.inputs[:, 0], batch.targets[:, -1], strict=True):
        assert int(last) == int(first) + length
        assert np.searchsorted(ends, int(first), "right") == np.searchsorted(
            ends, int(last), "right"
        )
    assert batch.inputs[:, 0].tolist() == [0, 8, 16, 24, 35, 43, 52, 60, 68, 76, 84, 92, 100]


def test_p7_a_sample_depends_on_seed_and_index_alone() -> None:
    mixed = mixture(2, 1, 1)
    samples = np.array([0, 1, 77, SLOTS, 10 * SLOTS + 5, 2**40])
    together = mixed.sequences_of(5, samples)
    alone = [int(mixed.sequences_of(5, samples[i : i + 1])[0]) for i in range(len(samples))]
    assert together.tolist() == alone
    assert together.tolist() != mixed.sequences_of(6, samples).tolist()


def test_slots_add_up_and_none_is_left_out() -> None:
    for weights in ([1.0] * 64, [1000.0, *[0.001] * 63], [3.0, 1.0]):
        slots = slots_of(weights)
        assert sum(slots) == SLOTS
        assert min(slots) >= 1


def prepared(tmp_path: Path, train: list[dict[str, object]]) -> PreparedData:
    spec = tiny_spec("file:///x", data={"train": train})
    key = prepare(
        spec.data, cache=tmp_path, credentials=tmp_path, owner="uid", progress=lambda _: None
    )
    found = open_prepared(tmp_path, key)
    assert found is not None
    manifest = read_json(tmp_path / key / "manifest.json")
    assert manifest is not None
    assert sum(manifest["source_tokens"]) == manifest["train_tokens"] == len(found.train)
    return found


def test_p7_a_mixture_is_read_alike_by_every_world_size(tmp_path: Path) -> None:
    old = {"uri": write_text(tmp_path / "old.jsonl", documents=200), "format": "jsonl"}
    new = {"uri": write_text(tmp_path / "new.jsonl", documents=40), "format": "jsonl"}
    train = [{**new, "weight": 3}, {**old, "weight": 1}]
    data = prepared(tmp_path, train)
    spec = tiny_spec("file:///x", data={"train": train})
    check_enough(data, spec)

    def rows(world_size: int, position: int) -> list[list[int]]:
        plans = [
            BatchPlan.of(spec, data, rank=r, world_size=world_size, device=torch.device("cpu"))
            for r in range(world_size)
        ]
        return sorted(
            row for p in plans for batch in p.batch(position) for row in batch.inputs.tolist()
        )

    for position in (0, 8, 8 * 1001):
        assert rows(1, position) == rows(2, position) == rows(4, position)
    plan = BatchPlan.of(spec, data, rank=0, world_size=1, device=torch.device("cpu"))
    assert plan.mixture is not None
    numbers = plan.mixture.sequences_of(1, np.arange(SLOTS))
    assert (numbers < plan.examples.counts[0]).sum() == SLOTS * 3 / 4


def test_without_weights_all_is_as_it_was(tmp_path: Path) -> None:
    """The cache's key, what a run remembers of its data, and the order; the shares are told."""
    one = {"uri": write_text(tmp_path / "a.jsonl", documents=60), "format": "jsonl"}
    two = {"uri": write_text(tmp_path / "b.jsonl", documents=90), "format": "jsonl"}
    plain = prepared(tmp_path, [one, two])
    weighted = prepared(tmp_path, [{**one, "weight": 1}, {**two, "weight": 1}])
    assert np.array_equal(plain.train, weighted.train)
    assert plain.source_tokens == weighted.source_tokens
    assert plain.key != weighted.key  # an older one does not know whose text is whose
    spec = tiny_spec("file:///x", data={"train": [one, two]})
    assert {key for source in wanted(spec.data)["train"] for key in source} == {
        "uri", "format", "textField", "credentials",
    }  # fmt: skip
    unmixed = BatchPlan.of(spec, plain, rank=0, world_size=1, device=torch.device("cpu"))
    assert unmixed.mixture is None


def test_a_source_without_a_sequence_is_named(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("two words")
    long = {"uri": write_text(tmp_path / "a.jsonl"), "format": "jsonl", "weight": 1}
    train = [long, {"uri": (tmp_path / "few.txt").as_uri(), "weight": 9}]
    data = prepared(tmp_path, train)
    with pytest.raises(TrainerError, match=r"data.train\[1\] has .* tokens, less than one .* 16"):
        check_enough(data, tiny_spec("file:///x", data={"train": train}))
