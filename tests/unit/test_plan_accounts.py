"""What status says about where the time went (P9), and about what the model stands."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api.exits import ExitCode, FailureClass
from lmtraining_api.records import ExitRecord, IntervalReport, RobustnessReport, TimeAccounts
from lmtraining_api.status import Progress
from lmtraining_operator.plan.progress import (
    with_exit_record,
    with_last_checkpoint,
    with_report,
)
from lmtraining_operator.plan.writes import Pace, write_time
from tests.unit.operator_situations import (
    NOW,
    UID,
    ended,
    report_of,
    running_gang,
    situation,
    status_of,
)

pytestmark = pytest.mark.unit

ACCOUNTS = TimeAccounts(productive=90.0, recovery=9.5, data_wait=0.5)


def test_goodput_is_said_with_its_parts() -> None:
    told = with_report(situation(report=report_of(accounts=ACCOUNTS))).goodput
    assert (told.share, told.wall_time, told.productive) == ("90.0%", "1m40s", "1m30s")
    assert (told.recovery, told.data_wait, told.stopped) == ("10s", "0s", "0s")


def test_goodput_stays_until_a_new_attempt_knows_more() -> None:
    known = with_report(situation(report=report_of(accounts=ACCOUNTS)))
    assert known.goodput.share
    assert with_report(situation(status=known, report=report_of())).goodput == known.goodput


def test_the_last_goodput_is_that_of_the_end() -> None:
    """The last report may have been pulled before."""
    early = with_report(situation(report=report_of(accounts=TimeAccounts(other=1.0))))
    record = ExitRecord(
        job_uid=UID,
        attempt=1,
        round=1,
        replica=0,
        exit_code=ExitCode.FINISHED,
        reason="Finished",
        time=NOW,
        accounts=ACCOUNTS,
    )
    now = replace(situation(report=report_of()), status=early)
    assert with_exit_record(now, record).goodput.share == "90.0%"


def saved_at(step: int, seconds: float) -> dict[str, Any]:
    time = NOW + timedelta(seconds=seconds)
    return {"step": step, "path": f"checkpoints/{step}", "time": time, "size_bytes": 1,
            "sha256": "a" * 64}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "seconds", "told"),
    [(130, 5, (130, "13%", 130)), (130, -5, (100, "10%", 130)), (75, 5, (100, "10%", 75))],
    ids=["saved on its way out", "given up since", "less than was told"],
)
def test_p4_a_gang_that_stops_while_it_recovers_has_come_to_the_step_that_it_saved(
    step: int, seconds: float, told: tuple[int, str, int]
) -> None:
    """It has told of no step since the fault, and the newest figures are of before."""
    known = with_report(situation(report=report_of(step=100, total_steps=1000)))
    assert known.progress.step == 100
    saved = saved_at(step, seconds)
    record = {"failure_class": FailureClass.DISRUPTION, "reason": "Preempted", "checkpoint": saved}
    lead, peer = running_gang(2)
    pods = (ended(lead, 80, **record), peer)
    status = with_last_checkpoint(replace(situation(pods=pods), status=known))
    assert status.checkpoint is not None
    assert (status.progress.step, status.progress.percent, status.checkpoint.last_step) == told
    assert status.progress.report_time == known.progress.report_time
    gone = situation(pods=(), report=report_of(step=100, total_steps=1000))
    after = with_report(replace(gone, status=status))
    assert after.progress == status.progress, "P3: the last report, which is remembered, is older"


def test_p3_a_step_that_was_made_before_a_rewind_is_not_kept_when_the_lead_is_gone() -> None:
    """Else the steps that were given up would count as lost by the next fault."""
    known = status_of(progress=Progress(step=306, step_time=NOW - timedelta(seconds=20)))
    report = report_of(step=210, total_steps=1000)
    report = report.model_copy(update={"step_time": NOW - timedelta(seconds=3)})
    gone = situation(pods=(), report=report)
    assert with_report(replace(gone, status=known)).progress.step == 210


def test_goodput_alone_is_no_reason_to_write_at_once() -> None:
    old = with_report(situation(report=report_of(accounts=TimeAccounts(other=1.0))))
    new = with_report(situation(report=report_of(accounts=ACCOUNTS)))
    assert write_time(old, new, last_write=NOW, now=NOW, pace=Pace()) != NOW


def test_robustness_is_said_in_short_words() -> None:
    tests = [RobustnessReport(noise="tokens", level=0.05, loss=3.25, deviation=0.5, failed=1 / 3)]
    (told,) = with_report(situation(report=report_of(robustness=tests))).robustness
    assert (told.noise, told.level, told.loss, told.deviation, told.failed) == (
        "tokens", "5%", "3.25", "0.5", "33%",
    )  # fmt: skip


def test_the_chosen_interval_comes_with_its_numbers() -> None:
    chosen = IntervalReport(seconds=250.0, cost_seconds=0.35, fault_seconds=89_285.7)
    told = with_report(situation(report=report_of(checkpoint_interval=chosen))).metrics
    assert (told.checkpoint_interval, told.checkpoint_cost) == ("4m10s", "0.35")
    assert told.time_between_faults == "1d"
