"""Which end is the pod's, in which words, and within which limits."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode, ExitRecord, FailureClass, RobustnessReport, TimeAccounts
from lmtraining_api.records import ROBUSTNESS_MAX
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.supervisor.exit_record import (
    cause_of,
    last_exit,
    record_of,
    termination_message,
    write_to_run_directory,
)
from lmtraining_trainer.supervisor.failure import (
    RankEnd,
    decisive,
    end_of_exception,
    end_of_patience,
    end_of_process,
    end_of_supervisor,
    finished,
)

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "my grandmother's letters"


def _caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def _end(error: BaseException, rank: int = 0, now: float = 0.0) -> RankEnd:
    return end_of_exception(_caught(error), rank=rank, now=now)


def _trainer_error(failure: FailureClass, reason: str = "Because") -> TrainerError:
    return TrainerError(failure, reason, "our sentence", step=7)


CRASH = _end(ValueError("x"), rank=1, now=5.0)
LATER_CRASH = _end(KeyError("x"), rank=2, now=6.0)
PEER_LOST = _end(_trainer_error(FailureClass.PEER_LOST), rank=0, now=4.0)
SAVED = _end(Preempted(12), rank=3, now=1.0)
KILLED_BY_US = end_of_patience(rank=0, now=0.0)
DONE = finished(0, now=0.0)

DECISIONS: list[tuple[str, list[RankEnd], RankEnd | None]] = [
    ("all finished", [DONE, DONE], None),
    ("a crash", [DONE, CRASH], CRASH),
    ("the first crash", [LATER_CRASH, CRASH], CRASH),
    ("a cause before its consequence, though heard later", [PEER_LOST, CRASH], CRASH),
    ("a consequence alone", [PEER_LOST, DONE], PEER_LOST),
    ("a preemption before a consequence", [PEER_LOST, SAVED], SAVED),
    ("a crash before a preemption", [SAVED, CRASH], CRASH),
    ("a save that one rank was too slow for", [KILLED_BY_US, SAVED], SAVED),
    ("a consequence before what we killed for it", [KILLED_BY_US, PEER_LOST], PEER_LOST),
    ("killed by us alone is no success", [KILLED_BY_US, DONE], KILLED_BY_US),
]


@pytest.mark.parametrize(
    ("ends", "expected"), [case[1:] for case in DECISIONS], ids=[case[0] for case in DECISIONS]
)
def test_the_first_cause_decides(ends: list[RankEnd], expected: RankEnd | None) -> None:
    assert decisive(ends) == expected
    assert decisive(ends[::-1]) == expected


class _Strange(Exception):  # noqa: N818
    pass


CLASSES: list[tuple[BaseException, FailureClass, str]] = [
    (ValueError(SECRET), FailureClass.CRASH, "RankRaised"),
    (_Strange(SECRET), FailureClass.CRASH, "RankRaised"),
    (SystemExit(SECRET), FailureClass.CRASH, "RankRaised"),
    (MemoryError(SECRET), FailureClass.OUT_OF_MEMORY, "OutOfMemory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: " + SECRET),
     FailureClass.OUT_OF_MEMORY, "OutOfMemory"),
    (_trainer_error(FailureClass.DATA, "EmptyData"), FailureClass.DATA, "EmptyData"),
    (Preempted(3), FailureClass.DISRUPTION, "Preempted"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "failure", "reason"), CLASSES)
def test_an_exception_has_a_class_and_its_text_stays_out(
    error: BaseException, failure: FailureClass, reason: str
) -> None:
    """P11: of a foreign exception nothing but its type and where it was."""
    end = _end(error, rank=1)
    assert (end.failure_class, end.reason) == (failure, reason)
    record = record_of(end, identity=None, job=None, round_number=1, time=NOW)
    assert SECRET not in record.model_dump_json()
    if end.outcome == "Failed":
        assert end.frames[-1].endswith("_caught")
        assert not any(frame.startswith("/") for frame in end.frames)


def test_out_of_memory_says_what_to_change() -> None:
    message = _end(MemoryError()).message
    for field in ("batchTokens", "gradientAccumulation", "workers.resources.memory"):
        assert field in message


def test_a_preemption_names_the_step_it_saved() -> None:
    assert "step 12" in SAVED.message
    assert SAVED.step == 12
    assert _end(Preempted(0)).step is None  # nothing new was there to save


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (-signal.SIGKILL, "RankKilled", "SIGKILL; if nobody killed it, it was memory"),
        (-signal.SIGSEGV, "RankKilled", "SIGSEGV"),
        (0, "RankExited", "code 0"),
        (17, "RankExited", "code 17"),
    ],
)
def test_a_process_without_a_last_word_has_crashed(code: int, reason: str, words: str) -> None:
    end = end_of_process(code, rank=4, now=0.0)
    assert (end.failure_class, end.reason) == (FailureClass.CRASH, reason)
    assert words in end.message


def test_a_defect_of_the_supervisor_is_not_blamed_on_a_rank() -> None:
    end = end_of_supervisor(ValueError(SECRET), now=0.0)
    record = record_of(end, identity=None, job=None, round_number=1, time=NOW)
    assert (record.exit_code, record.reason, record.rank) == (
        ExitCode.UNKNOWN,
        "SupervisorFailed",
        None,
    )


def test_only_a_finished_pod_exits_0() -> None:
    def code(end: RankEnd | None) -> ExitCode:
        return record_of(end, identity=None, job=None, round_number=1, time=NOW).exit_code

    assert code(None) == ExitCode.FINISHED
    assert code(SAVED) == ExitCode.PREEMPTED
    assert code(PEER_LOST) == ExitCode.PEER_LOST
    assert code(KILLED_BY_US) == ExitCode.UNKNOWN


def _record(**changes: Any) -> ExitRecord:
    values = {
        "job_uid": "u",
        "attempt": 1,
        "round": 1,
        "replica": 0,
        "exit_code": ExitCode.CRASH,
        "failure_class": FailureClass.CRASH,
        "reason": "RankRaised",
        "time": NOW,
    }
    return ExitRecord(**values | changes)


WORDY_ACCOUNTS = TimeAccounts.model_validate(dict.fromkeys(TimeAccounts.model_fields, 1234567.891))
WORDY_NOISE = RobustnessReport(
    noise="embeddings", level=0.05, loss=12.345678, deviation=1.234567, failed=0.3333
)


@pytest.mark.parametrize("message", ["short", "m" * 1024, "é" * 1024, "語" * 1024, '"' * 1024])
@pytest.mark.parametrize("frames", [[], ["f" * 256] * 20, ["語" * 256] * 20])
def test_the_termination_message_is_whole_and_within_4_kib(message: str, frames: list[str]) -> None:
    last = {"accounts": WORDY_ACCOUNTS, "robustness": [WORDY_NOISE] * ROBUSTNESS_MAX}
    record = _record(message=message, frames=frames, **last)
    body = termination_message(record)
    assert len(body) <= 4096
    read = ExitRecord.model_validate_json(body)
    assert read.reason == "RankRaised"
    assert read.frames == record.frames[len(record.frames) - len(read.frames) :]  # innermost kept
    assert read.message == message or not read.frames  # frames go first


def test_the_cause_is_the_earliest_of_the_newest_attempt_that_is_not_a_consequence() -> None:
    old = _record(attempt=1)
    follower = _record(attempt=2, failure_class=FailureClass.PEER_LOST)
    cause = _record(attempt=2, replica=3, time=NOW + timedelta(seconds=2))
    later = _record(attempt=2, replica=4, time=NOW + timedelta(seconds=3))
    assert cause_of([old, follower, later, cause]) == cause
    assert cause_of([old, follower]) == follower
    assert cause_of([]) is None


def test_records_in_the_run_directory_are_found_by_the_next_lead(tmp_path: Path) -> None:
    for record in (
        _record(attempt=1, reason="First"),
        _record(attempt=2, reason="Second"),
        _record(attempt=2, replica=1, failure_class=FailureClass.PEER_LOST),
        _record(attempt=7, job_uid="another"),
    ):
        write_to_run_directory(record, tmp_path)
    (tmp_path / "exits" / "attempt-3-replica-0.json").write_text("{half")
    found = last_exit(tmp_path, job_uid="u", attempt=3)
    assert found is not None
    assert found.reason == "Second"
    assert last_exit(tmp_path / "absent", job_uid="u", attempt=3) is None


def test_the_newest_attempt_below_ones_own_is_told_by_its_number(tmp_path: Path) -> None:
    """As text, attempt 9 comes after attempt 100; and there may be more records than are read."""
    exits = tmp_path / "exits"
    exits.mkdir()
    record = record_of(CRASH, identity=None, job=None, round_number=1, time=NOW)
    for attempt in (2, 9, 10, 100, 101):
        for replica in (0, 1):
            body = record.model_copy(update={"attempt": attempt, "job_uid": "u"})
            (exits / f"attempt-{attempt}-replica-{replica}.json").write_text(
                body.model_dump_json(by_alias=True)
            )
    (exits / ".attempt-100-replica-0.json.x.tmp").write_text("{")
    for own, newest in ((3, 2), (10, 9), (101, 100), (200, 101)):
        found = last_exit(tmp_path, job_uid="u", attempt=own)
        assert found is not None
        assert found.attempt == newest
    assert last_exit(tmp_path, job_uid="other", attempt=200) is None


def test_an_old_lead_does_not_overwrite_a_newer_record(tmp_path: Path) -> None:
    write_to_run_directory(_record(attempt=5), tmp_path)
    write_to_run_directory(_record(attempt=4), tmp_path)
    assert json.loads((tmp_path / "exit.json").read_text())["attempt"] == 5


def test_nothing_is_written_into_another_jobs_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"job_uid": "another"}))
    write_to_run_directory(_record(), tmp_path)
    assert not (tmp_path / "exit.json").exists()


def test_a_record_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_to_run_directory(_record(), tmp_path / "file")
