"""The causal language model: predict the next token of a running text.

Promise: each token of the text is a target once per epoch. What is exported is a plain model of
transformers. (The model classes are imported here and not looked up by name, so that the fork
server has them and a restart need not.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from lmtraining_api.job import Regularisation, TrainingSpec
from lmtraining_trainer.architectures import config_of, new_config
from lmtraining_trainer.data.micro_batch import MicroBatch, on_device
from lmtraining_trainer.data.mixture import sequences_in
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.loading import loaded
from lmtraining_trainer.loss import ModelLoss, has_plain_head

_MODELS: Mapping[str, type[PreTrainedModel]] = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Packed text as sequences of one length, each token with the one that is to be predicted."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    length: int
    """Tokens per sequence."""
    backwards: bool = False
    """Read from the last token to the first."""
    source_tokens: tuple[int, ...] = ()
    """Tokens of each source, one after another, where no sequence may reach from one into the next,
    [sources]; empty where all is one text."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Whole sequences of each source, or of the text, [sources]."""
        return tuple(sequences_in(tokens, self.length) for tokens in self._sizes)

    @property
    def count(self) -> int:
        return sum(self.counts)

    def read(
        self, numbers: NDArray[np.int64], samples: NDArray[np.int64], device: torch.device
    ) -> MicroBatch:
        """The sequences `numbers`; nothing is drawn."""
        both = on_device(self.rows(numbers), device)
        return MicroBatch(inputs=both[:, :-1], targets=both[:, 1:])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of the sequences `numbers` and the one that follows, [sequences, length + 1],
        in the order in which they are read."""
        starts = self._starts(numbers)
        rows = self.tokens[starts[:, None] + np.arange(self.length + 1)[None, :]].astype(np.int64)
        return np.ascontiguousarray(rows[:, ::-1]) if self.backwards else rows

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.source_tokens or (len(self.tokens),)

    def _starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where sequences begin, in tokens."""
        sizes, counts = np.array(self._sizes), np.array(self.counts)
        source = np.searchsorted(np.cumsum(counts), numbers, side="right")
        first_tokens, first_numbers = np.cumsum(sizes) - sizes, np.cumsum(counts) - counts
        starts: NDArray[np.int64] = (
            first_tokens[source] + (numbers - first_numbers[source]) * self.length
        )
        return starts


def training_windows(spec: TrainingSpec, data: PreparedData, *, backwards: bool = False) -> Windows:
    """The training text; where sources are weighted, each by itself."""
    return Windows(
        tokens=data.train,
        length=spec.data.sequence_length,
        backwards=backwards,
        source_tokens=data.source_tokens if spec.data.is_weighted else (),
    )


def validation_length(spec: TrainingSpec, data: PreparedData) -> int:
    """Tokens of a validation sequence: sequenceLength, or what there is where the text is
    shorter."""
    return min(spec.data.sequence_length, len(data.validation) - 1)


class CountsNothing:
    """A task whose validation is the loss alone."""

    def counted(self, data: PreparedData) -> int:
        return 0

    def figures(self, counts: Sequence[float]) -> dict[str, float]:
        return {}


class CausalLM(CountsNothing):
    """Reads a text from left to right."""

    backwards = False

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        if base is not None:
            return loaded(base)
        return _MODELS[new_config(spec).architecture](config_of(spec))

    def loss(self, model: PreTrainedModel, regularisation: Regularisation) -> ModelLoss:
        is_sliced = isinstance(model, tuple(_MODELS.values())) or has_plain_head(model)
        return ModelLoss(model, regularisation, is_sliced=is_sliced)

    def training(self, spec: TrainingSpec, data: PreparedData) -> Windows:
        return training_windows(spec, data, backwards=self.backwards)

    def validation(self, spec: TrainingSpec, data: PreparedData) -> Windows:
        length = validation_length(spec, data)
        return Windows(tokens=data.validation, length=length, backwards=self.backwards)
