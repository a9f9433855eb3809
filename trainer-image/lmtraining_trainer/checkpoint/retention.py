"""Which checkpoints stay.

Promise: the newest `keepLast` intact checkpoints and the newest healthy one stay, whatever else
lies there; so the newest of either mark is never deleted (P8). So do those of the lowest validation
losses and those at the steps that are kept for ever. What an earlier gang left half written is
removed: what lay there before the fence was last looked at, so that it cannot be a newer gang's.
Trap avoided: counting directories instead of intact checkpoints lets a crash loop during saving
push out the last good one.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtraining_api.job import Checkpoint
from lmtraining_trainer.files import TEMPORARY_PREFIX
from lmtraining_trainer.run import Run, layout
from lmtraining_trainer.run.directory import FINISHED, RUN


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An intact checkpoint, as far as it matters here."""

    step: int
    is_healthy: bool = False
    validation_loss: float | None = None
    """Where its step was validated before it was saved."""


def tidy(run: Run, keep: Checkpoint) -> None:
    """Delete what is not to be kept. Raises TrainerError("Fenced"), OSError."""
    leftovers = [
        *run.checkpoints.glob(".*-step-*"),
        *run.directory.glob(f"{TEMPORARY_PREFIX}*"),
        *(path for name in (RUN, FINISHED) for path in run.directory.glob(f".{name}.*.tmp")),
    ]
    halves = run.mirror.halves() if run.mirror else []
    directories = {layout.step_of(path): path for path in layout.newest_first(run.checkpoints)}
    intact = [_seen(path) for path in directories.values() if layout.is_marked_intact(path)]
    run.fence.check()
    if intact:
        kept = steps_to_keep(intact, keep)
        oldest_of_last = intact[: keep.keep_last][-1].step
        for step, directory in directories.items():
            if step is not None and step < oldest_of_last and step not in kept:
                run.remove_checkpoint(directory)
        if run.mirror is not None:
            run.mirror.thin(run.checkpoints / layout.directory_name(intact[0].step))
    for half in halves:
        run.remove_checkpoint(half)
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def steps_to_keep(intact: Sequence[Kept], keep: Checkpoint) -> set[int]:
    """The steps of those among `intact`, newest first, that stay."""
    validated = [one for one in intact if one.validation_loss is not None]
    best = sorted(validated, key=lambda one: (one.validation_loss, -one.step))
    every = keep.keep_every_steps
    milestones = [one for one in intact if every and one.step and one.step % every == 0]
    kept = [*intact[: keep.keep_last], *best[: keep.keep_best], *milestones, *_for_a_rewind(intact)]
    return {one.step for one in kept}


def _for_a_rewind(intact: Sequence[Kept]) -> list[Kept]:
    """The newest healthy checkpoint, and the one that will be healthy next: were it deleted before,
    short intervals would leave a rewind nowhere to go but back to the start."""
    newer, healthy = [], []
    for one in intact:
        if one.is_healthy:
            healthy = [one]
            break
        newer.append(one)
    return [*newer[-1:], *healthy]


def _seen(directory: Path) -> Kept:
    manifest = layout.manifest_of(directory) or {}
    return Kept(
        step=layout.step_of(directory) or 0,
        is_healthy=layout.is_marked_healthy(directory),
        validation_loss=manifest.get("validation_loss"),
    )
