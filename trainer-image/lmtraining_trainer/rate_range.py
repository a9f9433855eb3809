"""The learning-rate range test (Smith, arXiv 1506.01186, section 3.3): which rate a job could take.

Promise: a short training of the job's own model on its own batches, in one process, with a rate
that grows by the same factor at each step; nothing is written but the cache of prepared data.
Trap avoided: the rate of the lowest loss is the one at which it begins to explode. What is
suggested is the rate at which the loss falls fastest.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import torch

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer import precision, rng
from lmtraining_trainer.data import open_prepared, prepare
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.form import form_of
from lmtraining_trainer.data.pretrained import fetch_model, open_model
from lmtraining_trainer.device import device_of
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.startup import model_to_train
from lmtraining_trainer.step import forward_backward, update
from lmtraining_trainer.tasks import task_of

#: From so much below the job's rate to so much above it.
BELOW, ABOVE = 1e-3, 1e2
RATE_MAX = 10.0
#: Weight of what was before in the running mean of the loss.
SMOOTHING = 0.9
#: A loss so far above the first one will not come back.
RISE_MAX_NATS = 1.0
#: The running mean of fewer losses is little more than their noise.
UNSETTLED_LOSSES = 20


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """What was tried, and what it suggests."""

    rates: Sequence[float]
    losses: Sequence[float]
    """Before the step with that rate, nats per token, a running mean."""

    @property
    def suggestion(self) -> float | None:
        """The rate at which the loss falls fastest per factor of the rate, once the running mean
        has settled; None where it never falls."""
        losses, rates = self.losses[UNSETTLED_LOSSES:], self.rates[UNSETTLED_LOSSES:]
        falls = [
            (before - after, rate)
            for before, after, rate in zip(losses, losses[1:], rates[:-1], strict=False)
        ]
        fastest, rate = max(falls, default=(0.0, 0.0))
        return rate if fastest > 0.0 else None


def rates_to_try(peak: float, steps: int) -> list[float]:
    """A geometric series around the job's own rate."""
    low, high = peak * BELOW, min(RATE_MAX, peak * ABOVE)
    return [low * (high / low) ** (step / max(1, steps - 1)) for step in range(steps)]


@dataclass(frozen=True, kw_only=True)
class RunningMean:
    """Of the losses so far, without a bias to the first."""

    weighted: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        """After at least one loss."""
        return self.weighted / (1.0 - SMOOTHING**self.count)

    def after(self, loss: float) -> "RunningMean":
        """One loss more."""
        weighted = SMOOTHING * self.weighted + (1.0 - SMOOTHING) * loss
        return RunningMean(weighted=weighted, count=self.count + 1)


def smoothed(losses: Iterable[float]) -> list[float]:
    """The running mean at each of them."""
    means = accumulate(losses, RunningMean.after, initial=RunningMean())
    return [mean.value for mean in islice(means, 1, None)]


def range_test(
    job: JobFile, *, steps: int, credentials: Path, say: Callable[[str], None]
) -> RangeTest:
    """Train for up to `steps` steps. Raises TrainerError."""
    spec = job.spec
    device = device_of(0, accelerated=spec.workers.accelerator is not None)
    plan = _plan(job, credentials, say, device)
    model = model_to_train(spec, device, plan.data)
    rng.seed_all(seed=spec.training.seed, rank=0, step=0)
    with_loss = task_of(spec).loss(model, spec.training.regularisation)
    optimizer = build_optimizer(model, spec.training.optimizer, spec.training.fine_tuning)
    compute: precision.Format = "bf16" if spec.precision.compute == "bf16" else "fp32"
    rates, losses = rates_to_try(spec.training.optimizer.peak_rate, steps), list[float]()
    mean = RunningMean()
    for step, rate in enumerate(rates):
        measured = forward_backward(
            with_loss,
            plan.batch(step * plan.batch_sequences),
            lambda: precision.autocast(device, compute),
        )
        loss, norm = float(measured.loss), float(measured.gradient_norm)
        mean = mean.after(loss)
        limit = RISE_MAX_NATS + (losses[0] if losses else loss)
        if not math.isfinite(loss + norm) or mean.value > limit:
            break
        losses.append(loss)
        update(
            model,
            optimizer,
            learning_rate=rate,
            clip_norm=spec.training.gradient_clip_norm,
            gradient_norm=torch.tensor(norm),
        )
    return RangeTest(rates=rates[: len(losses)], losses=smoothed(losses))


def _plan(
    job: JobFile, credentials: Path, say: Callable[[str], None], device: torch.device
) -> BatchPlan:
    """The batches of the job, all read by one rank."""
    cache = Path(job.data_cache_directory)
    base, pretrained = None, job.spec.model.pretrained
    if pretrained is not None:
        key = fetch_model(
            pretrained, cache=cache, credentials=credentials, owner=job.job_uid, progress=say
        )
        base = open_model(cache, key, job.spec)
    key = prepare(
        job.spec.data,
        cache=cache,
        credentials=credentials,
        owner=job.job_uid,
        form=form_of(job.spec),
        progress=say,
        base=base,
    )
    data = open_prepared(cache, key, base)
    if data is None:
        raise TrainerError(
            FailureClass.STORAGE,
            "DataUnreadable",
            f"the prepared data {cache / key} is not readable: choose another --runs",
        )
    return BatchPlan.of(job.spec, data, rank=0, world_size=1, device=device)
