"""How the validation loss stands noise in the inputs.

Promise: the noise of a sequence is a function of the job's seed, the kind of noise, the number of
its draw and the place of the sequence alone: the same on every world size, in every attempt and in
every run on the same data. The same draw decides at every level, so that levels differ by their
strength and not by luck.
Trap avoided: a generator that is shared, or advanced batch by batch, gives other noise to another
number of ranks, and leaves the training's generators elsewhere.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray

from lmtraining_api import RobustnessReport
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.evaluation import Noise
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.sharding import whole

#: Shares of the input tokens that are replaced.
TOKEN_LEVELS = (0.01, 0.05, 0.10)
#: Standard deviations of what is added to the embeddings, as shares of the root mean square of the
#: embedding matrix.
EMBEDDING_LEVELS = (0.1, 0.3, 1.0)

Validate = Callable[[Noise], float | None]


def robustness(
    validate: Validate, *, seed: int, draws: int, unigram_loss: float | None
) -> list[RobustnessReport]:
    """What `validate` gives under each noise, over `draws` draws of it."""
    kinds = (
        ("tokens", TOKEN_LEVELS, token_noise),
        ("embeddings", EMBEDDING_LEVELS, embedding_noise),
    )
    return [
        summary(
            kind,
            level,
            [validate(partial(noise, level, f"{seed}/{kind}/{draw}")) for draw in range(draws)],
            unigram_loss,
        )
        for kind, levels, noise in kinds
        for level in levels
    ]


def summary(
    kind: str, level: float, losses: list[float | None], unigram_loss: float | None
) -> RobustnessReport:
    """The draws of one noise as one line. A draw has failed where its loss is not finite, or above
    that of a model which knows nothing but how often each token occurs."""
    finite = [loss for loss in losses if loss is not None]
    limit = float("inf") if unigram_loss is None else unigram_loss
    failed = sum(1 for loss in losses if loss is None or loss > limit)
    return RobustnessReport(
        noise=kind,
        level=level,
        loss=round(fmean(finite), 6) if finite else None,
        deviation=round(stdev(finite), 6) if len(finite) > 1 else None,
        failed=round(failed / len(losses), 4),
    )


@contextmanager
def token_noise(
    level: float, draw: str, model: ModelLoss, batch: MicroBatch, numbers: NDArray[np.int64]
) -> Iterator[MicroBatch]:
    """Each input token becomes, with probability `level`, one that is drawn evenly from the
    vocabulary. The targets stay."""
    length, vocabulary = batch.inputs.shape[1], model.model.config.vocab_size
    hits, tokens = [], []
    for number in numbers:
        generator = _generator(draw, int(number))
        hits.append(generator.random(length) < level)
        tokens.append(generator.integers(vocabulary, size=length))
    device = batch.inputs.device
    hit, token = (torch.from_numpy(np.stack(rows)).to(device) for rows in (hits, tokens))
    yield replace(batch, inputs=torch.where(hit, token, batch.inputs))


@contextmanager
def embedding_noise(
    level: float, draw: str, model: ModelLoss, batch: MicroBatch, numbers: NDArray[np.int64]
) -> Iterator[MicroBatch]:
    """e + level * RMS(E) * g: e is the embedding of an input token, E the embedding matrix, and
    each component of g is standard normal."""
    embeddings = model.model.get_input_embeddings()
    weight = whole(embeddings.weight.detach())  # type: ignore[operator]
    shape = (batch.inputs.shape[1], weight.shape[1])
    noise = np.stack(
        [
            _generator(draw, int(number)).standard_normal(shape, dtype=np.float32)
            for number in numbers
        ]
    )
    added = level * weight.square().mean().sqrt() * torch.from_numpy(noise).to(weight.device)
    hook = embeddings.register_forward_hook(lambda _, __, output: output + added.to(output.dtype))
    try:
        yield batch
    finally:
        hook.remove()


def _generator(draw: str, number: int) -> np.random.Generator:
    """For one sequence in one draw."""
    digest = hashlib.blake2b(f"{draw}/{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest)))
