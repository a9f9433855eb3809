"""Checkpoints: written whole, verified, loaded only when intact, kept as promised."""

from lmtraining_trainer.checkpoint.choosing import (
    Chosen,
    accept,
    adapters,
    choose,
    passed_over,
    reject,
)
from lmtraining_trainer.checkpoint.faults import Contents, fault_of_either
from lmtraining_trainer.checkpoint.load import needed_parts, part_fault, restore_state
from lmtraining_trainer.checkpoint.retention import tidy
from lmtraining_trainer.checkpoint.staging import Staging
from lmtraining_trainer.checkpoint.together import Line
from lmtraining_trainer.checkpoint.write import Snapshot, write_checkpoint
from lmtraining_trainer.checkpoint.writer import (
    Publish,
    Save,
    Writer,
    part_published,
    published_whole,
    published_with_parts,
)

__all__ = [
    "Chosen",
    "Contents",
    "Line",
    "Publish",
    "Save",
    "Snapshot",
    "Staging",
    "Writer",
    "accept",
    "adapters",
    "choose",
    "fault_of_either",
    "needed_parts",
    "part_fault",
    "part_published",
    "passed_over",
    "published_whole",
    "published_with_parts",
    "reject",
    "restore_state",
    "tidy",
    "write_checkpoint",
]
