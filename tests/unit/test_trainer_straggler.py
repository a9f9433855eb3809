"""Who is slow at what each rank does alone."""

import pytest

from lmtraining_trainer.straggler import (
    COMPARISONS_MIN,
    SCORE_MIN,
    STEPS_MEASURED,
    STEPS_MIN,
    OwnWork,
    RankPace,
    Stragglers,
)

pytestmark = pytest.mark.unit


def paces(*seconds: float, step_seconds: float = 1.0) -> list[RankPace]:
    return [RankPace(seconds=each, step_seconds=step_seconds) for each in seconds]


def told(*comparisons: list[RankPace]) -> list[int]:
    """The stragglers after these comparisons."""
    watched = Stragglers()
    for comparison in comparisons:
        watched = watched.after(comparison)
    return [rank.rank for rank in watched.scored(comparisons[-1]) if rank.is_straggler]


def test_a_score_is_the_fastest_over_ones_own() -> None:
    scores = Stragglers().scored(paces(0.2, 0.1, 0.4))
    assert [(each.rank, each.score, each.seconds) for each in scores] == [
        (0, 0.5, 0.2),
        (1, 1.0, 0.1),
        (2, 0.25, 0.4),
    ]


SLOW, GOOD = paces(0.2, 0.1), paces(0.1, 0.1)
CASES = [
    ("three in a row", [SLOW] * COMPARISONS_MIN, [0]),
    ("two are chance", [SLOW] * (COMPARISONS_MIN - 1), []),
    ("one good one begins the count anew", [SLOW, SLOW, GOOD, SLOW, SLOW], []),
    ("one good one ends it", [SLOW] * 5 + [GOOD], []),
    ("almost as slow", [paces(0.2 / (SCORE_MIN + 0.01), 0.2)] * 5, []),
    ("a little slower", [paces(0.2 / (SCORE_MIN - 0.01), 0.2)] * 5, [0]),
    ("nothing that the step would notice", [paces(0.002, 0.001)] * 5, []),
    ("it alternates", [paces(0.2, 0.1), paces(0.1, 0.2)] * 4, []),
    ("two of them", [paces(0.5, 0.1, 0.4)] * COMPARISONS_MIN, [0, 2]),
    ("a clock that stood still", [paces(0.0, 0.1)] * 5, [1]),
]


@pytest.mark.parametrize(("comparisons", "ranks"), [case[1:] for case in CASES],
                         ids=[case[0] for case in CASES])  # fmt: skip
def test_who_is_called_a_straggler(comparisons: list[list[RankPace]], ranks: list[int]) -> None:
    assert told(*comparisons) == ranks


def test_the_median_is_of_the_newest_steps_without_the_first() -> None:
    work = OwnWork()
    work.add(100.0, float)
    for _ in range(STEPS_MIN - 1):
        work.add(1.0, lambda: 2.0)
    assert work.median_seconds is None
    work.add(1.0, lambda: 2.0)
    assert work.median_seconds == 3.0
    for _ in range(STEPS_MEASURED):
        work.add(0.5, lambda: 0.5)
    assert work.median_seconds == 1.0
