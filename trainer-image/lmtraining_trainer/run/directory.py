"""Whose run directory it is, and whether there is anything left to do in it.

Promise: a run directory belongs to one job at a time; another job gets it only by saying so
(`existingRun: Resume`), and so does another training; a finished run stays finished for the same
spec (P2).
Trap avoided: two jobs with the same `checkpoint.path` would mix their checkpoints without a word;
so would one job before and after its spec was edited. A trainer that knows more fields than the one
that began a run has changed nothing: specs are compared as this trainer reads them, not by a hash.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lmtraining_api import BEGUN, FailureClass, JobFile
from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import (
    read_json,
    remove_directory,
    write_json,
)
from lmtraining_trainer.rank_link import RankPlace
from lmtraining_trainer.run.accounts_mark import Spent, spent_until
from lmtraining_trainer.run.fence import Fence
from lmtraining_trainer.run.journal import Journal
from lmtraining_trainer.run.progress_mark import ProgressMark
from lmtraining_trainer.run.remote import RemoteError

if TYPE_CHECKING:
    from lmtraining_trainer.run.mirror import Mirror

RUN = "run.json"
FINISHED = "finished.json"
EXPORT = "export"
CHECKPOINTS = "checkpoints"


@dataclass
class Run:
    """A run directory that this gang owns; only the lead holds one."""

    directory: Path
    job_uid: str
    fence: Fence
    journal: Journal
    mark: ProgressMark
    record: dict[str, Any]
    """Content of run.json."""
    may_take_over: bool
    """Whether the job says that it goes on from what another job left."""
    spent: Spent
    """Where the time of the gangs before this one went."""
    mirror: "Mirror | None" = None
    """Where the run lives, if not in `directory` alone."""

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def finished(self, spec: TrainingSpec) -> dict[str, Any] | None:
        """The final report of a run that finished with this spec, wherever it ran and is kept;
        else None."""
        marker = read_json(self.directory / FINISHED) or {}
        written = marker.get("spec")
        blocks = ("model", "data", "training", "precision", "stability")
        if not isinstance(written, dict) or _differing(spec, written, blocks=blocks, but=set()):
            return None
        report = marker.get("report")
        return report if isinstance(report, dict) else None

    def finish(self, spec: TrainingSpec, report: dict[str, Any]) -> None:
        """Write the finished marker. Raises TrainerError("Fenced") or OSError."""
        self.fence.check()
        marker = {"job_uid": self.job_uid, "spec": spec_as_written(spec), "report": report}
        write_json(self.directory / FINISHED, marker)
        self.keep(self.directory / FINISHED)

    def remember(self, **values: object) -> None:
        """Add to run.json. Raises TrainerError("Fenced") or OSError."""
        self.fence.check()
        self.record = {**self.record, **values}
        write_json(self.directory / RUN, self.record)
        self.keep(self.directory / RUN)

    def keep(self, path: Path) -> None:
        """Bring a small file that was written to where the run lives. Raises OSError."""
        if self.mirror is not None:
            self.mirror.keep(path)

    def trained_by(self, job_uid: str) -> dict[str, Any] | None:
        """What a job that had the run before this one wrote as its training; None where nobody
        kept it."""
        found = self.record.get("trained_before", {}).get(job_uid)
        return found if isinstance(found, dict) else None

    def remove_checkpoint(self, directory: Path) -> None:
        """Delete a checkpoint, so that no half of it ever has its name. Raises OSError."""
        if self.mirror is not None:
            self.mirror.remove(directory)
        remove_directory(directory)


def utc_now() -> datetime:
    return datetime.now(UTC)


def claim_run(
    job: JobFile,
    place: RankPlace,
    mirror: "Mirror | None" = None,
    *,
    now: Callable[[], datetime] = utc_now,
) -> Run:
    """The run directory, ours from now on; `mirror` where the run lives in an object store.

    Raises TrainerError(CONFIGURATION) where it is another job's, TrainerError(STORAGE) where it
    cannot be written, TrainerError("Fenced") where a newer gang was first.
    """
    directory = Path(job.run_directory)
    with storage_errors(directory):
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        if mirror is not None:
            mirror.bring()
        record = read_json(directory / RUN)
        check_claim(job, record)
        taken_over = _is_anothers(job, record)
        changed = _changed(job.spec, record or {})
        fence = Fence(
            directory=directory,
            job_uid=job.job_uid,
            attempt=place.attempt,
            round=place.round,
            store=mirror.fence_names if mirror else None,
        )
        mark = fence.raise_it()
        if mirror is not None:
            mirror.bring()  # once more: nobody else adds to it from here on
        journal = Journal(fence, mirror.journal_of(mark) if mirror else None)
        run = Run(
            directory=directory,
            job_uid=job.job_uid,
            fence=fence,
            journal=journal,
            mark=ProgressMark(directory),
            record=record or {},
            may_take_over=_may_take_over(job),
            spent=spent_until(now(), directory, () if taken_over else journal.entries),
            mirror=mirror,
        )
        # Before the owner changes: the new one has budgets of its own, also after a crash here.
        run.journal.append(
            "Started",
            0,
            job_uid=job.job_uid,
            taken_over=taken_over,
            changed=", ".join(changed) or None,
            **run.spent.detail(),
        )
        _spell_out_finished(run)
        as_now = {"spec": spec_as_written(job.spec), "ranks": job.spec.workers.world_size}
        if record is None or taken_over or (changed and not has_begun(directory)):
            as_now |= _of_job(job)
        if taken_over:
            as_now["trained_before"] = _trained_before(run.record)
        if not as_now.items() <= run.record.items():
            run.remember(**as_now)
    return run


def _trained_before(record: dict[str, Any]) -> dict[str, Any]:
    """By job, what those that had the run trained with, as they wrote it."""
    training = record.get("spec", {}).get("training")
    latest = {} if training is None else {record["job_uid"]: training}
    return {**record.get("trained_before", {}), **latest}


def _spell_out_finished(run: Run) -> None:
    """Give the marker of an older trainer, which told a hash of its spec alone, the spec that
    run.json still has; its budget is what it came to. Raises OSError."""
    marker, spec = read_json(run.directory / FINISHED), run.record.get("spec")
    if marker is None or "spec" in marker or not isinstance(spec, dict):
        return
    if marker.get("job_uid") != run.record.get("job_uid"):
        return
    training, done = spec.get("training", {}), marker.get("report", {}).get("total_steps")
    if done is not None and "steps" in training.get("budget", {}):
        spec = {**spec, "training": {**training, "budget": {"steps": done}}}
    write_json(run.directory / FINISHED, {**marker, "spec": spec})
    run.keep(run.directory / FINISHED)


def check_claim(job: JobFile, record: dict[str, Any] | None) -> None:
    """Look only, at the content of run.json. Raises TrainerError(CONFIGURATION) where the run is
    another job's or another training."""
    if _is_anothers(job, record):
        _refuse_unless_wished(job, record or {})
    elif (changed := _changed(job.spec, record or {})) and has_begun(Path(job.run_directory)):
        _refuse_another_training(job, changed)


def has_begun(directory: Path) -> bool:
    """Whether there is anything in the run to go on from; before that, all of it may be changed.
    Raises OSError."""
    try:
        return any(not path.name.startswith(".") for path in (directory / CHECKPOINTS).iterdir())
    except FileNotFoundError:
        return False


def _is_anothers(job: JobFile, record: dict[str, Any] | None) -> bool:
    return record is not None and record.get("job_uid") != job.job_uid


def _may_take_over(job: JobFile) -> bool:
    return job.spec.checkpoint.existing_run == "Resume"


def _of_job(job: JobFile) -> dict[str, str]:
    created = datetime.now(UTC).isoformat()
    return {"job_uid": job.job_uid, "job_name": job.job_name, "created": created}


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """A context in which an OSError is a TrainerError(STORAGE) that names the run directory, or the
    object store with what its error means."""
    try:
        yield
    except RemoteError as error:
        raise error.failure() from error
    except OSError as error:
        raise TrainerError(
            FailureClass.STORAGE,
            "RunDirectoryUnusable",
            f"the run directory {directory} cannot be read or written "
            f"({error.strerror or type(error).__name__}): free space there, or make it writable "
            "for the pod's user",
        ) from error


def spec_as_written(spec: TrainingSpec) -> dict[str, Any]:
    """What is trained, as a user would write it. What is at its default is absent, so that another
    version with more defaults has changed nothing; where it runs does not count."""
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"workers"})


def _changed(spec: TrainingSpec, record: dict[str, Any]) -> list[str]:
    """The blocks that say what is computed and are not what the run was begun with. How long, how
    often it is looked at, in how many parts and with whose credentials it is read, may be changed
    within a run."""
    written = record.get("spec")
    if not isinstance(written, dict):
        return []
    return _differing(
        spec,
        written,
        blocks=("model", "data", "training", "precision"),
        but={"budget", "gradient_accumulation", "evaluation"},
    )


def _differing(
    spec: TrainingSpec, written: dict[str, Any], *, blocks: Sequence[str], but: set[str]
) -> list[str]:
    """Those of `blocks` that are not as they were `written`, by this trainer or another, whose
    defaults this one fills in; fields `but` of training, and credentials, left out."""

    def whole(of: TrainingSpec) -> dict[str, Any]:
        sources = {side: {"__all__": {"credentials"}} for side in ("train", "validation")}
        content = of.model_dump(
            mode="json", include={*blocks}, exclude={"data": sources, "training": {*but}}
        )
        content["training"]["optimizer"] = [
            of.training.optimizer.name,
            of.training.optimizer.settings,
        ]
        if of.model.config is not None and of.training.regularisation.dropout is not None:
            del content["model"]["config"]["dropout"]  # the other takes its place
        return content

    try:
        blocks_written = {name: written.get(name, {}) for name in blocks}
        before = TrainingSpec.model_validate(blocks_written, context=BEGUN)
    except ValidationError:  # of a newer trainer: what it says that is unknown here is other
        ours = spec_as_written(spec)
        return [name for name in blocks if ours.get(name) != written.get(name)]
    now, then = whole(spec), whole(before)
    return [name for name in blocks if now[name] != then[name]]


def _refuse_another_training(job: JobFile, changed: list[str]) -> None:
    raise TrainerError(
        FailureClass.CONFIGURATION,
        "AnotherTraining",
        f"{job.run_directory} holds a run that was begun with other values in "
        f"{' and '.join(changed)} than the job has now: put that back, or begin another run (with "
        "lmtraining run: rename the job or pass --runs; in a cluster: another checkpoint.path)",
    )


def _refuse_unless_wished(job: JobFile, record: dict[str, Any]) -> None:
    if _may_take_over(job):
        return
    other = f"{record.get('job_name')} ({record.get('job_uid')})"
    raise TrainerError(
        FailureClass.CONFIGURATION,
        "RunExists",
        f"{job.run_directory} holds the run of another job, {other}: choose another "
        "checkpoint.path, or set checkpoint.existingRun to Resume to go on from it",
    )
