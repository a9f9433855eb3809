"""Which checkpoints stay: a table (P8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtraining_api.job import Checkpoint
from lmtraining_trainer.checkpoint.retention import Kept, steps_to_keep

pytestmark = pytest.mark.trainer


def _intact(text: str) -> list[Kept]:
    """`30 20:2.5 10h 0h`: steps, validation losses, marks; newest first."""
    found = []
    for word in text.split():
        step, _, loss = word.rstrip("h").partition(":")
        found.append(
            Kept(
                step=int(step),
                is_healthy=word.endswith("h"),
                validation_loss=float(loss) if loss else None,
            )
        )
    return found


@pytest.mark.parametrize(
    ("intact", "keep", "steps"),
    [
        ("40 30 20 10 0h", {"keepLast": 2}, {40, 30, 10, 0}),  # 10 will be healthy next
        ("40 30 20h 10h 0h", {"keepLast": 1}, {40, 30, 20}),
        ("40h 30h 20h 10h 0h", {"keepLast": 1}, {40}),
        ("40:3.0h 30:2.0h 20:2.5h", {"keepLast": 1}, {40, 30}),
        ("40:3.0h 30:2.0h 20:2.5h", {"keepLast": 1, "keepBest": 0}, {40}),
        ("40:3.0h 30:2.0h 20:2.5h 10:2.6h", {"keepLast": 1, "keepBest": 2}, {40, 30, 20}),
        ("40:2.0h 30:2.0h", {"keepLast": 1}, {40}),  # of equals the newer one
        ("40h 30:9.0h 20h", {"keepLast": 1}, {40, 30}),  # who was not validated is not the best
        ("50h 40h 30h 20h 10h 0h", {"keepLast": 1, "keepEverySteps": 20}, {50, 40, 20}),
        ("0h", {"keepEverySteps": 10}, {0}),
    ],
)
def test_what_is_kept(intact: str, keep: dict[str, int], steps: set[int]) -> None:
    assert steps_to_keep(_intact(intact), Checkpoint.model_validate(keep)) == steps


@given(
    facts=st.lists(st.tuples(st.booleans(), st.none() | st.floats(0, 9)), min_size=1, max_size=20),
    last=st.integers(1, 4),
    best=st.integers(0, 4),
    every=st.none() | st.integers(1, 30),
)
def test_p8_the_newest_of_either_mark_stays(
    facts: list[tuple[bool, float | None]], last: int, best: int, every: int | None
) -> None:
    intact = [
        Kept(step=10 * (len(facts) - at), is_healthy=healthy, validation_loss=loss)
        for at, (healthy, loss) in enumerate(facts)
    ]
    keep = Checkpoint(keep_last=last, keep_best=best, keep_every_steps=every)
    kept = steps_to_keep(intact, keep)
    assert {one.step for one in intact[:last]} <= kept
    assert all(one.step in kept for one in [o for o in intact if o.is_healthy][:1])
    rest = kept - {one.step for one in intact[:last]}
    milestones = sum(1 for step in rest if every and step % every == 0)
    assert len(rest) <= best + milestones + 2
