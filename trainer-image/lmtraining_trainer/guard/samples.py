"""What only some steps are asked: how large are updates, logits and activations, how noisy is the
gradient?

Promise: what is only odd is told, in words that stay the same while it lasts; what shows a run that
explodes leads to the remedies, and does not enter the memory that it is judged by (P6).
Trap avoided: judging an update by a fixed size. That depends on the rate, the model and its age, so
it is compared with its own history, without the rate, as a logarithm.

Formulas: gradient noise scale (McCandlish et al., arXiv 1812.06162, appendix A.1); the mean square
of Adam's update, which is near 1 at most (Wortsman et al., arXiv 2304.13013); gradients that Adam's
epsilon swallows (Wortsman et al., arXiv 2309.14322).
"""

import math
from dataclasses import dataclass, replace
from statistics import median

from lmtraining_api.training import Stability
from lmtraining_trainer.guard.detectors import Fault, Finding
from lmtraining_trainer.guard.journal import Remedies
from lmtraining_trainer.guard.policy import Judgement, Remedy, beyond_a_skip
from lmtraining_trainer.guard.window import Window, deviation_of

UPDATES_MIN = 8
"""Samples that must be known before one can be called an explosion."""
UPDATE_DEVIATIONS = 8.0
UPDATE_FACTOR_MIN = 8.0
"""An update below so many times its usual size explodes nothing, however steady it was."""
DEAD_RATIO = 2.0**-24
"""fp32 rounds away what is added to a weight and smaller than this share of it."""
SWALLOWED_MAX = 0.5
LOGIT_MAX = 100.0
"""Attention logits beyond this are cut off elsewhere (arXiv 2507.20534, section 2.1)."""
UNLEARNT_NATS = 0.05
"""A loss that is not so much below that of a unigram model in the second half of the run has not
begun to fall."""
#: Weight of the newest sample in the running means of the gradient noise scale.
_NOISE_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The figures of one step, as all ranks have agreed on them."""

    learning_rate: float
    update_rms: float
    """Root mean square of the update before the rate: of AdamW's without decay, of the others' with
    it."""
    weight_rms: float
    swallowed: float
    """Share of the weights whose second moment has a root below Adam's epsilon; 0 without Adam."""
    logit_bound: float
    """No attention logit was larger: greatest query norm times greatest key norm of a head."""
    activation_max: float
    """Largest absolute value that a block gave to the next."""
    part_norm: float
    """Root mean square over the ranks of the gradient norm of `part_sequences`."""
    part_sequences: int
    whole_norm: float
    """Norm of the gradient of the whole batch."""
    whole_sequences: int

    @property
    def update_ratio(self) -> float:
        """Size of the update beside the weights'."""
        return self.learning_rate * self.update_rms / self.weight_rms

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.update_rms) and 0.0 < self.weight_rms < math.inf


def judge_sample(
    window: Window, sample: Sample, *, limits: Stability, remedies: Remedies
) -> Judgement:
    """What to do about the weights, after an update of which a sample was taken."""
    finding = exploding_update(window, sample)
    if finding is None:
        return Judgement(remedy=Remedy.ACCEPT, window=_with_sample(window, sample))
    remedy = beyond_a_skip(remedies, limits)
    return Judgement(remedy=remedy, window=window, finding=finding)


def exploding_update(window: Window, sample: Sample) -> Finding | None:
    if not sample.is_finite:
        return Finding(fault=Fault.NON_FINITE, message="an update or a weight is not finite")
    if len(window.update_logs) < UPDATES_MIN or not sample.update_rms:
        return None
    usual = median(window.update_logs)
    limit = max(UPDATE_DEVIATIONS * deviation_of(window.update_logs), math.log(UPDATE_FACTOR_MIN))
    rise = _log(sample) - usual
    if rise <= limit:
        return None
    return Finding(
        fault=Fault.EXPLODING_UPDATE,
        message=f"the update is {_factor(rise)} times its usual size of the last "
        f"{len(window.update_logs)} samples; the limit is {_factor(limit)} times",
    )


def notice(
    window: Window, sample: Sample | None, *, step: int, total_steps: int, unigram_loss: float
) -> str:
    """What a person should know and nothing is done about; empty when all is usual."""
    found = []
    is_late = 2 * step >= total_steps
    if is_late and window.level is not None and window.level > unigram_loss - UNLEARNT_NATS:
        found.append(
            f"nothing is learnt, the loss is that of a unigram model ({unigram_loss:.3f}): lower "
            "training.optimizer.learningRate, or look at the data"
        )
    if window.trend.flat_steps:
        found.append(f"the loss has not fallen since step {step - window.trend.flat_steps}")
    if sample is not None:
        found += _oddities(sample)
    return "; ".join(found)


def _oddities(sample: Sample) -> list[str]:
    found = []
    if sample.learning_rate > 0.0 and sample.update_ratio < DEAD_RATIO:
        found.append("updates are too small to change the weights: raise the learning rate")
    if sample.swallowed > SWALLOWED_MAX:
        found.append(
            "Adam's epsilon swallows the updates of most weights: lower training.optimizer.epsilon"
        )
    if sample.logit_bound > LOGIT_MAX:
        found.append(
            f"attention logits may exceed {LOGIT_MAX:g}: lower training.optimizer.learningRate if "
            "the loss spikes"
        )
    return found


def noise_scale(window: Window) -> float | None:
    """Sequences of a batch at which noise and signal of its gradient are alike: larger batches
    bring little. None while it is not known."""
    if window.noise is None or window.signal is None or window.signal <= 0.0:
        return None
    return max(0.0, window.noise / window.signal)


def _with_sample(window: Window, sample: Sample) -> Window:
    if sample.update_rms > 0.0:
        window = window.with_update(_log(sample))
    small, large = sample.part_sequences, sample.whole_sequences
    if small >= large or not math.isfinite(sample.part_norm):
        return window
    part, whole = sample.part_norm**2, sample.whole_norm**2
    return replace(
        window,
        signal=_mean(window.signal, (large * whole - small * part) / (large - small)),
        noise=_mean(window.noise, (part - whole) / (1 / small - 1 / large)),
    )


def _log(sample: Sample) -> float:
    return math.log(sample.update_rms / sample.weight_rms)


def _factor(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g}"


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _NOISE_WEIGHT * (value - mean)
