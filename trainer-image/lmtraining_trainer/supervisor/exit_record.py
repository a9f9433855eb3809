"""The exit record: made, kept within its limits, and left where it can be found.

Promise: the termination log holds one whole JSON document of at most 4 KiB, or nothing; a record in
the run directory appears by one rename. To leave a record is best effort and never changes how the
pod ends. A newer attempt's record is never overwritten, and nothing is written into a run directory
that is another job's.
"""

import json
import re
import sys
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from pathlib import Path

from lmtraining_api import (
    CODE_OF_CLASS,
    ExitCode,
    ExitRecord,
    FailureClass,
    JobFile,
    TrainerReport,
)
from lmtraining_api.names import TERMINATION_LOG_BYTES_MAX
from lmtraining_api.records import MESSAGE_LENGTH_MAX
from lmtraining_trainer.files import read_json, write_atomically
from lmtraining_trainer.run.directory import RUN
from lmtraining_trainer.supervisor.failure import RankEnd
from lmtraining_trainer.supervisor.identity import Identity

EXITS_DIRECTORY = "exits"
LEAD_EXIT_FILE = "exit.json"
RECORDS_READ_MAX = 4096
_NAME = re.compile(r"attempt-(\d+)-replica-\d+\.json")


def record_of(
    end: RankEnd | None,
    *,
    identity: Identity | None,
    job: JobFile | None,
    round_number: int,
    time: datetime,
) -> ExitRecord:
    """The record of a pod that ended like this; None: every rank finished."""
    failure = (end.failure_class or FailureClass.UNKNOWN) if end else None
    return ExitRecord(
        job_uid=job.job_uid if job else "",
        attempt=identity.attempt if identity else 0,
        round=round_number,
        replica=identity.replica if identity else 0,
        pod_name=identity.pod_name if identity else "",
        exit_code=CODE_OF_CLASS.get(failure, ExitCode.UNKNOWN) if failure else ExitCode.FINISHED,
        failure_class=failure,
        reason=end.reason if end else "Finished",
        message=_within(end.message, MESSAGE_LENGTH_MAX) if end else "every rank has finished",
        rank=end.rank if end else None,
        step=end.step if end else None,
        exception_type=end.exception_type if end else None,
        frames=list(end.frames) if end else [],
        time=time,
    )


def with_last_words(record: ExitRecord, report: TrainerReport) -> ExitRecord:
    """The record with what the lead's last report says: nobody may have pulled it in time."""
    words = ("tokens", "loss", "validation_loss", "validation_accuracy", "validation_f1")
    rest = ("robustness", "checkpoint", "export_path", "accounts")
    last = {name: getattr(report, name) for name in (*words, *rest)}
    if record.step is None:
        last["step"] = report.step
    return record.model_copy(update=last)


def termination_message(record: ExitRecord, bytes_max: int = TERMINATION_LOG_BYTES_MAX) -> bytes:
    """The record as JSON of at most `bytes_max` bytes: the outermost frames go first, then the end
    of the message."""
    message, frames = record.message, list(record.frames)
    while True:
        shorter = record.model_copy(update={"message": message, "frames": frames})
        document = shorter.model_dump(mode="json", by_alias=True, exclude_none=True)
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        if len(body) <= bytes_max or not (frames or message):
            return body
        if frames:
            frames = frames[1:]
        else:
            message = _within(message, len(message) // 2)


def write_termination_log(record: ExitRecord, path: Path) -> None:
    """One write: the file is a mount, which nothing can be renamed onto."""
    try:
        with path.open("wb", buffering=0) as file:
            file.write(termination_message(record))
    except OSError as error:
        _complain(path, error)


def write_to_run_directory(record: ExitRecord, run_directory: Path) -> None:
    """exits/attempt-<a>-replica-<r>.json, and exit.json by the lead."""
    try:
        owner = (read_json(run_directory / RUN) or {}).get("job_uid", record.job_uid)
        if owner != record.job_uid:
            return
        exits = run_directory / EXITS_DIRECTORY
        exits.mkdir(parents=True, exist_ok=True)
        _replace(exits / f"attempt-{record.attempt}-replica-{record.replica}.json", record)
        if record.replica == 0:
            _replace(run_directory / LEAD_EXIT_FILE, record)
    except OSError as error:
        _complain(run_directory, error)


def last_exit(run_directory: Path, *, job_uid: str, attempt: int) -> ExitRecord | None:
    """How the newest attempt before `attempt` ended: its cause, not the peers that followed it."""
    try:
        paths = list((run_directory / EXITS_DIRECTORY).iterdir())
    except OSError:
        return None
    named = [(int(name[1]), path) for path in paths if (name := _NAME.fullmatch(path.name))]
    before = sorted((pair for pair in named if pair[0] < attempt), reverse=True)
    found = groupby(before[:RECORDS_READ_MAX], key=lambda pair: pair[0])
    for _, pairs in found:  # a job that had the run before may have come further
        records = [record for _, path in pairs if (record := _read(path)) is not None]
        if ours := [record for record in records if record.job_uid == job_uid]:
            return cause_of(ours)
    return None


def cause_of(records: Iterable[ExitRecord]) -> ExitRecord | None:
    """Of the newest attempt, the earliest record that does not point at another."""
    found = list(records)
    newest = max((record.attempt for record in found), default=0)

    def order(record: ExitRecord) -> tuple[bool, bool, datetime]:
        failure = record.failure_class
        return failure is None, failure is not None and failure.is_consequence, record.time

    return min((r for r in found if r.attempt == newest), key=order, default=None)


def _replace(path: Path, record: ExitRecord) -> None:
    present = _read(path)
    ours = present is not None and present.job_uid == record.job_uid
    if present is not None and ours and present.attempt > record.attempt:
        return
    write_atomically(path, record.model_dump_json(by_alias=True, exclude_none=True).encode())


def _read(path: Path) -> ExitRecord | None:
    try:
        return ExitRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _within(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else text[: max(0, length_max - 1)] + "…"


def _complain(path: Path, error: OSError) -> None:
    sys.stderr.write(f"the exit record could not be written to {path}: {error.strerror}\n")
