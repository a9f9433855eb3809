"""Which conditions are true of a live attempt? (P4)"""

from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import FailureClass
from lmtraining_api.records import (
    CheckpointReport,
    FaultReport,
    IntervalReport,
    RankScore,
    RemedyReport,
    TrainerReport,
)
from lmtraining_api.status import (
    Checkpointed,
    ConditionType,
    DataReady,
    Healthy,
    LMTrainingJobStatus,
    Progress,
    Progressing,
    Succeeded,
)
from lmtraining_operator.plan import ObservedReport
from lmtraining_operator.plan.conditions import (
    FIRST_REPORT_SECONDS,
    STALLED_ASIDE_SECONDS,
    UNREACHABLE_SECONDS,
    checkpointed,
    data_ready,
    healthy,
    progressing,
    stalled_seconds,
    succeeded,
)
from lmtraining_operator.plan.model import Object
from lmtraining_operator.plan.verdicts import FIRST_VISIT, Verdict, with_conditions
from tests.unit.operator_situations import (
    NOW,
    decide,
    failure_status,
    job_object,
    message,
    report_of,
    running_gang,
    situation,
    status_of,
)

pytestmark = pytest.mark.unit

GANG = running_gang(2)
FAULT = FaultReport(
    round=1,
    failure_class=FailureClass.CRASH,
    reason="RankKilled",
    message="rank 1 was killed by SIGKILL",
    step=60,
    time=NOW - timedelta(seconds=2),
)
NO_STEP = {"first_step_time": None, "step_time": None, "step": 0}


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        (None, {}, Succeeded.STARTING),
        ({"state": "Waiting", **NO_STEP}, {}, Succeeded.STARTING),
        ({"state": "Preparing", **NO_STEP}, {}, Succeeded.PREPARING),
        # P4: a state that says Training is not believed before a step.
        ({"state": "Training", **NO_STEP}, {}, Succeeded.STARTING),
        ({"state": "Training"}, {}, Succeeded.TRAINING),
        ({"state": "Evaluating"}, {}, Succeeded.TRAINING),
        # A new operator leaves what was said until a report comes.
        (None, {"state": Succeeded.TRAINING}, None),
        (None, {"state": Succeeded.UNREACHABLE}, None),
        (
            {"report_time": NOW + timedelta(seconds=61)},
            {"state": Succeeded.TRAINING},
            Succeeded.STALLED,
        ),
        ({}, {"state": Succeeded.STALLED}, Succeeded.TRAINING),
        (
            {"state": "Loading", **NO_STEP, "attempt": 2},
            {"attempt": 2, "last_failure": failure_status(attempt=1)},
            Succeeded.RECOVERING,
        ),
        (
            {"state": "Training", "attempt": 2},
            {"attempt": 2, "last_failure": failure_status(attempt=1)},
            Succeeded.TRAINING,
        ),
        ({"state": "Loading", **NO_STEP, "last_fault": FAULT}, {}, Succeeded.RECOVERING),
        ({"state": "Training", "last_fault": FAULT}, {}, Succeeded.TRAINING),
        (
            {"state": "Starting", **NO_STEP, "attempt": 3},
            {"attempt": 3, "last_failure": failure_status(attempt=1)},
            Succeeded.STARTING,
        ),
    ],
)
def test_summary(
    report: dict[str, Any] | None, status: dict[str, Any], expected: Succeeded | None
) -> None:
    """P4: Training only after a step of this very attempt, and while the step advances."""
    said = status_of(**status)
    found = situation(
        pods=running_gang(2, attempt=said.attempt),
        status=said,
        report=report_of(**report) if report is not None else None,
    )
    verdict = succeeded(found)
    assert (verdict and verdict.reason) is expected
    assert verdict is None or verdict.status == "Unknown"


def test_state_is_unreachable_while_nobody_answers() -> None:
    """P4: STATE and Progressing say the same."""
    pulled = ObservedReport(report=report_of(), error="no answer within 2 s", failing_since=NOW)
    now = NOW + timedelta(seconds=UNREACHABLE_SECONDS + 1)
    verdict = succeeded(situation(pods=GANG, report=pulled, now=now))
    assert verdict is not None
    assert verdict.reason is Succeeded.UNREACHABLE
    assert "no answer" in verdict.message


def test_report_of_another_attempt_says_nothing() -> None:
    found = situation(
        pods=running_gang(2, attempt=2), status=status_of(attempt=2), report=report_of(attempt=1)
    )
    verdict = succeeded(found)
    assert verdict is not None
    assert verdict.reason is Succeeded.STARTING


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({}, "True", Progressing.STEPPING),
        ({"state": "Evaluating"}, "True", Progressing.EVALUATING),
        ({"state": "Checkpointing"}, "True", Progressing.CHECKPOINTING),
        ({"state": "Exporting"}, "True", Progressing.EXPORTING),
        (NO_STEP, "False", Progressing.NOT_STARTED),
        ({"report_time": NOW + timedelta(seconds=61)}, "False", Progressing.STALLED),
        ({"report_time": NOW + timedelta(seconds=59)}, "True", Progressing.STEPPING),
        # 1024 tokens at 8 per second are 128 s a step: 61 s are nothing.
        (
            {"report_time": NOW + timedelta(seconds=61), "tokens_per_second": 8.0},
            "True",
            Progressing.STEPPING,
        ),
        (
            {"report_time": NOW + timedelta(seconds=61), "state": "Evaluating"},
            "True",
            Progressing.EVALUATING,
        ),
        (
            {"report_time": NOW + timedelta(hours=1), "state": "Evaluating"},
            "False",
            Progressing.STALLED,
        ),
    ],
)
def test_progressing_by_the_report(
    changes: dict[str, Any], status: str, reason: Progressing
) -> None:
    verdict = progressing(situation(pods=GANG, report=report_of(**changes)))
    assert verdict is not None
    assert (verdict.status, verdict.reason) == (status, reason)


def test_stalled_is_measured_on_the_trainers_clock() -> None:
    """A trainer whose clock is an hour off is not stalled."""
    off = NOW - timedelta(hours=1)
    report = report_of(report_time=off, step_time=off)
    verdict = progressing(situation(pods=GANG, report=report))
    assert verdict is not None
    assert verdict.status == "True"


def test_stalled_limit_follows_the_speed() -> None:
    found = situation(pods=GANG)
    assert stalled_seconds(found, report_of(tokens_per_second=1024.0)) == 60.0
    assert stalled_seconds(found, report_of(tokens_per_second=1.024)) == 10_000.0
    assert stalled_seconds(found, report_of(tokens_per_second=None)) == 60.0


@pytest.mark.parametrize(
    ("has_stepped", "seconds", "reason"),
    [
        (True, UNREACHABLE_SECONDS, Progressing.STEPPING),
        (True, UNREACHABLE_SECONDS + 1, Progressing.UNREACHABLE),
        (False, UNREACHABLE_SECONDS + 1, Progressing.NOT_STARTED),
        (False, FIRST_REPORT_SECONDS + 1, Progressing.UNREACHABLE),
    ],
)
def test_silence_is_told_with_its_beginning(
    has_stepped: bool, seconds: float, reason: Progressing
) -> None:
    """P4: no old value without its age."""
    pulled = ObservedReport(
        report=report_of() if has_stepped else None, error="no answer within 2 s", failing_since=NOW
    )
    said = status_of(progress=Progress(report_time=NOW - timedelta(seconds=5)))
    now = NOW + timedelta(seconds=seconds)
    verdict = progressing(situation(pods=GANG, status=said, report=pulled, now=now))
    assert verdict is not None
    assert verdict.reason is reason
    if reason is Progressing.UNREACHABLE:
        assert verdict.status == "Unknown"
        for word in ("tiny-1-0-0", "2026-01-31T12:00:00Z", "2026-01-31T11:59:55Z", "no answer"):
            assert word in verdict.message


def test_new_operator_leaves_progressing_until_a_report_comes() -> None:
    """P10: nothing is said anew by an operator that starts."""
    assert progressing(situation(pods=GANG, status=status_of(state=Succeeded.TRAINING))) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("Waiting", None),
        ("Preparing", ("False", DataReady.PREPARING)),
        ("Starting", None),  # torch is imported, the ranks meet: the data comes after that
        ("Loading", ("True", DataReady.READY)),
        ("Training", ("True", DataReady.READY)),
        ("Failed", None),
    ],
)
def test_data_ready(state: str, expected: tuple[str, DataReady] | None) -> None:
    """P4: not before somebody has looked."""
    verdict = data_ready(situation(pods=GANG, report=report_of(state=state)))
    assert (verdict and (verdict.status, verdict.reason)) == expected


def test_healthy() -> None:
    assert healthy(situation(pods=GANG)) is None
    stable = healthy(situation(pods=GANG, report=report_of()))
    assert stable is not None
    assert (stable.status, stable.reason) == ("True", Healthy.STABLE)
    skipping = healthy(situation(pods=GANG, report=report_of(loss=None, loss_is_finite=False)))
    assert skipping is not None
    assert (skipping.status, skipping.reason) == ("False", Healthy.SKIPPING)
    assert "stability.skippedStepsMax" in skipping.message


def score_of(rank: int, score: float, *, is_straggler: bool = True) -> RankScore:
    return RankScore(rank=rank, score=score, seconds=1.0, is_straggler=is_straggler)


@pytest.mark.parametrize(
    ("slowest", "words"),
    [
        ([score_of(1, 0.5)], "rank 1 in pod tiny-1-1-0 takes 2.0 times as long"),
        ([score_of(1, 0.5), score_of(0, 0.6)], "rank 1 in pod tiny-1-1-0 (and 1 more) takes"),
        ([score_of(0, 0.4, is_straggler=False), score_of(1, 0.5)], "rank 1 in pod"),
        ([score_of(1, 0.0)], "takes 1000.0 times"),
        ([score_of(1, 0.5, is_straggler=False)], None),
    ],
)
def test_a_straggler_is_named_with_its_pod_and_what_to_do(
    slowest: list[RankScore], words: str | None
) -> None:
    verdict = healthy(situation(pods=GANG, report=report_of(slowest_ranks=slowest)))
    assert verdict is not None
    if words is None:
        assert verdict == Verdict("True", Healthy.STABLE)
        return
    assert (verdict.status, verdict.reason) == ("False", Healthy.STRAGGLER)
    assert words in verdict.message
    assert "CPU throttling" in verdict.message


SLOW = Verdict("False", Healthy.STRAGGLER, "rank 1 in pod tiny-1-1-0 takes 2.0 times as long")
SLOWEST = [score_of(1, 0.5)]


def said_slow(**changes: Any) -> LMTrainingJobStatus:
    status = status_of(**{"state": Succeeded.TRAINING} | changes)
    return with_conditions(status, [SLOW], generation=1, now=NOW)


REPLACED = {"last_failure": failure_status(replaced_by="tiny-1-1-1")}


@pytest.mark.parametrize(
    ("status", "report"),
    [
        (said_slow(**REPLACED, complete=False), None),  # the pod is being replaced
        (said_slow(**REPLACED), report_of(slowest_ranks=SLOWEST, gang="of-others")),
        (said_slow(state=Succeeded.STARTING), None),  # a new attempt
        (said_slow(), report_of(**NO_STEP)),  # a new round
    ],
)
def test_a_straggler_is_forgotten_until_the_ranks_step_again(
    status: LMTrainingJobStatus, report: TrainerReport | None
) -> None:
    """P4: the pod that was named may be gone, and its successor was never measured."""
    verdict = healthy(situation(pods=GANG, status=status, report=report))
    assert verdict is not None
    assert (verdict.status, verdict.reason) == ("Unknown", Healthy.UNKNOWN)
    assert "measured again" in verdict.message


def test_a_straggler_is_remembered_by_a_new_operator() -> None:
    assert healthy(situation(pods=GANG, status=said_slow())) is None


@pytest.mark.parametrize(
    ("status", "job"),
    [
        (said_slow(last_failure=failure_status()), job_object()),  # between attempts
        (said_slow(), job_object(suspend=True)),
    ],
)
def test_a_straggler_is_forgotten_where_nothing_trains(
    status: LMTrainingJobStatus, job: Object
) -> None:
    plan = decide(status, job=job, pods=GANG)
    assert "measured again" in message(plan, ConditionType.HEALTHY)


def test_what_the_guard_found_comes_before_a_straggler() -> None:
    report = report_of(slowest_ranks=[score_of(1, 0.5)], is_stable=False)
    verdict = healthy(situation(pods=GANG, report=report))
    assert verdict is not None
    assert verdict.reason == Healthy.SKIPPING


CHOSEN = IntervalReport(seconds=60.0, cost_seconds=1.0, fault_seconds=1800.0)


def saved(step: int) -> CheckpointReport:
    return CheckpointReport(step=step, path="c", time=NOW, size_bytes=1, sha256="")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("False", Checkpointed.NONE_YET)),
        ({"checkpoint": saved(10)}, ("True", Checkpointed.FRESH)),
        ({"checkpoint": saved(10), "step": 410}, ("True", Checkpointed.FRESH)),
        ({"checkpoint": saved(10), "step": 411}, ("False", Checkpointed.STALE)),
        (
            {"checkpoint": saved(10), "checkpoint_interval": CHOSEN, "step": 10**6},
            ("True", Checkpointed.FRESH),
        ),
        (
            {
                "checkpoint": saved(10),
                "checkpoint_interval": CHOSEN,
                "step_time": NOW + timedelta(seconds=2 * 60 + STALLED_ASIDE_SECONDS + 1),
            },
            ("False", Checkpointed.STALE),
        ),
        (
            {"checkpoint": saved(10), "checkpoint_error": "no space left on device"},
            ("False", Checkpointed.FAILING),
        ),
        (
            {"checkpoint": saved(10), "checkpoint_error": "e", "storage_is_full": True},
            ("False", Checkpointed.STORAGE_FULL),
        ),
    ],
)
def test_checkpointed(changes: dict[str, Any], expected: tuple[str, Checkpointed]) -> None:
    every = None if "checkpoint_interval" in changes else 200
    now = situation(pods=GANG, report=report_of(**changes), spec={"checkpoint__everySteps": every})
    verdict = checkpointed(now)
    assert verdict is not None
    assert (verdict.status, verdict.reason) == expected


def test_all_conditions_from_the_first_visit_with_their_times() -> None:
    """P4: lastTransitionTime moves only with status; the generation always."""
    first = with_conditions(LMTrainingJobStatus(), [], generation=1, now=NOW)
    assert [c.type for c in first.conditions] == list(ConditionType)
    assert len(FIRST_VISIT) == len(ConditionType)
    later = NOW + timedelta(seconds=5)
    second = with_conditions(
        first,
        [Verdict("Unknown", Succeeded.STARTING, "new words"), Verdict("True", DataReady.READY)],
        generation=2,
        now=later,
    )
    summary = second.condition(ConditionType.SUCCEEDED)
    data = second.condition(ConditionType.DATA_READY)
    assert summary is not None
    assert data is not None
    assert (summary.last_transition_time, summary.message) == (NOW, "new words")
    assert data.last_transition_time == later
    assert {c.observed_generation for c in second.conditions} == {2}


@pytest.mark.parametrize(
    ("remedy", "fault", "reason", "words"),
    [
        ("Skip", "LossSpike", Healthy.SKIPPING, "at most 10 (stability.skippedStepsMax)"),
        ("Rewind", "Divergence", Healthy.REWINDING, "from step 700 to step 400"),
        (
            "Rewind",
            "ReplicaDivergence",
            Healthy.REPLICA_DIVERGENCE,
            "from step 700 to step 400",
        ),
    ],
)
def test_a_remedy_is_said_until_enough_good_steps_have_followed(
    remedy: str, fault: str, reason: Healthy, words: str
) -> None:
    """P3, P4: the status names the checkpoint that the run went back to, and why."""
    done = RemedyReport(
        remedy=remedy, fault=fault, step=700, to_step=400, message="loss 9.1", time=NOW
    )
    verdict = healthy(
        situation(pods=GANG, report=report_of(is_stable=False, last_remedy=done, rewinds=1))
    )
    assert verdict is not None
    assert (verdict.status, verdict.reason) == ("False", reason)
    assert words in verdict.message
    assert "loss 9.1" in verdict.message
    after = healthy(situation(pods=GANG, report=report_of(last_remedy=done)))
    assert after == Verdict("True", Healthy.STABLE)


def test_no_word_is_said_twice() -> None:
    waits = report_of(state="Waiting", message="waiting for 1 of 2 pods", **NO_STEP)
    verdict = succeeded(situation(pods=GANG, report=waits))
    assert verdict is not None
    assert verdict.message == "waiting for 1 of 2 pods"
