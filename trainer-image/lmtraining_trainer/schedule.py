"""The learning rate: a pure function of the step.

Promise: nothing about the rate is state, so a resume cannot get it wrong, and a skipped step leaves
it where it was.
"""

import math

from lmtraining_api.job import Schedule, Training


def learning_rate(training: Training, step: int, *, total_steps: int) -> float:
    """The rate of the optimizer step that follows `step` finished ones of `total_steps`.

    Linear from 0 to the peak over the warm-up; after it by the schedule's name, which the last step
    of the budget ends.
    """
    peak, schedule = training.optimizer.peak_rate, training.schedule
    warmup = math.ceil(schedule.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step + 1 - warmup) / max(1, total_steps - warmup)
    decayed = _decayed(schedule, min(1.0, done), warmup / total_steps)
    return peak * (1.0 - decayed * (1.0 - schedule.final_fraction))


def _decayed(schedule: Schedule, done: float, warmup: float) -> float:
    """How much of the way from the peak to the final rate is done, where `done` is the share of the
    steps after the warm-up, which took a share `warmup` of all."""
    match schedule.name:
        case "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * done))
        case "linear":
            return done
        case "wsd":
            own = schedule.decay_fraction / (1.0 - warmup) if warmup < 1.0 else 1.0
            return math.sqrt(max(0.0, 1.0 - (1.0 - done) / min(1.0, own)))
        case _:
            return 0.0
