"""Can this version run this spec, here?"""

import json
from dataclasses import replace
from typing import Any

import pytest

from lmtraining_api.status import (
    STATUS_VERSION,
    Accepted,
    ConditionType,
    LMTrainingJobStatus,
    Succeeded,
)
from lmtraining_operator.plan import Create, ObservedClaim
from lmtraining_operator.plan.acceptance import NotAccepted, parse, reason_not_to_start
from lmtraining_operator.plan.model import Object
from tests.unit.operator_situations import (
    NOW,
    decide,
    deleted,
    ended,
    events,
    job_object,
    made,
    reason,
    running_gang,
    situation,
    status_of,
)

pytestmark = pytest.mark.unit

SHARED = {"checkpoint": {"storage": {"existingClaim": "shared"}, "path": "ours"}}


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"training__budget__steps": 0}, Accepted.INVALID, ["training.budget.steps", "1 or more"]),
        ({"training__batchTokens": 1000}, Accepted.INVALID, ["batchTokens 1000", "multiple"]),
        ({"precision__compute": "fp4"}, Accepted.UNSUPPORTED, ["precision.compute", "bf16"]),
        ({"elastic": "team"}, Accepted.UNSUPPORTED, ["spec.elastic", "upgrade the operator"]),
        ({"workers__replicas": "two"}, Accepted.INVALID, ["workers.replicas", "whole number"]),
    ],
)
def test_bad_spec_is_explained(changes: Object, reason: Accepted, words: list[str]) -> None:
    """P4: one sentence with the field and the fix."""
    found = parse(job_object(**changes), has_begun=False)
    assert isinstance(found, NotAccepted)
    assert found.reason is reason
    for word in words:
        assert word in found.message


def test_explanation_quotes_no_uri() -> None:
    """P11: a secret that was put in the wrong place does not reach status."""
    bad = job_object(data__train=[{"url": "s3://key:hunter2@bucket/x"}])
    found = parse(bad, has_begun=False)
    assert isinstance(found, NotAccepted)
    assert "hunter2" not in found.message


def test_good_spec_is_parsed_and_status_is_no_part_of_it() -> None:
    assert not isinstance(
        parse(job_object() | {"status": {"attempt": 3}}, has_begun=False), NotAccepted
    )


YOUNG_RULES: list[Object] = [
    {"model__config__dropout": 0.1, "training__regularisation": {"dropout": 0.2}},
    {"training__optimizer__name": "ftrl", "training__regularisation": {"proximalL1": 0.1}},
    {"training__fineTuning": {"lora": {}}, "training__regularisation": {"proximalL1": 0.1}},
    {"training__earlyStopping": {"patience": 1}, "training__evaluation": {"everySteps": 21}},
    {"training__fineTuning": {"unfreezeEverySteps": 20}},
]
"""Jobs that were accepted before there was a rule against them."""


@pytest.mark.parametrize("changes", YOUNG_RULES, ids=str)
class TestARuleThatIsYoungerThanTheJob:
    def test_refuses_one_that_has_not_begun(self, changes: Object) -> None:
        assert reason(decide(job=job_object(**changes)), ConditionType.ACCEPTED) == "Invalid"

    def test_leaves_one_that_trains_watched(self, changes: Object) -> None:
        """P4, P10: after an upgrade of the operator."""
        found = decide(
            status_of(state=Succeeded.TRAINING), job=job_object(**changes), pods=running_gang(2)
        )
        assert reason(found, ConditionType.ACCEPTED) == "Valid"
        assert found.report_from == "127.1.0.1"
        assert deleted(found) == []

    def test_knows_one_by_its_pods_where_the_status_was_wiped(self, changes: Object) -> None:
        """P10."""
        gang = tuple(replace(pod, watched_seconds=61.0) for pod in running_gang(2))
        found = decide(job=job_object(**changes), pods=gang)
        assert reason(found, ConditionType.ACCEPTED) == "Valid"
        assert found.status.attempt == 1

    def test_leaves_it_its_end(self, changes: Object) -> None:
        gang = tuple(ended(pod, 0) for pod in running_gang(2))
        found = decide(status_of(), job=job_object(**changes), pods=gang)
        assert reason(found) == "Completed"

    def test_lets_its_pods_be_made_again(self, changes: Object) -> None:
        """P12: with a job file that says what it said."""
        job = job_object(**changes)
        found = decide(status_of(complete=False), job=job)
        assert made(found)[-2:] == ["Pod/tiny-1-0-0", "Pod/tiny-1-1-0"]
        (content,) = (
            action.body["data"]["job.json"]
            for action in found.actions
            if isinstance(action, Create) and action.body["kind"] == "ConfigMap"
        )
        written = json.loads(content)["spec"]["training"]
        of_rules = ("regularisation", "fineTuning", "earlyStopping")
        assert {name: written.get(name) is None for name in of_rules} == {
            name: job["spec"]["training"].get(name) is None for name in of_rules
        }


@pytest.mark.parametrize(
    ("modes", "replicas", "is_fit"),
    [
        (("ReadWriteOnce",), 1, True),
        (("ReadWriteMany",), 2, True),
        (("ReadWriteOnce", "ReadWriteMany"), 2, True),
        (("ReadWriteOnce",), 2, False),
        (("ReadWriteOncePod",), 2, False),
    ],
)
def test_access_mode_of_an_existing_claim(
    modes: tuple[str, ...], replicas: int, is_fit: bool
) -> None:
    spec = {"workers__replicas": replicas, "checkpoint__storage": {"existingClaim": "disk"}}
    claim = ObservedClaim(name="disk", access_modes=modes)
    found = reason_not_to_start(situation(status=status_of(attempt=0), spec=spec, claim=claim))
    assert (found is None) is is_fit
    if found:
        assert f"disk has access mode {modes[0]}" in found.message
        assert "workers.replicas" in found.message


@pytest.mark.parametrize(("made_for", "is_fit"), [("tiny", True), ("", False), ("other", False)])
def test_claim_under_our_name(made_for: str, is_fit: bool) -> None:
    """P1: what an earlier job of this name left is taken over; what somebody else made is not."""
    claim = ObservedClaim(
        name="tiny-checkpoints", access_modes=("ReadWriteMany",), made_for_job=made_for
    )
    found = reason_not_to_start(situation(status=status_of(attempt=0), claim=claim))
    assert (found is None) is is_fit


@pytest.mark.parametrize(("size", "is_fit"), [("10Gi", True), ("10240Mi", True), ("9Gi", False)])
def test_claim_that_is_reused_and_too_small(size: str, is_fit: bool) -> None:
    claim = ObservedClaim(
        name="tiny-checkpoints", size=size, access_modes=("ReadWriteMany",), made_for_job="tiny"
    )
    found = reason_not_to_start(situation(status=status_of(attempt=0), claim=claim))
    assert (found is None) is is_fit
    if found:
        for word in ("tiny-checkpoints", "9Gi", "checkpoint.storage.claim.size is 10Gi", "expand"):
            assert word in found.message


def rival(name: str, created: str, **changes: Any) -> Object:
    made = job_object(name, **(SHARED | changes.pop("spec", {})))
    made["metadata"] |= {"uid": f"{name}-uid", "creationTimestamp": created}
    return made | changes


BEFORE, SAME, AFTER = (f"2026-01-31T{time}Z" for time in ("11:59:59", "12:00:00", "12:00:01"))
BEGUN = {"status": {"attempt": 1}}
ENDED = {
    "status": {
        "attempt": 1,
        "conditions": [
            {
                "type": "Succeeded",
                "status": "True",
                "reason": "Completed",
                "lastTransitionTime": BEFORE,
                "observedGeneration": 1,
            }
        ],
    }
}


@pytest.mark.parametrize(
    ("other", "goes_first"),
    [
        (rival("other", BEFORE), True),
        (rival("other", AFTER), False),
        (rival("a-name", SAME), True),
        (rival("z-name", SAME), False),
        (rival("other", AFTER, **BEGUN), True),  # its pods may be writing
        (rival("other", BEFORE, **ENDED), False),
        (rival("other", BEFORE, spec={"checkpoint__path": "theirs"}), False),
        (
            rival("other", BEFORE, spec={"checkpoint__storage": {"existingClaim": "else"}}),
            False,
        ),
        (rival("other", BEFORE, spec={"checkpoint__storage": {"uri": "s3://shared"}}), False),
    ],
)
def test_run_directory_of_another_job(other: Object, goes_first: bool) -> None:
    """P1 between jobs: one writer in a run directory, and the one that waits is told for whom."""
    found = reason_not_to_start(
        situation(status=status_of(attempt=0), spec=SHARED, other_jobs=(other,))
    )
    assert (found is not None) is goes_first
    if found:
        for word in (other["metadata"]["name"], "checkpoint.path ours", "shared"):
            assert word in found.message


@pytest.mark.parametrize(
    ("theirs", "is_refused"),
    [("s3://bucket/team", True), ("s3://bucket/team/", True), ("s3://bucket/other", False)],
)
def test_run_directory_of_another_job_in_an_object_store(theirs: str, is_refused: bool) -> None:
    def storage(uri: str) -> Object:
        return {"checkpoint": {"storage": {"uri": uri}, "path": "ours"}}

    other = rival("other", BEFORE, spec={"checkpoint__storage": {"uri": theirs}})
    found = reason_not_to_start(
        situation(
            status=status_of(attempt=0), spec=storage("s3://bucket/team"), other_jobs=(other,)
        )
    )
    assert (found is not None) is is_refused
    if found:
        assert "checkpoint.path ours on s3://bucket/team" in found.message


@pytest.mark.parametrize("stored", [None, STATUS_VERSION, STATUS_VERSION + 1])
def test_a_job_of_a_newer_operator_is_left_alone(stored: int | None) -> None:
    """P10: the versions before, of and after this operator. What it does not know it would leave
    out of the status that it writes."""
    said = {"attempt": 1} | ({"schemaVersion": stored} if stored else {})
    status = LMTrainingJobStatus.model_validate(said | {"somethingNew": 1})
    found = decide(status, pods=running_gang(2), now=NOW)
    if stored == STATUS_VERSION + 1:
        assert found.status == status
        assert events(found) == ["NewerOperator"]
        assert len(found.actions) == 1
        assert not found.is_done
    else:
        assert found.status != status
        assert "NewerOperator" not in events(found)
