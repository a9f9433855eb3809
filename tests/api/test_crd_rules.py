"""A real API server judges as the models do, in the same words (tests/contract_cases.py)."""

import json
from typing import Any

import pytest
import yaml

from devcluster.kubectl import Kubectl
from devcluster.waiting import wait_until
from tests.api.conftest import Answer, Jobs
from tests.api.definition import ANSWER_SECONDS_MAX, CRD, define_jobs
from tests.contract_bounds import just_out_of_bounds
from tests.contract_cases import (
    BATCH_ADVICE,
    CHANGES,
    MINIMAL,
    MUTABLE,
    OUT_OF_BOUNDS,
    PAIRS,
    SIZE_MISTAKES,
    Change,
    Document,
    Pair,
    changed,
    minimal,
    workers,
)

pytestmark = pytest.mark.api

OK, CREATED, INVALID = 200, 201, 422
DRY_RUN = "?dryRun=All"


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


def test_a_value_just_out_of_bounds_gives_one_cause_and_no_rule_fails_over_it(jobs: Jobs) -> None:
    """Every bound of every field: the one cause is about that field."""
    given = [(path, mistakes(jobs.create(document))) for path, document in just_out_of_bounds()]
    assert len(given) > 100
    wrong = [(path, found) for path, found in given if [field for field, _ in found] != [path]]
    assert not wrong, wrong


def mistakes(answer: Answer) -> list[tuple[str, str]]:
    """The causes, without the note that rules wait until a type or a length is mended."""
    note = "some validation rules were not checked"
    return [cause for cause in answer.causes if note not in cause[1]]


def test_the_advised_batch_is_the_one_that_the_models_advise(jobs: Jobs) -> None:
    for document, advised in BATCH_ADVICE:
        ((_, sentence),) = jobs.create(document).causes
        assert f"choose {advised} or another multiple" in sentence
        better = jobs.create(changed(document, training={"batchTokens": advised}), DRY_RUN)
        assert better.code == CREATED, better.message


def test_a_size_in_other_units_is_told_what_to_write(jobs: Jobs) -> None:
    for size in SIZE_MISTAKES:
        ((field, sentence),) = jobs.create(workers(resources={"memory": size})).causes
        assert field == "spec.workers.resources.memory"
        assert sentence.endswith(
            f"memory {size} is not a quantity from 16Mi to 64Ti: write 2G or 2Gi"
        )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.at)
def test_a_block_stays_as_it_was_made(jobs: Jobs, change: Change) -> None:
    """P12: a bad wish is refused, and writing out what holds anyway is not a change."""
    jobs.create(MINIMAL)
    refused = jobs.merge("tiny", {"spec": change.refuse})
    assert refused.code == INVALID
    assert refused.causes == [(change.at, f"Invalid value: {change.told}")]
    allowed = jobs.merge("tiny", {"spec": change.allow})
    assert allowed.body["metadata"]["generation"] == 1, allowed.message


def test_what_is_meant_to_change_may_change(jobs: Jobs) -> None:
    jobs.create(MINIMAL)
    changed = jobs.merge("tiny", {"spec": MUTABLE})
    assert changed.body["metadata"]["generation"] == 2, changed.message
    assert changed.body["spec"]["suspend"] is True
    assert changed.body["spec"]["recovery"]["restartsMax"] == 9
    back = jobs.merge("tiny", {"spec": {"checkpoint": {"everySteps": None}}})
    assert back.body["metadata"]["generation"] == 3, back.message


ASKED_ONCE = "optionalOldSelf"
OLDER_JOBS = {
    "two-dropouts": minimal(
        model={"config": {"dropout": 0.5}}, training={"regularisation": {"dropout": 0.25}}
    ),
    "no-stop": minimal(
        training={"earlyStopping": {"patience": 1}, "evaluation": {"everySteps": 13}}
    ),
}


@pytest.fixture
def older_jobs(jobs: Jobs, kubectl: Kubectl) -> Jobs:
    """With jobs in it that were made before the rules that are for new jobs alone."""
    older = without_what_is_asked_once(yaml.safe_load(CRD.read_text()))
    made = [job | {"metadata": {"name": name}} for name, job in OLDER_JOBS.items()]
    try:
        kubectl.run("apply", "--server-side", "--filename", "-", stdin=json.dumps(older))
        for job in made:
            wait_until(
                "the API server has forgotten the rules",
                lambda job=job: jobs.create(job).code == CREATED,  # type: ignore[misc]
                limit_seconds=ANSWER_SECONDS_MAX,
            )
    finally:
        define_jobs(kubectl)
    wait_until(
        "the API server knows the rules",
        lambda: all(jobs.create(job, DRY_RUN).code == INVALID for job in OLDER_JOBS.values()),
        limit_seconds=ANSWER_SECONDS_MAX,
    )
    return jobs


def without_what_is_asked_once(schema: Any) -> Any:
    """The definition without the rules that are for new jobs alone."""
    if isinstance(schema, list):
        kept = [one for one in schema if not (isinstance(one, dict) and ASKED_ONCE in one)]
        return [without_what_is_asked_once(one) for one in kept]
    if isinstance(schema, dict):
        return {name: without_what_is_asked_once(value) for name, value in schema.items()}
    return schema


def test_a_rule_that_is_younger_than_a_job_stands_in_the_way_of_no_edit(older_jobs: Jobs) -> None:
    """P12: what is immutable cannot be mended, and all else goes on."""
    edits = ({"suspend": True}, {"suspend": False}, {"training": {"budget": {"steps": 12}}})
    for name in OLDER_JOBS:
        for edit in edits:
            edited = older_jobs.merge(name, {"spec": edit})
            assert edited.code == OK, edited.message
