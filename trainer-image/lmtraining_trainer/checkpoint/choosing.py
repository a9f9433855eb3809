"""Choosing the checkpoint to go on from.

Promise: a broken checkpoint is passed over in favour of the one before it, moved aside, and the
journal says why (P8); so is one that a rewind has abandoned. A checkpoint of another model is an
error with both shapes in it, not a fresh start, as is one with other adapters; so is a run whose
checkpoints are all gone (P3).
Trap avoided: a broken checkpoint that keeps its name counts as one that was kept, and stands in the
way of the good one that will be written at the same step.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lmtraining_api import FailureClass
from lmtraining_api.job import FineTuning, Lora, Optimizer
from lmtraining_trainer.checkpoint.faults import (
    ABANDONED,
    Contents,
    abandoned,
    fault_of_either,
    manifest_fault,
    size_fault,
)
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import remove_directory
from lmtraining_trainer.run import Run, layout

#: Broken checkpoints kept as evidence.
REJECTED_KEPT = 1
#: Broken checkpoints that are told apart in a sentence.
TOLD_MAX = 3


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The checkpoint to go on from."""

    step: int
    directory: str
    manifest_sha256: str
    world_size: int
    """Ranks of the gang that wrote it."""
    layout: str
    """How they shared the model."""
    time: str
    size_bytes: int
    other_optimizer: str = ""
    """Whose moments it holds, where that is not the optimizer of the job."""

    @property
    def name(self) -> str:
        return Path(self.directory).name

    def json(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    run: Run,
    identity: dict[str, Any],
    alive: Callable[[], None],
    contents: Contents,
    *,
    of_parts: Callable[[dict[str, Any]], list[str]],
) -> Chosen | None:
    """The newest checkpoint that is intact as far as the lead can say, or None where none was ever
    saved; on the lead, which then has the bytes that it needs in `contents`: of a sharded one the
    files that `of_parts` names, of another one all.

    Raises TrainerError(CONFIGURATION) where it is of another job, model or tokenizer, or of a newer
    version, TrainerError(STORAGE) where some were saved and none is left, OSError where storage
    fails.
    """
    for directory in layout.newest_first(run.checkpoints):
        manifest = _told(run, layout.manifest_of(directory) or {})
        _refuse_newer_version(directory, manifest)
        is_sharded = layout.layout_in(manifest) == layout.SHARDED
        why = (
            manifest_fault(directory, manifest)
            or abandoned(run, manifest)
            or (is_sharded and size_fault(directory, manifest))
            or fault_of_either(
                run.mirror,
                directory,
                manifest,
                alive,
                contents=contents,
                names=of_parts(manifest) if is_sharded else None,
            )
        )
        if why:
            reject(run, directory, why)
            continue
        _refuse_anothers(run, directory, manifest)
        _refuse_another_model(directory, manifest, identity)
        _refuse_other_adapters(directory, manifest, identity)
        optimizer = str(manifest.get("optimizer") or identity["optimizer"])
        return Chosen(
            step=int(manifest["step"]),
            directory=str(directory),
            manifest_sha256=layout.manifest_sha256(directory),
            world_size=int(manifest["world_size"]),
            layout=layout.layout_in(manifest),
            time=str(manifest["time"]),
            size_bytes=sum(int(entry["size"]) for entry in manifest["files"].values()),
            other_optimizer=optimizer if optimizer != identity["optimizer"] else "",
        )
    _refuse_to_begin_anew(run)
    return None


def adapters(lora: Lora | None) -> dict[str, Any] | None:
    """What a manifest says of adapters: what their tensors fit."""
    if lora is None:
        return None
    return lora.model_dump(mode="json", include={"rank", "alpha", "targets"})


def _told(run: Run, manifest: dict[str, Any]) -> dict[str, Any]:
    """`manifest`, with what an older trainer's does not say of the optimizer and the adapters, from
    the spec of the job that wrote it. Where it is this job's, or nobody knows, they are the same.
    """
    training = run.trained_by(str(manifest.get("job_uid")))
    if "optimizer" in manifest or training is None:
        return manifest
    try:
        tuning = FineTuning.model_validate(training.get("fineTuning", {}))
    except ValidationError:  # of a newer trainer, whose manifest says it
        return manifest
    name = training.get("optimizer", {}).get("name", Optimizer().name)
    return {**manifest, "optimizer": name, "lora": adapters(tuning.lora)}


def accept(run: Run, chosen: Chosen) -> None:
    """Once all ranks have found `chosen` intact; on the lead. Raises OSError."""
    directory = Path(chosen.directory)
    _forget_rejected(run)
    if not layout.is_marked_intact(directory):
        layout.mark_intact(directory, chosen.manifest_sha256)
        run.keep(directory / layout.INTACT)


def reject(run: Run, directory: Path, why: str) -> None:
    """Journal why, then move it aside, so that its name is free and it is never counted."""
    run.journal.append("Rejected", layout.step_of(directory) or 0, path=directory.name, why=why)
    if run.mirror is not None:
        run.mirror.reject(directory)
    aside = run.checkpoints / f"{layout.REJECTED_PREFIX}{directory.name}"
    remove_directory(aside)
    directory.rename(aside)


def passed_over(run: Run) -> str:
    """Which checkpoints were found broken since one was loaded, and why; what a rewind has left
    behind is not broken."""
    since = takewhile(lambda entry: entry.kind != "Loaded", reversed(run.journal.entries))
    broken = [
        f"step {entry.step} ({entry.detail['why']})"
        for entry in reversed(list(since))
        if entry.kind == "Rejected" and not str(entry.detail["why"]).startswith(ABANDONED)
    ]
    more = f", and {len(broken) - TOLD_MAX} more" if len(broken) > TOLD_MAX else ""
    return f"checkpoints passed over: {', '.join(broken[:TOLD_MAX])}{more}" if broken else ""


def _forget_rejected(run: Run) -> None:
    """Keep the newest ones as evidence; only once another was found good."""
    rejected = sorted(
        run.checkpoints.glob(f"{layout.REJECTED_PREFIX}*"), key=lambda path: path.stat().st_mtime
    )
    for path in rejected[:-REJECTED_KEPT]:
        remove_directory(path)


def _refuse_to_begin_anew(run: Run) -> None:
    saved = [entry.step for entry in run.journal.entries if entry.kind == "Saved"]
    if saved:
        raise TrainerError(
            FailureClass.STORAGE,
            "CheckpointsLost",
            f"{run.checkpoints} holds no intact checkpoint though {len(saved)} were saved, the "
            f"newest at step {saved[-1]}: restore one there, or start a new run with another "
            "checkpoint.path",
            step=saved[-1],
        )


def _refuse_newer_version(directory: Path, manifest: dict[str, Any]) -> None:
    """To pass it over would throw away what it holds, and go back without a word (P3)."""
    version = manifest.get("schema_version", layout.SCHEMA_VERSION)
    if isinstance(version, int) and version > layout.SCHEMA_VERSION:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "NewerCheckpoint",
            f"{directory} is a checkpoint of schema version {version}, and this trainer reads "
            f"versions up to {layout.SCHEMA_VERSION}: use the trainer image that wrote it "
            "(workers.image) or a newer one, or choose another checkpoint.path",
        )


def _refuse_anothers(run: Run, directory: Path, manifest: dict[str, Any]) -> None:
    """A checkpoint that somebody put here, of a job that never had the run."""
    owners = {run.job_uid, *(one.get("job_uid") for one in run.journal.details("Started"))}
    if manifest["job_uid"] not in owners and not run.may_take_over:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "CheckpointOfAnotherJob",
            f"{directory} was written by job {manifest['job_uid']}, which never had this run: move "
            "it away, or set checkpoint.existingRun to Resume to go on from it",
        )


def _refuse_another_model(
    directory: Path, manifest: dict[str, Any], identity: dict[str, Any]
) -> None:
    if manifest["fingerprint"] != identity["fingerprint"]:
        theirs, ours = _differences(manifest["shape"], identity["shape"])
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "AnotherModel",
            f"{directory} is a checkpoint of a model with {theirs}, but the job asks for {ours}: "
            "ask for the same model, or choose another checkpoint.path",
        )
    if manifest["tokenizer_sha256"] != identity["tokenizer_sha256"]:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "AnotherTokenizer",
            f"{directory} was trained with another tokenizer than data.train gives now: use the "
            "same data, or choose another checkpoint.path",
        )


def _refuse_other_adapters(
    directory: Path, manifest: dict[str, Any], identity: dict[str, Any]
) -> None:
    """New adapters go beside the weights of a run that had none; others do not fit in."""
    theirs, ours = manifest.get("lora"), identity.get("lora")
    if theirs is not None and theirs != ours:
        now = f"with {_spelt(ours)}" if ours else "without adapters"
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "AnotherModel",
            f"{directory} holds adapters of training.fineTuning.lora with {_spelt(theirs)}, but "
            f"the job trains {now}: ask for the same adapters, or choose another checkpoint.path",
        )


def _spelt(lora: dict[str, Any]) -> str:
    targets = ", ".join(lora["targets"]) or "all"
    return f"rank {lora['rank']}, alpha {lora['alpha']} and targets {targets}"


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str]:
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return (
        ", ".join(f"{key} {theirs.get(key)}" for key in keys),
        ", ".join(f"{key} {ours.get(key)}" for key in keys),
    )
