"""What has changed in a job since its run was last gone on with, in a user's words."""

from typing import Any

import pytest

from lmtraining_api import TrainingSpec
from lmtraining_trainer.run import changes
from lmtraining_trainer.run.directory import spec_as_written

pytestmark = pytest.mark.unit


def _spec(**blocks: dict[str, Any]) -> TrainingSpec:
    spec: dict[str, dict[str, Any]] = {
        "model": {"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        "data": {"train": [{"uri": "file:///a"}], "sequenceLength": 16},
        "training": {"budget": {"steps": 100}, "batchTokens": 128},
    }
    return TrainingSpec.model_validate(
        {name: spec.get(name, {}) | blocks.get(name, {}) for name in spec | blocks}
    )


BEFORE = _spec()
RECORD = {"spec": spec_as_written(BEFORE), "ranks": 2}
AS_BEFORE: dict[str, Any] = {"workers": {"replicas": 2}}

CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"training": {"budget": {"steps": 200}}}, ["training.budget.steps: 100 → 200"]),
    ({"data": {"train": [{"uri": "file:///b"}]}}, ["data.train[0].uri: file:///a → file:///b"]),
    ({"checkpoint": {"everySteps": 7}}, ["checkpoint.everySteps: default → 7"]),
    ({"workers": {"ranksPerReplica": 2}}, []),
    ({"workers": {"replicas": 4}}, ["workers (ranks in all): 2 → 4"]),
]


@pytest.mark.parametrize(("blocks", "lines"), CASES)
def test_one_line_for_each_changed_field(blocks: dict[str, Any], lines: list[str]) -> None:
    assert changes(RECORD, _spec(**(AS_BEFORE | blocks))) == lines


def test_a_field_put_back_to_its_default_is_said() -> None:
    record = {"spec": spec_as_written(_spec(checkpoint={"everySteps": 7})), "ranks": 1}
    assert changes(record, BEFORE) == ["checkpoint.everySteps: 7 → default"]


@pytest.mark.parametrize("record", [{}, {"spec": None}, {"job_uid": "u"}])
def test_a_run_that_remembers_no_job_says_nothing(record: dict[str, Any]) -> None:
    assert changes(record, BEFORE) == []
