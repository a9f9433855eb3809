"""Text to packed tokens on disk, in chunks.

Promise: memory is bounded by one chunk, whatever the size of a document, and all cores that the
container may use do the work (the tokenizers library runs a batch in parallel).
Trap avoided: one long document keeps one core busy; it comes here in pieces.
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lmtraining_trainer.data.prepared import token_dtype
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID

#: Characters encoded at a time, about a second of work.
CHUNK_CHARACTERS = 2 * 1024 * 1024


class PackedWriter:
    """Writes the tokens of one split to a file and counts them."""

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        end_of_text_id: int = END_OF_TEXT_ID,
    ) -> None:
        self.counts: NDArray[np.int64] = np.zeros(vocab_size, dtype=np.int64)
        """How often each token was written, [vocab_size]."""
        self._file = path.open("wb")
        self._tokenizer = tokenizer
        self._end_of_text_id = end_of_text_id
        self._dtype = token_dtype(vocab_size)
        self._pieces: list[str] = []
        self._ends: list[bool] = []
        self._characters = 0

    def add(self, piece: str, *, ends_run: bool) -> None:
        """Append a piece, and the end-of-text token where it `ends_run`."""
        self._pieces.append(piece)
        self._ends.append(ends_run)
        self._characters += len(piece)
        if self._characters >= CHUNK_CHARACTERS:
            self._flush()

    def tokens_so_far(self) -> int:
        """Tokens of all pieces that were added."""
        self._flush()
        return int(self.counts.sum())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        if not self._pieces:
            return
        encodings = self._tokenizer.encode_batch_fast(self._pieces, add_special_tokens=False)
        ids: list[int] = []
        for encoding, ends in zip(encodings, self._ends, strict=True):
            ids.extend(encoding.ids)
            if ends:
                ids.append(self._end_of_text_id)
        tokens = np.array(ids, dtype=self._dtype)
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        self._file.write(tokens.tobytes())
        self._pieces, self._ends, self._characters = [], [], 0


def unigram_loss(train: NDArray[np.int64], validation: NDArray[np.int64]) -> float:
    """Mean -log p of the validation tokens, nats per token, p from training counts plus one.

    Both are counts by token, [vocab_size]. 0.0 where there is nothing to validate on.
    """
    total = int(validation.sum())
    if total == 0:
        return 0.0
    log_p = np.log(train + 1.0) - math.log(float(train.sum() + len(train)))
    return float(-(validation * log_p).sum() / total)
