"""The guard: is this step good, and what is done when it is not?

Promise: detectors are pure functions over a window that is part of the training state, and the
policy that acts on them is apart from them; all of it runs on numbers that every rank has alike, so
all ranks decide alike. No torch in here.
"""

from lmtraining_trainer.guard.detectors import (
    Fault,
    Finding,
    Observation,
    clip_norm,
    loss_rise_max,
)
from lmtraining_trainer.guard.journal import Remedies
from lmtraining_trainer.guard.policy import (
    DEVICE_FAULTS_MAX,
    Judgement,
    Remedy,
    beyond_a_skip,
    judge,
)
from lmtraining_trainer.guard.samples import Sample, judge_sample, noise_scale, notice
from lmtraining_trainer.guard.window import Window

__all__ = [
    "DEVICE_FAULTS_MAX",
    "Fault",
    "Finding",
    "Judgement",
    "Observation",
    "Remedies",
    "Remedy",
    "Sample",
    "Window",
    "beyond_a_skip",
    "clip_norm",
    "judge",
    "judge_sample",
    "loss_rise_max",
    "noise_scale",
    "notice",
]
