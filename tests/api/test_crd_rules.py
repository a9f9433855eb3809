"""A real API server judges as the models do, in the same words (tests/contract_cases.py)."""

import pytest

from tests.api.conftest import Jobs
from tests.contract_cases import (
    CHANGES,
    MINIMAL,
    MUTABLE,
    OUT_OF_BOUNDS,
    PAIRS,
    Change,
    Document,
    Pair,
)

pytestmark = pytest.mark.api

CREATED, INVALID = 201, 422


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.sentence[:40])
def test_a_rule_accepts_one_and_refuses_the_other(jobs: Jobs, pair: Pair) -> None:
    refused = jobs.create(pair.refuse)
    assert refused.code == INVALID
    assert refused.causes == [(pair.at, f"Invalid value: {pair.sentence}")]
    accepted = jobs.create(pair.accept)
    assert accepted.code == CREATED, accepted.message


@pytest.mark.parametrize(("document", "path"), OUT_OF_BOUNDS, ids=lambda case: str(case)[:60])
def test_a_field_out_of_bounds_is_refused_by_its_path(
    jobs: Jobs, document: Document, path: str
) -> None:
    refused = jobs.create(document)
    assert refused.code == INVALID
    assert any(field.startswith(path) for field, _ in refused.causes), refused.causes


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.at)
def test_a_block_stays_as_it_was_made(jobs: Jobs, change: Change) -> None:
    """P12: a bad wish is refused, and writing out what holds anyway is not a change."""
    jobs.create(MINIMAL)
    refused = jobs.merge("tiny", {"spec": change.refuse})
    assert refused.code == INVALID
    assert refused.causes == [
        (
            change.at,
            f"Invalid value: {change.at} cannot be changed once the job exists: make a new job, "
            "or undo the change",
        )
    ]
    allowed = jobs.merge("tiny", {"spec": change.allow})
    assert allowed.body["metadata"]["generation"] == 1, allowed.message


def test_suspend_and_recovery_may_change(jobs: Jobs) -> None:
    jobs.create(MINIMAL)
    changed = jobs.merge("tiny", {"spec": MUTABLE})
    assert changed.body["metadata"]["generation"] == 2, changed.message
    assert changed.body["spec"]["suspend"] is True
    assert changed.body["spec"]["recovery"]["restartsMax"] == 9
