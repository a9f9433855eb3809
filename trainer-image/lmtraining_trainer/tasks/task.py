"""What a task is: the questions that its module answers.

Trap avoided: a task that keeps state of its own. What it reads is a function of the job, the
prepared data and the numbers it is asked for, so that a resume and another world size read the same
(P7).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lmtraining_api.job import Regularisation, TrainingSpec
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.data.prepared import PreparedData
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.loss import ModelLoss


class Examples(Protocol):
    """Prepared data as a task reads it."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Examples of each source where sources have weights, else of all, [sources]."""

    @property
    def count(self) -> int:
        """Examples that there are."""

    def read(
        self, numbers: NDArray[np.int64], samples: NDArray[np.int64], device: torch.device
    ) -> MicroBatch:
        """The examples `numbers`, each in [0, count), as [len(numbers), ...] on `device`. What is
        drawn for one of them is drawn from its entry of `samples`: the global sample index in
        training, its own number in validation."""


class Task(Protocol):
    """What is particular to a training objective."""

    def model(
        self, spec: TrainingSpec, labels: Sequence[str], base: BaseModel | None
    ) -> PreTrainedModel:
        """A new model on the CPU, its weights drawn from torch's generator; `labels` are those of
        the prepared data. Of `base`, where the job goes on from one, which only causal-lm does."""

    def loss(self, model: PreTrainedModel, regularisation: Regularisation) -> ModelLoss:
        """`model` with the loss of a micro-batch: the mean over its examples. In validation it is
        followed by what is `counted` in them."""

    def training(self, spec: TrainingSpec, data: PreparedData) -> Examples:
        """The training examples."""

    def validation(self, spec: TrainingSpec, data: PreparedData) -> Examples:
        """The validation examples."""

    def counted(self, data: PreparedData) -> int:
        """How many things validation counts beside the loss."""

    def figures(self, counts: Sequence[float]) -> dict[str, float]:
        """What those counts, over all validation examples, say of the model, by the name that the
        report has for it."""
