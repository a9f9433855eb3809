"""What ranks say becomes a report that is true, finite and adds up."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from lmtraining_api import CheckpointReport, RankScore, TrainerReport
from lmtraining_api.names import REPORT_BYTES_MAX
from lmtraining_trainer.phase import Phase, Sign
from lmtraining_trainer.rank_link import RankUpdate
from lmtraining_trainer.report import Snapshot, StateClock, heard, merged, report_json
from lmtraining_trainer.supervisor.rank_process import decoded, encoded_update

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLANK = TrainerReport(job_uid="u", attempt=2, round=1, state="Starting", report_time=NOW)
CHECKPOINT = {"step": 5, "path": "c/5", "time": NOW.isoformat(), "sizeBytes": 9, "sha256": "ab"}

MERGES = [
    ("a figure", {"loss": 2.5}, {"loss": 2.5, "loss_is_finite": True}),
    ("a NaN is absent, and a flag says so", {"loss": math.nan},
     {"loss": None, "loss_is_finite": False}),
    ("so is an infinity", {"loss": -math.inf}, {"loss": None, "loss_is_finite": False}),
    ("of other figures too", {"gradient_norm": math.inf}, {"gradient_norm": None}),
    ("a loss that is not known is finite no more", {"loss": None}, {"loss_is_finite": False}),
    ("an integer in a float's clothes", {"step": 7.0}, {"step": 7}),
    ("an unknown field is left out", {"colour": "blue", "step": 3}, {"step": 3}),
    ("an odd value is left out alone", {"step": "many", "loss": 1.0}, {"step": 4, "loss": 1.0}),
    ("a negative word for text", {"message": 12, "step": 5}, {"message": "", "step": 5}),
    ("a long message is cut", {"message": "x" * 5000}, {"message": "x" * 1024}),
    ("a checkpoint by its JSON names", {"checkpoint": CHECKPOINT},
     {"checkpoint": CheckpointReport.model_validate(CHECKPOINT)}),
    ("half a checkpoint is none", {"checkpoint": {"step": 5}}, {"checkpoint": None}),
    ("a time", {"step_time": NOW.isoformat()}, {"step_time": NOW}),
    ("a time without its zone is odd", {"step_time": "2026-01-01T00:00:00"}, {"step_time": None}),
    ("identity is the supervisor's", {"job_uid": "x", "attempt": 9, "round": 9, "state": "Failed"},
     {"job_uid": "u", "attempt": 2, "round": 1, "state": "Starting"}),
    ("so are the accounts", {"time_seconds": {"Training": 1e9}, "ranks": [], "last_exit": None},
     {"time_seconds": {}}),
    ("nothing", {}, {"step": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), [case[1:] for case in MERGES],
                         ids=[case[0] for case in MERGES])  # fmt: skip
def test_what_a_rank_says_is_merged_or_left_out(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    report = merged(BLANK.model_copy(update={"step": 4}), fields)
    assert {name: getattr(report, name) for name in expected} == expected


def test_a_finite_loss_takes_the_flag_back() -> None:
    report = merged(merged(BLANK, {"loss": math.nan}), {"loss": 1.0})
    assert report.loss_is_finite
    assert report.loss == 1.0


def test_seconds_by_state_add_up_to_wall_time() -> None:
    """P9: whatever the order of states, and while one is still going on."""
    clock = StateClock(state="Waiting", since=100.0)
    for now, state in [(101.5, "Starting"), (103, "Training"), (104, "Checkpointing"),
                       (104.25, "Training"), (104.25, "Stopping")]:  # fmt: skip
        clock = clock.turned(state, now)
    seconds = clock.seconds(110.0)
    assert sum(seconds.values()) == pytest.approx(10.0)
    assert seconds["Training"] == pytest.approx(1.0)
    assert seconds["Stopping"] == pytest.approx(5.75)


def _snapshot(**changes: Any) -> Snapshot:
    return replace(Snapshot(report=BLANK, clock=StateClock(state="Starting", since=0.0)), **changes)


def test_only_rank_0_speaks_for_the_run() -> None:
    update = RankUpdate(rank=1, state="Training", fields={"step": 9, "loss": 1.0})
    after = heard(_snapshot(), update, voice=0, now=1.0)
    assert after.report == BLANK


def test_a_pod_without_rank_0_shows_its_own_state_and_no_steps() -> None:
    update = RankUpdate(rank=2, state="Training", fields={"step": 9, "message": "at work"})
    after = heard(_snapshot(leads=False), update, voice=2, now=1.0)
    assert (after.report.state, after.report.step) == ("Training", 0)
    assert after.report.message == "at work"


def test_a_message_lasts_as_long_as_its_state() -> None:
    told = heard(_snapshot(), RankUpdate(rank=0, state="Preparing", fields={"message": "1 MB"}),
                 voice=0, now=1.0)  # fmt: skip
    still = heard(told, RankUpdate(rank=0, state="Preparing", fields={}), voice=0, now=2.0)
    next_state = heard(still, RankUpdate(rank=0, state="Training", fields={}), voice=0, now=3.0)
    assert [s.report.message for s in (told, still, next_state)] == ["1 MB", "1 MB", ""]


def test_stopping_is_shown_until_the_end_though_ranks_go_on_saying_what_they_do() -> None:
    stopping = _snapshot().turned("Stopping", 1.0, "saving")
    after = heard(stopping, RankUpdate(rank=0, state="Checkpointing", fields={"step": 8}),
                  voice=0, now=2.0)  # fmt: skip
    assert (after.report.state, after.report.step) == ("Stopping", 8)


def test_an_unknown_state_changes_nothing() -> None:
    odd = RankUpdate(rank=0, state="Dreaming", fields={"step": 8})  # type: ignore[arg-type]
    after = heard(_snapshot(), odd, voice=0, now=2.0)
    assert (after.report.state, after.report.step) == ("Starting", 8)


def _sign(at: float, phase: Phase = Phase.DATA) -> Sign:
    return Sign(phase=phase, at=at, longest={})


def test_heartbeats_have_an_age_and_a_phase() -> None:
    signs = {0: _sign(1.0), 3: _sign(4.5, Phase.EVAL)}
    ranks = _snapshot().rendered(5.0, NOW, signs=signs).ranks
    seen = [(rank.rank, rank.heartbeat_age_seconds, rank.phase) for rank in ranks]
    assert seen == [(0, 4.0, "data"), (3, 0.5, "eval")]


def test_each_rank_speaks_for_its_own_score_until_the_next_round() -> None:
    snapshot = _snapshot()
    for rank, score in ((0, 1.0), (1, 0.5), (1, math.nan), (0, "fast")):
        update = RankUpdate(rank=rank, state="Training", fields={"score": score})
        snapshot = heard(snapshot, update, voice=0, now=1.0)
    signs = {0: _sign(1.0), 1: _sign(1.0), 2: _sign(1.0)}
    ranks = snapshot.rendered(1.0, NOW, signs=signs).ranks
    assert [rank.score for rank in ranks] == [1.0, 0.5, None]
    again = snapshot.in_round(2, "gang", None).rendered(1.0, NOW, signs=signs)
    assert [rank.score for rank in again.ranks] == [None] * 3


def test_the_lead_tells_the_slowest_ranks_until_the_next_round() -> None:
    slowest = [RankScore(rank=5, score=0.4, seconds=0.2, is_straggler=True)]
    word = decoded(encoded_update("Training", {"score": 1.0, "slowest_ranks": slowest}), rank=0)
    assert isinstance(word, RankUpdate)
    after = heard(_snapshot(), word, voice=0, now=1.0)
    assert after.report.slowest_ranks == slowest
    assert after.in_round(2, "gang", None).report.slowest_ranks == []


def test_the_report_is_strict_json_within_its_limit() -> None:
    many = _snapshot().rendered(1.0, NOW, signs=dict.fromkeys(range(4096), _sign(0.0)))
    body = report_json(merged(many, {"message": "é" * 1024, "loss": math.nan}))
    assert len(body) <= REPORT_BYTES_MAX
    assert json.loads(body, parse_constant=pytest.fail)["loss"] is None
