"""Token classification: say which tag each word of a text has, in the BIO scheme.

Promise: a word has one tag, judged on its first token; what is counted is whole entities, as
conlleval does (Tjong Kim Sang & De Meulder 2003): an entity is found where its type, beginning and
end are right. The loss of an example is the mean over its words, that of a batch the mean over its
examples.
Trap avoided: with most words outside of any entity, a model that finds none is right nine times of
ten. Accuracy is told, and the F1 of the entities is what to look at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import BertForTokenClassification, PreTrainedModel

from lmtraining_api.job import Regularisation, TrainingSpec
from lmtraining_trainer.data.labelled import NO_TAG
from lmtraining_trainer.data.micro_batch import MicroBatch, on_device
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.tasks.sequence_classification import (
    LabelledTexts,
    labelled_config,
    labelled_texts,
)

Entity = tuple[int, int, str]
"""First word, the one after the last, type."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a sequence of tags; an I- that continues nothing begins one."""
    found: set[Entity] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((start, place, kind))
            kind = ""
        if prefix != "O" and not kind:
            start, kind = place, name
    return found


@dataclass(frozen=True, kw_only=True)
class TaggedTexts:
    """Prepared examples with a tag for each word, cut and padded as those with one label are."""

    texts: LabelledTexts
    tags: NDArray[np.int16]
    """By token; NO_TAG where it does not begin a word."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples, as if of one source."""
        return self.texts.counts

    @property
    def count(self) -> int:
        """Examples that there are."""
        return self.texts.count

    @property
    def cut(self) -> int:
        """Examples that are longer than a sequence."""
        return self.texts.cut

    def read(
        self, numbers: NDArray[np.int64], samples: NDArray[np.int64], device: torch.device
    ) -> MicroBatch:
        """The examples `numbers`; targets are the tags, int64 [sequences, length], beside them
        which tokens are no padding, and the weight of each in the mean of its sequence. Nothing is
        drawn."""
        starts, sizes = self.texts.extents(numbers)
        inputs, there = self.texts.padded(starts, sizes)
        targets = np.full(inputs.shape, NO_TAG, dtype=np.int64)
        for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            targets[row, :size] = self.tags[start : start + size]
        judged = targets != NO_TAG
        weights = (judged / np.maximum(judged.sum(1, keepdims=True), 1)).astype(np.float32)
        tokens, wanted, attended, shares = (
            on_device(each, device) for each in (inputs, targets, there, weights)
        )
        return MicroBatch(inputs=tokens, targets=wanted, more=(attended, shares))


class TagLoss(ModelLoss):
    """A tagger with its loss."""

    def forward(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        attended: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Mean over the sequences of the mean cross-entropy of their words, nats per word, a
        scalar. In validation followed by what is counted: words that were said rightly, words;
        entities that were found, that were said, that are there."""
        logits = self.model(input_ids=inputs, attention_mask=attended).logits.float()
        smoothing = self.regularisation.label_smoothing if self.training else 0.0
        losses = functional.cross_entropy(
            logits.transpose(1, 2),
            targets,
            reduction="none",
            ignore_index=NO_TAG,
            label_smoothing=smoothing,
        )
        loss = (losses * weights).sum() / len(inputs)
        if self.training:
            return loss
        return torch.cat([loss[None], loss.new_tensor(self._counts(logits.argmax(-1), targets))])

    def _counts(self, said: torch.Tensor, targets: torch.Tensor) -> list[int]:
        names: Any = self.model.config.id2label
        right = words = found = told = there = 0
        for guesses, wanted in zip(said.tolist(), targets.tolist(), strict=True):
            pairs = [pair for pair in zip(guesses, wanted, strict=True) if pair[1] != NO_TAG]
            right += sum(guess == tag for guess, tag in pairs)
            words += len(pairs)
            ours, theirs = (entities([names[n] for n in side]) for side in _sides(pairs))
            found, told, there = found + len(ours & theirs), told + len(ours), there + len(theirs)
        return [right, words, found, told, there]


def _sides(pairs: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    listed = list(pairs)
    return [guess for guess, _ in listed], [tag for _, tag in listed]


class TokenClassification:
    """Says which tag each word of a text has."""

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        config: Any = labelled_config(spec, labels)
        return BertForTokenClassification(config)

    def loss(self, model: PreTrainedModel, regularisation: Regularisation) -> ModelLoss:
        return TagLoss(model, regularisation)

    def training(self, spec: TrainingSpec, data: PreparedData) -> TaggedTexts:
        return _tagged(labelled_texts(data.train, data.train_examples, spec), data.train_tags)

    def validation(self, spec: TrainingSpec, data: PreparedData) -> TaggedTexts:
        texts = labelled_texts(data.validation, data.validation_examples, spec)
        return _tagged(texts, data.validation_tags)

    def counted(self, data: PreparedData) -> int:
        return 5

    def figures(self, counts: Sequence[float]) -> dict[str, float]:
        """Accuracy over the words, F1 over the entities; 1 where there are none and none were
        said."""
        right, words, found, told, there = counts
        return {
            "validation_accuracy": right / words if words else 0.0,
            "validation_f1": 2.0 * found / (told + there) if told + there else 1.0,
        }


def _tagged(texts: LabelledTexts, tags: NDArray[np.int16] | None) -> TaggedTexts:
    if tags is None:  # its form is that of another task
        raise ValueError("the prepared data has no tags")
    return TaggedTexts(texts=texts, tags=tags)
