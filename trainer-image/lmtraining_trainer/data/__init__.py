"""From text somewhere to batches of tokens: sources, tokenizer, prepared data, data order.

Trap avoided: what is shown here imports no torch, so that sources can be checked, and data
prepared, before anything waits for that import. `batches`, which needs it, goes by its own name.
"""

from lmtraining_trainer.data.documents import check_sources
from lmtraining_trainer.data.order import sample_order
from lmtraining_trainer.data.prepare import prepare, reader_of, wanted
from lmtraining_trainer.data.prepared import PreparedData, open_prepared

__all__ = [
    "PreparedData",
    "check_sources",
    "open_prepared",
    "prepare",
    "reader_of",
    "sample_order",
    "wanted",
]
