"""How often to save where the job leaves it open."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtraining_api import JournalEntry
from lmtraining_trainer.interval import (
    COST_SHARE_MAX,
    PRIOR_RANK_SECONDS,
    SECONDS_MAX,
    history,
    interval,
)

pytestmark = pytest.mark.unit

DAY = 86_400.0


@pytest.mark.parametrize(
    ("cost", "faults", "observed", "ranks", "seconds"),
    [
        (0.5, 0, 0.0, 1, SECONDS_MAX),  # nothing has happened: the cap
        (0.1, 10, 10_000.0, 1, math.sqrt(2 * 0.1 * 1000)),  # a fault every 1000 s
        (0.1, 0, DAY, 16_384, math.sqrt(2 * 0.1 * PRIOR_RANK_SECONDS / 16_384)),
        (10.0, 5, 100.0, 1, 10.0 / COST_SHARE_MAX),  # faults all the time: not only saving
        (60.0, 0, 0.0, 1, 60.0 / COST_SHARE_MAX),  # a save that is dearer than the cap allows
    ],
)
def test_the_interval(
    cost: float, faults: int, observed: float, ranks: int, seconds: float
) -> None:
    chosen = interval(cost_seconds=cost, faults=faults, observed_seconds=observed, ranks=ranks)
    assert chosen.seconds == pytest.approx(seconds, rel=1e-3)
    assert chosen.cost_seconds == cost


def test_what_is_known_of_other_runs_is_as_published() -> None:
    """A fault every three hours or so on 16,384 GPUs."""
    assert pytest.approx(3.1, abs=0.1) == PRIOR_RANK_SECONDS / 16_384 / 3600


@given(
    cost=st.floats(0.0, 1e3),
    faults=st.integers(0, 100),
    observed=st.floats(1.0, 1e7),
    ranks=st.integers(1, 10_000),
)
def test_more_faults_or_ranks_never_lengthen_it_and_saving_is_bounded(
    cost: float, faults: int, observed: float, ranks: int
) -> None:
    def seconds(faults: int, ranks: int) -> float:
        return interval(
            cost_seconds=cost, faults=faults, observed_seconds=observed, ranks=ranks
        ).seconds

    chosen = seconds(faults, ranks)
    assert seconds(faults + 1, ranks) <= chosen
    assert seconds(faults, ranks + 1) <= chosen
    assert cost <= COST_SHARE_MAX * chosen + 1e-3
    assert chosen <= max(SECONDS_MAX, cost / COST_SHARE_MAX) + 1e-3


def _entry(kind: str, **detail: bool) -> JournalEntry:
    return JournalEntry.model_validate(
        {"sequence": 0, "time": "2026-01-01T00:00:00Z", "attempt": 1, "round": 1, "kind": kind,
         "step": 0, "detail": detail}
    )  # fmt: skip


def test_faults_and_saves_are_this_jobs_and_a_stop_is_no_fault() -> None:
    entries = [
        _entry("Started"), _entry("Saved"), _entry("Started", after_fault=True),
        _entry("Started", taken_over=True, after_fault=False), _entry("Saved"), _entry("Saved"),
        _entry("Started", after_fault=False), _entry("Started", after_fault=True),
    ]  # fmt: skip
    assert history(entries) == (1, 2)
