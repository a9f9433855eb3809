"""From text somewhere to batches of tokens: sources, tokenizer, prepared data, data order."""

from lmtraining_trainer.data.batches import Batch, BatchPlan, MicroBatch
from lmtraining_trainer.data.order import sample_order
from lmtraining_trainer.data.prepare import prepare
from lmtraining_trainer.data.prepared import PreparedData, open_prepared

__all__ = [
    "Batch",
    "BatchPlan",
    "MicroBatch",
    "PreparedData",
    "open_prepared",
    "prepare",
    "sample_order",
]
