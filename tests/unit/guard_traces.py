"""Losses of healthy trainings, generated, and what the guard makes of them."""

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice

from lmtraining_api.training import Stability
from lmtraining_trainer.guard import Observation, Remedies, Remedy, Window, judge
from lmtraining_trainer.guard.policy import Judgement

LIMITS = Stability()
SEQUENCES = 8
NOTHING_DONE = Remedies()


def seen(step: int, loss: float, *, norm: float = 0.5) -> Observation:
    return Observation(
        step=step,
        position=step * SEQUENCES,
        loss=loss,
        gradient_norm=norm,
        is_finite=math.isfinite(loss) and math.isfinite(norm),
    )


def judged(
    window: Window,
    observation: Observation,
    *,
    limits: Stability = LIMITS,
    remedies: Remedies = NOTHING_DONE,
) -> Judgement:
    return judge(window, observation, limits=limits, fixed_clip_norm=1.0, remedies=remedies)


Trace = Callable[[random.Random], Iterator[float]]


def falling(step: int) -> float:
    """A loss curve as of a language model: a power law above a floor."""
    return 2.5 + 6.0 * (1 + step / 20) ** -0.5


def normal(noise: random.Random) -> Iterator[float]:
    for step in range(10**9):
        yield falling(step) + noise.gauss(0, 0.05)


def heavy_tails(noise: random.Random) -> Iterator[float]:
    """Noise of Student's t with 8 degrees of freedom."""
    for step in range(10**9):
        chi = noise.gammavariate(4.0, 2.0)
        yield falling(step) + 0.05 * noise.gauss(0, 1) / math.sqrt(chi / 8)


def drifting_data(noise: random.Random) -> Iterator[float]:
    """Neighbouring batches are of neighbouring documents: the noise remembers."""
    state = 0.0
    for step in range(10**9):
        state = 0.9 * state + noise.gauss(0, 0.03)
        yield falling(step) + state + noise.gauss(0, 0.03)


def two_sources(noise: random.Random) -> Iterator[float]:
    """A mixture whose batches are now of one source, now of another half a nat harder."""
    for step in range(10**9):
        yield falling(step) + 0.5 * (noise.random() < 0.3) + noise.gauss(0, 0.05)


def noisier_with_time(noise: random.Random) -> Iterator[float]:
    for step in range(10**9):
        yield falling(step) + noise.gauss(0, 0.02 + 0.05 * min(1.0, step / 5000))


TRACES = (normal, heavy_tails, drifting_data, two_sources, noisier_with_time)


def alarms(trace: Trace, steps: int) -> list[str]:
    """Each remedy in so many healthy steps."""
    noise = random.Random(20_261_123)
    window, found = Window(), []
    for step, loss in enumerate(islice(trace(noise), steps)):
        norm = 0.4 * math.exp(noise.gauss(0, 0.3))
        judgement = judged(window, seen(step, loss, norm=norm))
        window = judgement.window
        if judgement.remedy is not Remedy.ACCEPT:
            found.append(f"step {step}: {judgement.finding}")
    return found
