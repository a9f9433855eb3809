"""Runs as a tracker is told of them: a job, the history that its training would have written, and a
pod whose rank only counts."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from lmtraining_api import ExitCode, ExitRecord, FailureClass, JobFile, TrainingSpec
from lmtraining_api.history import HISTORY_FILE, Happening, Point, RunHistory
from tests.trainer.supervisor_pods import Pod, spec

BEGAN = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


#: A model whose place and Secret nobody else may see.
PRIVATE_MODEL: Final[dict[str, Any]] = {
    "pretrained": {
        "uri": "https://private-models.example/base",
        "credentials": {"secretRef": {"name": "private-login"}},
    }
}


def tracked_job(
    directory: Path, model: dict[str, Any] | None = None, **tracking: object
) -> JobFile:
    """A job in that directory, with a UID of its own."""
    found = spec(f"file://{directory}/private-text.txt") | {"tracking": tracking}
    if model is not None:
        found |= {"model": model, "data": {**found["data"], "tokenizer": {}}}
    (directory / "run").mkdir(exist_ok=True)
    return JobFile(
        job_name="tiny",
        namespace="tests",
        job_uid=f"uid-of-{directory.name}",
        run_directory=str(directory / "run"),
        data_cache_directory=str(directory / "cache"),
        spec=TrainingSpec.model_validate(found),
    )


def trained(directory: Path, steps: int, *, redone_from: int = 0) -> None:
    """A history of so many steps; with `redone_from`, after a rewind."""
    points = [
        Point(
            step=step,
            time=BEGAN + timedelta(seconds=step + (10_000 if 0 < redone_from <= step else 0)),
            loss=(20.0 if 0 < redone_from <= step else 10.0) / step,
            learning_rate=1e-3,
            validation_loss=2.5 if step == 20 else None,
        )
        for step in range(1, steps + 1)
    ]
    rewind = Happening(step=steps, time=BEGAN + timedelta(seconds=9000), kind="Rewind")
    history = RunHistory(points=points, happenings=[rewind] if redone_from else [])
    (directory / "run" / HISTORY_FILE).write_text(history.model_dump_json(by_alias=True))


def ended(code: ExitCode = ExitCode.FINISHED) -> ExitRecord:
    failure = None if code == ExitCode.FINISHED else FailureClass.CRASH
    return ExitRecord(
        job_uid="u", attempt=1, round=1, replica=0, exit_code=code, failure_class=failure,
        reason="Ended", time=BEGAN,
    )  # fmt: skip


def trackers_of(pod: Pod) -> list[str]:
    """Processes that tell of this pod's run: they inherit its environment."""
    mark = f"={pod.uid}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_tracker = b"lmtraining_trainer.tracking" in (process / "cmdline").read_bytes()
            if is_tracker and mark in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def losses(steps: range) -> list[tuple[int, float]]:
    return [(step, 10.0 / step) for step in steps]


def counting(directory: Path, **tracking: object) -> Pod:
    """A pod whose rank counts to twenty, in a run directory as a rank makes it."""
    (directory / "run").mkdir()
    return Pod(directory, "counts_its_steps", {**spec(ranksPerReplica=1), "tracking": tracking})
