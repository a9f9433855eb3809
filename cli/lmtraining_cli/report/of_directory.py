"""A report of a run directory on this machine.

Promise: reads what is there and writes nothing; a file that is absent or broken costs its part of
the report and is named.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from lmtraining_api import ExitRecord, JournalEntry, TimeAccounts
from lmtraining_api.history import HISTORY_FILE, Happening, RunHistory
from lmtraining_cli.errors import CliError
from lmtraining_cli.report.content import Content, placed
from lmtraining_cli.wording import size

CHECKPOINTS_LISTED_MAX = 50
_KINDS = {"Skipped": "Skip", "Rewound": "Rewind", "Rerun": "Rerun", "Started": "Start"}


def content_of(directory: Path) -> Content:
    """What the run has left. Raises CliError where it is no run directory."""
    run = _json(directory / "run.json")
    history = _history(directory)
    if not run and history is None:
        raise CliError(
            f"{directory} is no run directory: name the one that holds run.json, such as "
            "runs/tiny-gpt"
        )
    points = history.points if history else []
    journal = _journal(directory)
    record = _record(directory)
    finished = _json(directory / "finished.json").get("report") or {}
    accounts = record.accounts if record and record.accounts else TimeAccounts()
    missing = [] if history else [f"{HISTORY_FILE} is not there: curves begin with this version"]
    resolved = [entry.detail for entry in journal if entry.kind == "Resolved"]
    happenings = history.happenings if history else _of_journal(journal)
    return Content(
        name=str(run.get("job_name") or directory.name),
        state=_state(directory, record),
        made=datetime.now(UTC),
        summary=record.message if record and record.failure_class else "",
        figures=_figures(points, record),
        points=points,
        happenings=placed(happenings, points),
        unigram_loss=_number(finished.get("unigram_loss", finished.get("unigramLoss"))),
        accounts=dict(accounts),
        stability=_stability(journal),
        recoveries=_recoveries(journal),
        checkpoints=_checkpoints(directory / "checkpoints"),
        environment={
            "ranks": str(run.get("ranks") or ""),
            "begun": str(run.get("created") or ""),
            **{key: str(value) for detail in resolved[-1:] for key, value in detail.items()},
        },
        configuration=run.get("spec") or {},
        missing=missing,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _history(directory: Path) -> RunHistory | None:
    try:
        return RunHistory.model_validate_json((directory / HISTORY_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _journal(directory: Path) -> list[JournalEntry]:
    """Every line that is one; the last may be torn."""
    try:
        lines = (directory / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(JournalEntry.model_validate_json(line))
        except ValueError:
            continue
    return found


def _record(directory: Path) -> ExitRecord | None:
    try:
        return ExitRecord.model_validate_json((directory / "exit.json").read_bytes())
    except (OSError, ValueError):
        return None


def _state(directory: Path, record: ExitRecord | None) -> str:
    if (directory / "finished.json").exists():
        return "Completed"
    if record is None:
        return "Running"
    return "Stopped" if record.reason == "Preempted" else str(record.failure_class or "Completed")


def _figures(points: Any, record: ExitRecord | None) -> dict[str, str]:
    last = points[-1] if points else None
    step = record.step if record and record.step is not None else (last.step if last else 0)
    validation = record.validation_loss if record else None
    loss = record.loss if record and record.loss is not None else (last.loss if last else None)
    return {
        "steps": str(step),
        "loss": f"{loss:.4f}" if loss is not None else "",
        "validation loss": f"{validation:.4f}" if validation is not None else "",
        "tokens": f"{record.tokens:,}" if record and record.tokens else "",
        "tokens per second": f"{last.tokens_per_second:,.0f}"
        if last and last.tokens_per_second
        else "",
        "attempts": str(record.attempt) if record else "",
    }


def _of_journal(journal: list[JournalEntry]) -> list[Happening]:
    return [
        Happening(
            step=entry.step, time=entry.time, kind=_KINDS[entry.kind], message=_words(entry.detail)
        )
        for entry in journal
        if entry.kind in _KINDS
    ]


def _words(detail: Mapping[str, Any]) -> str:
    said = [str(detail[key]) for key in ("fault", "message") if detail.get(key)]
    to = detail.get("to_step")
    return ", ".join(said + ([f"back to step {to}"] if to is not None else []))


def _stability(journal: list[JournalEntry]) -> dict[str, str]:
    counts = {"Skipped": "batches skipped", "Rewound": "rewinds", "Rerun": "steps computed again"}
    return {
        words: str(sum(entry.kind == kind for entry in journal)) for kind, words in counts.items()
    }


def _recoveries(journal: list[JournalEntry]) -> list[tuple[str, str, str]]:
    """Every start after the first, and what was loaded then."""
    rows = []
    starts = [entry for entry in journal if entry.kind == "Started"][1:]
    for start in starts:
        loaded = next(
            (one for one in journal if one.kind == "Loaded" and one.sequence > start.sequence), None
        )
        how = f"went on from step {loaded.step}" if loaded else "began at step 0"
        what = f"attempt {start.attempt}, round {start.round}"
        rows.append((start.time.strftime("%Y-%m-%d %H:%M:%S"), what, how))
    return rows


def _checkpoints(directory: Path) -> list[tuple[str, str, str, str, str]]:
    """Newest first."""
    try:
        found = sorted(directory.glob("step-*/manifest.json"), reverse=True)
    except OSError:
        return []
    return [_checkpoint(path) for path in found[:CHECKPOINTS_LISTED_MAX]]


def _checkpoint(manifest: Path) -> tuple[str, str, str, str, str]:
    content = _json(manifest)
    files = content.get("files") or {}
    total = sum(int(one.get("size", 0)) for one in files.values() if isinstance(one, dict))
    marks = [mark for mark in ("intact", "healthy") if manifest.with_name(f"{mark}.json").exists()]
    when = datetime.fromtimestamp(manifest.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")
    step = str(int(manifest.parent.name.removeprefix("step-")))
    return step, when, size(total), ", ".join(marks), sha256(manifest.read_bytes()).hexdigest()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
