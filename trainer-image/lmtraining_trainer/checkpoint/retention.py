"""Which checkpoints stay.

Promise: the newest `keepLast` intact checkpoints stay, whatever else lies there; so the newest
intact one is never deleted (P8). What an earlier gang left half written is removed.
Trap avoided: counting directories instead of intact checkpoints lets a crash loop during saving
push out the last good one.
"""

import shutil

from lmtraining_trainer.checkpoint import layout
from lmtraining_trainer.files import remove_directory
from lmtraining_trainer.run import Run


def tidy(run: Run, keep_last: int) -> None:
    """Delete what is not to be kept. Raises TrainerError("Fenced")."""
    run.fence.check()
    directories = layout.newest_first(run.checkpoints)
    intact = [directory for directory in directories if layout.is_marked_intact(directory)]
    kept = intact[:keep_last]
    if kept:
        for directory in directories[directories.index(kept[-1]) + 1 :]:
            remove_directory(directory)
    for leftover in run.checkpoints.glob(".*-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
