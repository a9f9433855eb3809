"""Sequence classification: say which label a text has.

Promise: padding is never attended to, so the figures of an example do not depend on its company;
the loss is the mean over the examples.
Trap avoided: accuracy alone flatters a model that always says the commonest label. The macro F1
beside it counts every label the same, as scikit-learn does: over the labels that occur or are said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import BertForSequenceClassification, PreTrainedModel

from lmtraining_api.job import Regularisation, TrainingSpec
from lmtraining_trainer.architectures import config_of
from lmtraining_trainer.data.micro_batch import MicroBatch, on_device
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.data.tokenizer import PAD_ID
from lmtraining_trainer.loss import ModelLoss

#: A micro-batch is padded to a multiple of this, so that a device meets few different shapes.
WIDTH_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Prepared examples, cut at one length and padded to that of the longest in a micro-batch."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    table: NDArray[np.int64]
    """Where the tokens of each example end, and its label, [examples, 2]."""
    length: int
    """Tokens per example at most."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples, as if of one source."""
        return (len(self.table),)

    @property
    def count(self) -> int:
        """Examples that there are."""
        return len(self.table)

    @property
    def cut(self) -> int:
        """Examples that are longer than `length`."""
        sizes = np.diff(self.table[:, 0], prepend=0)
        return int((sizes > self.length).sum())

    def read(
        self, numbers: NDArray[np.int64], samples: NDArray[np.int64], device: torch.device
    ) -> MicroBatch:
        """The examples `numbers`; targets are their labels, [sequences], beside them which tokens
        are no padding, int64 [sequences, length]. Nothing is drawn."""
        inputs, there = self.padded(*self.extents(numbers))
        labels = self.table[numbers, 1]
        tokens, targets, attended = (on_device(each, device) for each in (inputs, labels, there))
        return MicroBatch(inputs=tokens, targets=targets, more=(attended,))

    def extents(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the tokens of the examples `numbers` begin, and how many of them are read."""
        starts = np.where(numbers > 0, self.table[numbers - 1, 0], 0)
        return starts, np.minimum(self.table[numbers, 0] - starts, self.length)

    def padded(
        self, starts: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those tokens, and 1 where they are no padding, both [len(starts), length]."""
        width = min(-(-int(sizes.max()) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.length)
        inputs = np.full((len(starts), width), PAD_ID, dtype=np.int64)
        for row, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            inputs[row, :size] = self.tokens[start : start + size]
        return inputs, (np.arange(width) < sizes[:, None]).astype(np.int64)


class LabelLoss(ModelLoss):
    """A classifier with its loss."""

    def forward(  # type: ignore[override]
        self, inputs: torch.Tensor, targets: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross-entropy, nats per example, a scalar. In validation followed by what is
        counted: by label the examples that were said rightly, that were said to have it, and that
        have it, [1 + 3 * labels]."""
        logits = self.model(input_ids=inputs, attention_mask=attended).logits.float()
        smoothing = self.regularisation.label_smoothing if self.training else 0.0
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        if self.training:
            return loss
        said, labels = logits.argmax(-1), logits.shape[-1]
        groups = (targets[said == targets], said, targets)
        counts = [torch.bincount(group, minlength=labels).to(loss.dtype) for group in groups]
        return torch.cat([loss[None], *counts])


class SequenceClassification:
    """Says which label a text has."""

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        return BertForSequenceClassification(labelled_config(spec, labels))

    def loss(self, model: PreTrainedModel, regularisation: Regularisation) -> ModelLoss:
        return LabelLoss(model, regularisation)

    def training(self, spec: TrainingSpec, data: PreparedData) -> LabelledTexts:
        return labelled_texts(data.train, data.train_examples, spec)

    def validation(self, spec: TrainingSpec, data: PreparedData) -> LabelledTexts:
        return labelled_texts(data.validation, data.validation_examples, spec)

    def counted(self, data: PreparedData) -> int:
        return 3 * len(data.labels)

    def figures(self, counts: Sequence[float]) -> dict[str, float]:
        """Accuracy and macro F1."""
        right, said, wanted = np.array(counts).reshape(3, -1)
        occurs = said + wanted > 0
        scores = 2.0 * right[occurs] / (said + wanted)[occurs]
        return {
            "validation_accuracy": float(right.sum() / wanted.sum()),
            "validation_f1": float(scores.mean()),
        }


def labelled_config(spec: TrainingSpec, labels: Sequence[str]) -> Any:
    """The config of a model that knows `labels`."""
    config = config_of(spec)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    return config


def labelled_texts(
    tokens: NDArray[np.uint16] | NDArray[np.uint32],
    table: NDArray[np.int64] | None,
    spec: TrainingSpec,
) -> LabelledTexts:
    """The examples of one side of the split."""
    if table is None:  # its form is that of another task
        raise ValueError("the prepared data has no labels")
    return LabelledTexts(tokens=tokens, table=table, length=spec.data.sequence_length)
