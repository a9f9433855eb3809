"""The run directory: whose it is, what happened in it, and who may write."""

from lmtraining_trainer.run.changes import changes
from lmtraining_trainer.run.directory import Run, claim_run
from lmtraining_trainer.run.fence import Fence
from lmtraining_trainer.run.journal import Journal
from lmtraining_trainer.run.mirror import Mirror

__all__ = ["Fence", "Journal", "Mirror", "Run", "changes", "claim_run"]
