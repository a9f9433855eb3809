"""The learning rate: a pure function of the step.

Promise: nothing about the rate is state, so a resume cannot get it wrong, and a skipped step leaves
it where it was.
"""

import math

from lmtraining_api.job import Training


def learning_rate(training: Training, step: int) -> float:
    """The rate of the optimizer step that follows `step` finished ones.

    Linear from 0 to the peak over the warm-up, then half a cosine to finalFraction of it, which the
    last step of the budget has.
    """
    peak, total = training.optimizer.peak_rate, training.budget.steps
    warmup = math.ceil(training.schedule.warmup_fraction * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(1, total - warmup)
    final = training.schedule.final_fraction
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))
