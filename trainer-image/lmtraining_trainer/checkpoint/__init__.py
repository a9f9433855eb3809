"""Checkpoints: written whole, verified, loaded only when intact, kept as promised."""

from lmtraining_trainer.checkpoint.load import Chosen, Contents, choose, restore_state
from lmtraining_trainer.checkpoint.retention import tidy
from lmtraining_trainer.checkpoint.staging import Staging
from lmtraining_trainer.checkpoint.write import Snapshot, write_checkpoint
from lmtraining_trainer.checkpoint.writer import Save, Writer

__all__ = [
    "Chosen",
    "Contents",
    "Save",
    "Snapshot",
    "Staging",
    "Writer",
    "choose",
    "restore_state",
    "tidy",
    "write_checkpoint",
]
