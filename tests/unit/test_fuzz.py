"""tests/fuzz draws the same again, leaves out no field, and tells bad answers from good ones."""

import random
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from lmtraining_api import LMTrainingJob
from lmtraining_api import names as api
from lmtraining_api.explain import explain_validation_error
from lmtraining_api.records import Intent, Peer
from lmtraining_api.status import Condition, ConditionType, LMTrainingJobStatus
from lmtraining_api.wishes import Wishes
from tests.api.conftest import Answer
from tests.contract_cases import MINIMAL, Document, minimal
from tests.fuzz.edits import edited, taken_back
from tests.fuzz.judge import complaints
from tests.fuzz.specs import FIELDS, WAYS, case, models_accept, put
from tests.fuzz.states import is_only_asked, state_of, troubles
from tests.fuzz.words import SECRET

pytestmark = pytest.mark.unit

NAMES_A_FIELD = re.compile(r"spec|metadata|\S+ is not a field of|and \d+ more problems$")
CASES = [case(seed=1, number=number) for number in range(1500)]
FLOAT_FOR_WHOLE = minimal(recovery={"backoffSeconds": 5.0})
TWO_LINES = minimal(data={"train": [{"uri": "s3://a/b", "textField": "a\nb"}]})


def test_a_number_makes_the_same_job_again() -> None:
    assert CASES[:50] == [case(seed=1, number=number) for number in range(50)]


def test_good_jobs_are_good_and_the_others_mostly_not() -> None:
    good = [one for one in CASES if not one.wrongs]
    assert all(models_accept(one.document) for one in good)
    wrong = [one for one in CASES if one.wrongs]
    assert min(len(good), len(wrong)) > len(CASES) // 4
    assert sum(models_accept(one.document) for one in wrong) < len(wrong) // 4


def test_every_field_has_its_turn() -> None:
    put_wrong = " ".join(wrong for one in CASES for wrong in one.wrongs)
    assert not [str(field) for field in FIELDS if str(field) not in put_wrong]
    assert len(WAYS) > len({way.__name__ for way in WAYS}) > 5


def test_the_models_say_what_is_wrong_in_printable_lines_without_a_secret() -> None:
    """P11; `lmtraining run` and a job that an older CRD let through."""
    said = [sentence for one in CASES for sentence in problems(one.document)]
    assert len(said) > len(CASES) // 2
    assert all(sentence.isprintable() and len(sentence) < 1024 for sentence in said)
    assert not [sentence for sentence in said if SECRET in sentence]
    nameless = [sentence for sentence in said if not NAMES_A_FIELD.match(sentence)]
    assert not nameless


def problems(document: Document) -> list[str]:
    try:
        LMTrainingJob.from_document(document)
    except ValidationError as error:
        return explain_validation_error(error)
    return []


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (("a", "b"), {}, {"a": {"b": 1}}),
        (("a", "b"), {"a": "text"}, {"a": {"b": 1}}),
        (("a", "[]", "b"), {}, {"a": [{"b": 1}]}),
        (("a", "[]", "b"), {"a": ["text", 2]}, {"a": [{"b": 1}, 2]}),
    ],
)
def test_a_field_is_put_whatever_stands_in_the_way(
    path: tuple[str, ...], before: Document, after: Document
) -> None:
    put(before, path, 1)
    assert before == after


def test_an_edit_is_taken_back_but_for_a_budget_that_was_raised() -> None:
    before = minimal(suspend=True)["spec"]
    now = minimal(suspend=False, training={"budget": {"steps": 11}})["spec"]
    assert (
        taken_back(now, before) == minimal(suspend=True, training={"budget": {"steps": 11}})["spec"]
    )


def test_some_edits_are_good_and_some_are_not() -> None:
    job = MINIMAL | {"status": {"attempt": 1}}
    jobs = [MINIMAL | {"spec": edited(random.Random(seed), job)} for seed in range(50)]
    assert {models_accept(one) for one in jobs} == {True, False}


# --- answers --------------------------------------------------------------------------------------


def refused(field: str, message: str, code: int = 422) -> Answer:
    causes = [{"field": field, "message": message}] if field else []
    return Answer(code, {"message": message, "details": {"causes": causes}}, [])


WRONG = minimal(training={"batchTokens": 0})
UNKNOWN = minimal(trainng={})

ANSWERS: tuple[tuple[Document, Answer, str], ...] = (
    (WRONG, refused("spec.training.batchTokens", "too small"), ""),
    (WRONG, refused("", 'unknown field "spec.a"', 400), ""),
    (WRONG, refused("", "no"), "no field is named"),
    (WRONG, refused("<nil>", "some validation rules were not checked"), "no field is named"),
    (WRONG, refused("spec", "no such key: heads"), "told 'no such key'"),
    (WRONG, refused("spec", "heads … is odd"), "not filled in"),
    (FLOAT_FOR_WHOLE | {"spec": {}}, refused("spec", "heads … is odd"), "not filled in"),
    (TWO_LINES, refused("spec", "textField … has no effect"), ""),
    (WRONG, refused("spec", "a" * 30_000), "characters are told"),
    (MINIMAL, refused("spec", "no"), "refused by the server, accepted by the models"),
    (MINIMAL, refused("spec", "no", 500), "the server answered 500"),
    (MINIMAL, Answer(201, MINIMAL, []), ""),
    (MINIMAL, Answer(201, WRONG, []), "accepted by the server, refused by the models"),
    (UNKNOWN, Answer(201, MINIMAL, []), "dropped without a warning"),
    (UNKNOWN, Answer(201, MINIMAL, ['299 - "unknown field \\"spec.trainng\\""']), ""),
)


@pytest.mark.parametrize(("document", "answer", "complaint"), ANSWERS)
def test_an_answer_that_helps_nobody_is_told(
    document: Document, answer: Answer, complaint: str
) -> None:
    found = list(complaints(document, answer))
    assert len(found) == bool(complaint), found
    assert complaint in "".join(found)


def test_a_whole_number_with_a_fraction_cannot_be_filled_in() -> None:
    answer = refused("spec.recovery", "backoffSeconds … is above backoffSecondsMax …")
    assert list(complaints(FLOAT_FOR_WHOLE, answer)) == []


@pytest.mark.parametrize(
    ("line", "is_trouble"),
    [
        ('{"level": "info", "message": "a"}', False),
        ('{"level": "warning", "message": "a"}', False),
        ('{"level": "error", "message": "a"}', True),
        ('{"level": "info", "message": "a", "exception": "Traceback"}', True),
        ("Traceback (most recent call last):", True),
    ],
)
def test_trouble_of_the_operator_is_seen_in_its_log(line: str, *, is_trouble: bool) -> None:
    assert bool(troubles([line])) == is_trouble


@pytest.mark.parametrize(
    ("document", "is_only"),
    [
        (MINIMAL | {"metadata": {"name": "fuzz-1"}}, False),
        (MINIMAL, True),  # a name that another job may have
        (minimal(workers={"replicas": 512}) | {"metadata": {"name": "fuzz-1"}}, True),
        ({"metadata": {"name": None}, "spec": None}, True),
    ],
)
def test_what_may_not_be_made_is_only_asked(document: Document, *, is_only: bool) -> None:
    assert is_only_asked(document) == is_only


# --- states ---------------------------------------------------------------------------------------


def job(
    *conditions: tuple[ConditionType, str, str], observed: int = 1, suspend: bool = False
) -> Any:
    said = [
        Condition(
            type=kind,
            status=status,
            reason=reason,
            message="why",
            last_transition_time=datetime(2026, 1, 1, tzinfo=UTC),
            observed_generation=observed,
        )
        for kind, status, reason in conditions
    ]
    status = LMTrainingJobStatus(observed_generation=observed, conditions=said)
    return {
        "metadata": {"generation": 1},
        "spec": {"suspend": suspend, "workers": {"replicas": 1}},
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def pod(generation: int = 1, peers: int = 1) -> Document:
    intent = Intent(
        job_uid="u" * 36,
        attempt=1,
        generation=1,
        peers=[Peer(replica=n, pod_uid="u" * 36, address="127.0.0.1") for n in range(peers)],
        wishes=Wishes(generation=generation, budget_steps=1),
    )
    text = intent.model_dump_json(by_alias=True)
    return {"metadata": {"annotations": {api.ANNOTATION_INTENT: text}}}


STARTING = (ConditionType.SUCCEEDED, "Unknown", "Starting")
SCHEDULED = (ConditionType.SCHEDULED, "True", "Scheduled")
NO_VOLUME = (ConditionType.SCHEDULED, "False", "VolumeNotReady")
REFUSED = (ConditionType.SCHEDULED, "False", "CreateRefused")
SUSPENDED = (ConditionType.SUCCEEDED, "Unknown", "Suspended")
LATE = (ConditionType.SUCCEEDED, "False", "DeadlineExceeded")

STATES: tuple[tuple[str, Callable[[], Any], list[Document], str], ...] = (
    ("nothing said", job, [], ""),
    ("pods run and are told", lambda: job(STARTING, SCHEDULED), [pod()], "Running"),
    ("pods run, an older wish", lambda: job(STARTING, SCHEDULED), [pod(generation=2)], ""),
    ("pods run without their gun", lambda: job(STARTING, SCHEDULED), [pod(peers=0)], ""),
    ("a pod is missing", lambda: job(STARTING, SCHEDULED), [], ""),
    ("an older generation", lambda: job(STARTING, SCHEDULED, observed=0), [pod()], ""),
    ("a claim is missing", lambda: job(STARTING, NO_VOLUME), [], "Scheduled: VolumeNotReady"),
    ("a pod is refused", lambda: job(STARTING, REFUSED), [], ""),
    ("suspended", lambda: job(SUSPENDED, suspend=True), [], "Suspended"),
    ("suspended, a pod left", lambda: job(SUSPENDED, suspend=True), [pod()], ""),
    ("suspended unasked", lambda: job(SUSPENDED), [], ""),
    ("ended", lambda: job(LATE), [], "DeadlineExceeded"),
    ("ended, a pod left", lambda: job(LATE), [pod()], ""),
)


@pytest.mark.parametrize(
    ("made", "pods", "state"), [row[1:] for row in STATES], ids=[r[0] for r in STATES]
)
def test_a_job_under_way_is_not_taken_for_handled(
    made: Callable[[], Any], pods: list[Document], state: str
) -> None:
    assert state_of(made(), pods) == state
