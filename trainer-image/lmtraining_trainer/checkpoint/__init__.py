"""Checkpoints: written whole, verified, loaded only when intact, kept as promised."""

from lmtraining_trainer.checkpoint.load import Chosen, choose, restore_state
from lmtraining_trainer.checkpoint.retention import tidy
from lmtraining_trainer.checkpoint.write import Snapshot, write_checkpoint

__all__ = ["Chosen", "Snapshot", "choose", "restore_state", "tidy", "write_checkpoint"]
