"""What follows a failure?"""

from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import (
    AvoidedNode,
    LastFailure,
    LMTrainingJobStatus,
    Restarts,
    Succeeded,
)
from lmtraining_operator.plan.backoff import (
    REFUSAL_SECONDS_MAX,
    backoff_seconds,
    refusal_wait_seconds,
)
from lmtraining_operator.plan.figures import COUNT_MAX
from lmtraining_operator.plan.model import GANG_INCOMPLETE
from lmtraining_operator.plan.recovery import (
    GANG_BACKOFF_SECONDS_MAX,
    Answer,
    answer,
    charged,
    renamed,
    without_clock_jump,
)
from tests.unit.operator_situations import NOW, decide, failure_status, status_of

pytestmark = pytest.mark.unit

C = FailureClass


def answered(
    failure: LastFailure,
    restarts: Restarts,
    recovery: Recovery,
    *,
    productive: bool = True,
    job_uid: str = "u",
) -> Answer:
    status = status_of(restarts=restarts)
    return answer(failure, status=status, recovery=recovery, productive=productive, job_uid=job_uid)


@pytest.mark.parametrize(
    ("failure_class", "counted", "expected"),
    [
        (C.CRASH, 0, None),
        (C.CRASH, 2, None),
        (C.CRASH, 3, Succeeded.FAILED),
        (C.OUT_OF_MEMORY, 3, Succeeded.FAILED),
        (C.PEER_LOST, 3, Succeeded.FAILED),
        (C.DISRUPTION, 3, None),  # nobody's fault of the job: never spends its budget
        (C.POD_LOST, 3, None),
        (C.CONFIGURATION, 0, Succeeded.FAILED),  # would fail the same way
        (C.DATA, 0, Succeeded.FAILED),
        (C.DIVERGED, 0, Succeeded.DIVERGED),
    ],
)
def test_end_of_job(failure_class: C, counted: int, expected: Succeeded | None) -> None:
    """P4: the reason of the end has the evidence and says why no other attempt is made."""
    failure = failure_status(failure_class)
    restarts = Restarts(total=counted + 7, counted=counted)
    end = answered(failure, restarts, Recovery(restarts_max=3)).end
    assert (end.reason if end else None) is expected
    if end:
        assert failure.message in end.message
    if expected is Succeeded.FAILED and failure_class.may_retry:
        assert end is not None
        assert "recovery.restartsMax 3 is spent" in end.message


@pytest.mark.parametrize(
    ("failure_class", "counted", "uncounted", "productive", "seconds"),
    [
        (C.CRASH, 0, 0, True, 2),
        (C.CRASH, 1, 0, True, 4),
        (C.CRASH, 2, 5, True, 8),
        (C.CRASH, 9, 0, True, 60),
        (C.POD_LOST, 0, 0, False, 0),  # the first is answered at once
        (C.POD_LOST, 3, 4, True, 0),  # and any that interrupts real work
        (C.DISRUPTION, 0, 1, False, 2),  # but not a node that refuses every pod
        (C.DISRUPTION, 0, 3, False, 8),
        (C.DISRUPTION, 0, 40, False, 60),
    ],
)
def test_how_long_the_next_attempt_waits(
    failure_class: C, counted: int, uncounted: int, productive: bool, seconds: int
) -> None:
    found = answered(
        failure_status(failure_class),
        Restarts(total=counted + uncounted, counted=counted),
        Recovery(backoff_seconds=2, backoff_seconds_max=60),
        productive=productive,
    )
    assert found.wait_seconds == seconds


def test_disruptions_in_a_row_wait_even_without_a_backoff() -> None:
    recovery = Recovery(backoff_seconds=0, backoff_seconds_max=0)
    found = answered(failure_status(C.DISRUPTION), Restarts(total=1), recovery, productive=False)
    assert found.wait_seconds == 1


def test_restarts_are_counted_by_class() -> None:
    status = LMTrainingJobStatus()
    for failure_class in (C.CRASH, C.POD_LOST, C.CRASH):
        failure = failure_status(failure_class)
        status = charged(status, failure, answered(failure, status.restarts, Recovery()))
    assert status.restarts == Restarts(total=3, counted=2, by_reason={C.CRASH: 2, C.POD_LOST: 1})


def test_a_count_that_somebody_wrote_by_hand_ends_at_what_status_holds() -> None:
    """More would be refused by the API server, and with it all else that there is to say."""
    most = Restarts(total=COUNT_MAX, counted=COUNT_MAX, by_reason={C.CRASH: COUNT_MAX})
    failure = failure_status(C.CRASH)
    found = answered(failure, Restarts(), Recovery())
    assert charged(LMTrainingJobStatus(restarts=most), failure, found).restarts == most


FAIL_137 = {"failureClass": "Crash", "exitCode": 137, "action": "Fail"}
DATA = {"failureClass": "Data", "action": "Retry"}
PLENTY = {"failureClass": "Disruption", "action": "Retry", "restartsMax": 2}
TOLD = {"failureClass": "Crash", "message": "by the trainer", "reason": "Crash", "action": "Fail"}
RULES = (
    ("no rule", [], C.CRASH, {}, None, 1),
    ("another exit code", [FAIL_137], C.CRASH, {"exit_code": 89}, None, 1),
    ("this exit code", [FAIL_137], C.CRASH, {"exit_code": 137}, "recovery.rules[0] says Fail", 1),
    ("the first that matches", [DATA, TOLD, FAIL_137], C.CRASH, {}, "recovery.rules[1] says", 1),
    ("another reason", [TOLD], C.CRASH, {"reason": "OOMKilled"}, None, 1),
    ("another message", [TOLD], C.CRASH, {"message": "else"}, None, 1),
    ("what is not tried otherwise", [DATA], C.DATA, {}, None, 1),
    ("a budget of its own", [PLENTY | {"restartsMax": 3}], C.DISRUPTION, {}, None, 0),
    ("which is spent", [PLENTY], C.DISRUPTION, {}, "recovery.rules[0].restartsMax 2 is spent", 0),
    ("what is nobody's fault", [PLENTY], C.POD_LOST, {}, None, 0),
    (
        "counted, though nobody's fault",
        [{**PLENTY, "restartsMax": None}],
        C.DISRUPTION,
        {},
        None,
        1,
    ),
)


@pytest.mark.parametrize("case", RULES, ids=[case[0] for case in RULES])
def test_a_rule_of_the_job_goes_before_what_is_usual(case: tuple[Any, ...]) -> None:
    what, rules, failure_class, failure, ends, counts = case
    recovery = Recovery.model_validate({"rules": rules, "restartsMax": 5, "backoffSeconds": 2})
    failed = failure_status(failure_class, **failure)
    restarts = Restarts(total=4, counted=2, by_reason={C.DISRUPTION: 2, C.CRASH: 2})
    found = answered(failed, restarts, recovery)
    assert (found.end is not None) is (ends is not None), what
    assert found.end is None or ends in found.end.message
    assert found.is_counted is bool(counts)
    spent = charged(LMTrainingJobStatus(restarts=restarts), failed, found).restarts
    is_over = found.end is not None
    assert (spent.total, spent.counted) == ((4, 2) if is_over else (5, 2 + counts))


LOST = {"failureClass": "PodLost", "action": "RetryElsewhere"}
DRAINED = {"failureClass": "Disruption", "action": "RetryElsewhere"}
RENAMED: tuple[tuple[str, list[dict[str, Any]], int, list[str]], ...] = (
    ("no rule", [], 0, []),
    ("a rule that counts the lost pod", [{**LOST, "action": "Retry"}], 0, []),
    ("a rule that avoids its node", [LOST], 0, []),
    ("its own budget", [{**LOST, "restartsMax": 4}], 0, []),
    ("a rule for what it is", [DRAINED], 1, ["a"]),
    ("rules for both", [LOST, {**DRAINED, "restartsMax": 4}], 0, ["a"]),
    ("one that would have ended the job", [{**DRAINED, "action": "Fail"}], 1, []),
)


@pytest.mark.parametrize("case", RENAMED, ids=[case[0] for case in RENAMED])
def test_a_failure_that_turns_out_otherwise_costs_what_that_costs(case: tuple[Any, ...]) -> None:
    """Neither the common budget, nor that of a rule, nor a node goes for what it seemed to be; what
    an earlier failure has cost stays."""
    _, rules, counted, avoided = case
    recovery = Recovery.model_validate({"rules": rules, "restartsMax": 5})
    earlier = AvoidedNode(name="b", reason="2 hardware faults on it", time=NOW)
    before = LMTrainingJobStatus(
        restarts=Restarts(total=3, counted=1, by_reason={C.POD_LOST: 2, C.CRASH: 1}),
        hardware_faults={"b": 2},
        avoided_nodes=[earlier],
    )
    lost = failure_status(C.POD_LOST, node="a", reason="PodDeleted")
    found = answer(lost, status=before, recovery=recovery, productive=True, job_uid="u")
    status = charged(before, lost, found)
    saved = lost.model_copy(update={"failure_class": C.DISRUPTION, "reason": "Preempted"})
    status = renamed(status, was=lost, is_now=saved, recovery=recovery)
    assert status.last_failure == saved
    assert status.restarts == Restarts(
        total=4, counted=1 + counted, by_reason={C.POD_LOST: 2, C.CRASH: 1, C.DISRUPTION: 1}
    )
    assert [one.name for one in status.avoided_nodes] == ["b", *avoided]


def test_a_counted_rule_spends_the_common_budget() -> None:
    recovery = Recovery.model_validate({"rules": [DATA], "restartsMax": 2})
    end = answered(failure_status(C.DATA), Restarts(counted=2), recovery).end
    assert end is not None
    assert "recovery.restartsMax 2 is spent" in end.message


def test_what_a_rule_tries_again_waits_as_often_as_it_was_tried() -> None:
    recovery = Recovery.model_validate({"rules": [PLENTY], "backoffSeconds": 2})
    restarts = Restarts(total=1, by_reason={C.DISRUPTION: 1})
    assert answered(failure_status(C.DISRUPTION), restarts, recovery).wait_seconds == 4


def test_backoff_is_bounded_for_any_count() -> None:
    waits = [backoff_seconds(first=1, limit=60, earlier=n) for n in (0, 1, 5, 6, 10_000)]
    assert waits == [1, 2, 32, 60, 60]
    assert refusal_wait_seconds(1) < refusal_wait_seconds(2) < REFUSAL_SECONDS_MAX
    assert refusal_wait_seconds(10_000) == REFUSAL_SECONDS_MAX


def test_gang_without_a_place_waits_ever_longer_and_not_as_long_as_the_next() -> None:
    """Uncounted, and two gangs that block each other do not come back together."""
    failure = failure_status(C.DISRUPTION, reason=GANG_INCOMPLETE)

    def wait_seconds(uid: str, uncounted: int) -> float:
        restarts = Restarts(total=uncounted)
        return answered(failure, restarts, Recovery(), productive=False, job_uid=uid).wait_seconds

    assert wait_seconds("a", 0) != wait_seconds("b", 0)
    assert wait_seconds("a", 0) == wait_seconds("a", 0)
    assert wait_seconds("a", 1) == pytest.approx(2 * wait_seconds("a", 0))
    assert wait_seconds("a", 99) <= 2 * GANG_BACKOFF_SECONDS_MAX
    assert answered(failure, Restarts(), Recovery(restarts_max=0)).end is None


@pytest.mark.parametrize(
    ("reason", "written", "seconds"),
    [
        ("Crash", None, None),
        ("Crash", 30, 30),
        ("Crash", 60, 60),
        ("Crash", 3600, 60),
        (GANG_INCOMPLETE, 1800, 1800),
        (GANG_INCOMPLETE, 36_000, 2 * GANG_BACKOFF_SECONDS_MAX),
    ],
)
def test_clock_that_was_set_back_makes_no_wait_longer(
    reason: str, written: float | None, seconds: float | None
) -> None:
    """P12: no next attempt is farther away than the longest wait that the policy knows."""
    when = without_clock_jump(
        None if written is None else NOW + timedelta(seconds=written),
        failure=failure_status(C.CRASH, reason=reason),
        recovery=Recovery(backoff_seconds_max=60),
        now=NOW,
    )
    assert when == (None if seconds is None else NOW + timedelta(seconds=seconds))


def test_next_attempt_comes_though_the_clock_was_set_back() -> None:
    status = status_of(
        last_failure=failure_status(), next_attempt_time=NOW + timedelta(hours=1), complete=False
    )
    plan = decide(status)
    assert plan.status.next_attempt_time == NOW + timedelta(seconds=60)
    assert plan.look_again_seconds <= 60
