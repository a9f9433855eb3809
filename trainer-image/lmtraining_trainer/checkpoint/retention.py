"""Which checkpoints stay.

Promise: the newest `keepLast` intact checkpoints and the newest healthy one stay, whatever else
lies there; so the newest of either mark is never deleted (P8). What an earlier gang left half
written is removed: what lay there before the fence was last looked at, so that it cannot be a newer
gang's.
Trap avoided: counting directories instead of intact checkpoints lets a crash loop during saving
push out the last good one.
"""

import shutil
from pathlib import Path

from lmtraining_trainer.checkpoint import layout
from lmtraining_trainer.files import TEMPORARY_PREFIX, remove_directory
from lmtraining_trainer.run import Run
from lmtraining_trainer.run.directory import FINISHED, RUN


def tidy(run: Run, keep_last: int) -> None:
    """Delete what is not to be kept. Raises TrainerError("Fenced"), OSError."""
    leftovers = [
        *run.checkpoints.glob(".*-step-*"),
        *run.directory.glob(f"{TEMPORARY_PREFIX}*"),
        *(path for name in (RUN, FINISHED) for path in run.directory.glob(f".{name}.*.tmp")),
    ]
    directories = layout.newest_first(run.checkpoints)
    intact = [directory for directory in directories if layout.is_marked_intact(directory)]
    run.fence.check()
    if intact:
        kept = {*intact[:keep_last], *_kept_for_a_rewind(intact)}
        oldest_of_last = intact[:keep_last][-1]
        for directory in directories[directories.index(oldest_of_last) + 1 :]:
            if directory not in kept:
                remove_directory(directory)
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _kept_for_a_rewind(intact: list[Path]) -> list[Path]:
    """The newest healthy checkpoint, and the one that will be healthy next: were it deleted before,
    short intervals would leave a rewind nowhere to go but back to the start."""
    healthy = next(filter(layout.is_marked_healthy, intact), None)
    newer = intact if healthy is None else intact[: intact.index(healthy)]
    return [*newer[-1:], *([] if healthy is None else [healthy])]
