"""The masked language model: predict tokens that were hidden, from those on both sides.

Promise: which tokens of a sequence are hidden, and by what, is a function of the seed, the global
sample index and the position alone: the same after a resume, on any world size and in any company
(P7), and others in the next epoch. Those of a validation sequence never change.
Trap avoided: a batch whose sequences have hidden different numbers of tokens is averaged otherwise
by two ranks than by one. The loss of a sequence is the mean over its hidden tokens, that of a batch
the mean over its sequences.

Devlin et al., arXiv 1810.04805, section 3.1: of the hidden tokens 80 % become the mask token, 10 %
a random one, 10 % stay. Whole words: the authors' release of 2019-05-31.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import BertForMaskedLM, PreTrainedModel

from lmtraining_api.job import Masking, Regularisation, TrainingSpec
from lmtraining_trainer.architectures import config_of
from lmtraining_trainer.data.micro_batch import MicroBatch, on_device
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.data.tokenizer import ENCODER_TOKENS, MASK_ID, load_tokenizer
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.tasks.causal import (
    CountsNothing,
    Windows,
    training_windows,
    validation_length,
)

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
#: Tokens below this are special: never hidden, never drawn.
SPECIAL_TOKENS = len(ENCODER_TOKENS)


class _Kind(IntEnum):
    """What the pre-tokenizer of a byte-level BPE tells apart."""

    SPACE, LETTER, DIGIT, OTHER, SPECIAL = range(5)


@dataclass(frozen=True, kw_only=True)
class Words:
    """By token: what it begins and ends with, so that words can be found in packed tokens."""

    first: NDArray[np.int8]
    last: NDArray[np.int8]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Words":
        """Of the vocabulary of `tokenizer`."""
        entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        texts = [entry for entry, _ in entries]
        ends = [
            (_Kind.SPECIAL, _Kind.SPECIAL)
            if number < SPECIAL_TOKENS
            else (_kind(text[0]), _kind(text[-1]))
            for number, text in enumerate(texts)
        ]
        first, last = np.array(ends, dtype=np.int8).T
        return cls(first=first, last=last)

    def numbered(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """The word that each token of a sequence [length] belongs to, counted from 0: a token goes
        on with a word that ends with what it begins with."""
        first, before = self.first[row[1:]], self.last[row[:-1]]
        begins = (first != before) | (first == _Kind.SPACE) | (first == _Kind.SPECIAL)
        return np.concatenate([[0], np.cumsum(begins)])


def _kind(character: str) -> _Kind:
    """Of a byte, as a byte-level BPE spells it; what is not ASCII counts as a letter."""
    if character in "ĠĊĉč":
        return _Kind.SPACE
    if character.isascii() and not character.isalnum():
        return _Kind.OTHER
    return _Kind.DIGIT if character in "0123456789" else _Kind.LETTER


@dataclass(frozen=True, kw_only=True)
class MaskedWindows:
    """Packed text as sequences with hidden tokens."""

    windows: Windows
    draws: str
    """What is drawn for a sequence is drawn from this and its sample index."""
    share: float
    """Of the tokens that are hidden, as near as whole tokens come to it."""
    vocab_size: int
    words: Words | None
    """Hide whole words, and no more tokens than the share allows where one is that short."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Whole sequences of each source, or of the text, [sources]."""
        return self.windows.counts

    @property
    def count(self) -> int:
        return self.windows.count

    def read(
        self, numbers: NDArray[np.int64], samples: NDArray[np.int64], device: torch.device
    ) -> MicroBatch:
        """The sequences `numbers` with tokens hidden; targets are the hidden tokens, [sequences,
        hidden], with their positions and their weights in the mean of their sequence."""
        rows = self.windows.rows(numbers)[:, :-1]
        hidden = [self._hidden(row, int(sample)) for row, sample in zip(rows, samples, strict=True)]
        most = max(len(positions) for positions, _ in hidden)
        positions = np.zeros((len(rows), most), dtype=np.int64)
        weights = np.zeros((len(rows), most), dtype=np.float32)
        inputs = rows.copy()
        for row, (places, shown) in enumerate(hidden):
            positions[row, : len(places)] = places
            weights[row, : len(places)] = 1.0 / len(places)
            inputs[row, places] = shown
        targets = np.take_along_axis(rows, positions, axis=1)
        inputs_, targets_, *more = (
            on_device(each, device) for each in (inputs, targets, positions, weights)
        )
        return MicroBatch(inputs=inputs_, targets=targets_, more=tuple(more))

    def _hidden(
        self, row: NDArray[np.int64], sample: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the hidden tokens of a sequence, and what is shown in their place."""
        digest = hashlib.blake2b(f"{self.draws}/{sample}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest)))
        order, fate, other = generator.random((3, len(row)))
        order[row < SPECIAL_TOKENS] += 1.0  # last
        wanted = max(1, round(self.share * len(row)))
        if self.words is None:
            places = np.argpartition(order, wanted - 1)[:wanted]
        else:
            places = _whole_words(self.words.numbered(row), order, wanted)
        places = np.sort(places)
        drawn = SPECIAL_TOKENS + (other[places] * (self.vocab_size - SPECIAL_TOKENS)).astype(int)
        shown = np.where(fate[places] < MASKED_SHARE + RANDOM_SHARE, drawn, row[places])
        return places, np.where(fate[places] < MASKED_SHARE, MASK_ID, shown)


def _whole_words(
    words: NDArray[np.int64], order: NDArray[np.float64], wanted: int
) -> NDArray[np.int64]:
    """Positions of whole words, drawn by `order`, that are together at most `wanted` tokens; of the
    first one drawn where that is longer."""
    firsts = np.flatnonzero(np.diff(words, prepend=-1))
    sizes = np.diff(np.append(firsts, len(words)))
    chosen, room = list[int](), wanted
    for word in np.argsort(order[firsts], kind="stable"):
        if sizes[word] <= room or not chosen:
            chosen.append(word)
            room -= int(sizes[word])
        if room <= 0:
            break
    return np.flatnonzero(np.isin(words, chosen))


class MaskedLoss(ModelLoss):
    """A masked language model with its loss."""

    def forward(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Mean over the sequences of the mean cross-entropy of their hidden tokens, nats per token,
        a scalar. `inputs` is [sequences, length], the others [sequences, hidden]."""
        model: Any = self.model
        states = model.base_model(input_ids=inputs).last_hidden_state
        places = positions[..., None].expand(-1, -1, states.shape[-1])
        logits = model.cls(states.gather(1, places)).float()  # of the hidden tokens alone
        smoothing = self.regularisation.label_smoothing if self.training else 0.0
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        return (losses.view_as(weights) * weights).sum() / len(inputs)


class MaskedLM(CountsNothing):
    """Reads a text from both sides."""

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        config: Any = config_of(spec)
        return BertForMaskedLM(config)

    def loss(self, model: PreTrainedModel, regularisation: Regularisation) -> ModelLoss:
        return MaskedLoss(model, regularisation)

    def training(self, spec: TrainingSpec, data: PreparedData) -> MaskedWindows:
        windows = training_windows(spec, data)
        return _masked(windows, spec, data, draws=f"{spec.training.seed}/mask")

    def validation(self, spec: TrainingSpec, data: PreparedData) -> MaskedWindows:
        windows = Windows(tokens=data.validation, length=validation_length(spec, data))
        return _masked(windows, spec, data, draws="validation/mask")


def _masked(
    windows: Windows, spec: TrainingSpec, data: PreparedData, *, draws: str
) -> MaskedWindows:
    masking = spec.model.masking or Masking()
    is_whole = masking.whole_words
    return MaskedWindows(
        windows=windows,
        draws=draws,
        share=masking.share,
        vocab_size=spec.data.tokenizer.vocab_size,
        words=Words.of(load_tokenizer(data.tokenizer_json)) if is_whole else None,
    )
