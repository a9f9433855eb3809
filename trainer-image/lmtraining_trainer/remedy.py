"""Carrying out what the guard decided, on every rank alike.

Promise: the journal has a remedy before it is carried out; a skipped batch changes nothing but the
position in the data (P6); a rewind goes to a checkpoint that the report names, with the reason
(P3), and never twice through the data that went before the fault.
Trap avoided: taking a flipped bit for bad data. A batch that is found bad is computed once more
from the same random numbers, and only what is bad twice is.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from lmtraining_api import FailureClass, RemedyReport
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.guard import (
    DEVICE_FAULTS_MAX,
    Fault,
    Finding,
    Judgement,
    Remedy,
    beyond_a_skip,
    judge_sample,
    noise_scale,
    notice,
)
from lmtraining_trainer.guard.window import BATCHES_KEPT
from lmtraining_trainer.resume import resume
from lmtraining_trainer.run import Run, layout
from lmtraining_trainer.run.directory import storage_errors
from lmtraining_trainer.sampling import Probe, sample
from lmtraining_trainer.step import Verdict
from lmtraining_trainer.trainer import Trainer

#: Two runs of the same batch on a device that does not add in a fixed order agree to this.
SAME_RELATIVE = 1e-3

#: Findings that the same batch, computed again, would tell nothing about.
NOT_OF_THE_BATCH = (Fault.KNOWN_BAD, Fault.DIVERGENCE)

Judged = tuple[Verdict, Judgement]


def without_corruption(trainer: Trainer, first: Judged, again: Callable[[], Judged]) -> Judged:
    """`first`; where its batch is bad, what `again` gives, which computes it a second time."""
    finding = first[1].finding
    if finding is None or finding.fault in NOT_OF_THE_BATCH:
        return first
    second = again()
    if _are_same(first[0], second[0]):
        return second
    step = trainer.state.counters.step
    message = (
        f"{finding.message}; computed again, the loss is {second[0].loss:.4g} and the gradient "
        f"norm {second[0].gradient_norm:.4g}: some device computes wrongly"
    )
    found = Finding(fault=Fault.SILENT_CORRUPTION, message=message)
    trainer.saver.note("Rerun", step, fault=found.fault, message=message)
    trainer.remedies = trainer.remedies.with_rerun()
    _report(trainer, "Rerun", found, step=step)
    if trainer.remedies.device_faults > DEVICE_FAULTS_MAX:
        raise _device_fails(trainer, found)
    return second


def _are_same(first: Verdict, second: Verdict) -> bool:
    """Whether two runs of one batch agree; NaN agrees with NaN."""
    pairs = ((first.loss, second.loss), (first.gradient_norm, second.gradient_norm))
    return first.is_finite == second.is_finite and all(
        math.isclose(one, other, rel_tol=SAME_RELATIVE)
        or (not math.isfinite(one) and not math.isfinite(other))
        for one, other in pairs
    )


def skip(trainer: Trainer, verdict: Verdict, judgement: Judgement) -> None:
    """Change nothing but the position in the data (P6)."""
    state, position = trainer.state, trainer.state.counters.position
    state.optimizer.zero_grad(set_to_none=True)
    finding = judgement.finding
    if finding is not None and position not in trainer.remedies.positions:
        trainer.saver.note(
            "Skipped",
            state.counters.step,
            position=position,
            loss=verdict.loss if math.isfinite(verdict.loss) else None,
            fault=finding.fault,
            message=finding.message,
        )
    step = state.counters.step
    trainer.remedies = trainer.remedies.with_skip(position, step=step)
    state.counters = state.counters.skipped(
        sequences=trainer.plan.batch_sequences, window=judgement.window
    )
    _report(
        trainer,
        Remedy.SKIP,
        finding,
        step=step,
        loss=verdict.loss if verdict.is_finite else None,
        loss_is_finite=verdict.is_finite,
    )


def rewind_or_stop(trainer: Trainer, judgement: Judgement) -> None:
    """Go back to the newest healthy checkpoint, and round the data that went before the fault.

    Raises TrainerError(DIVERGED) where there is none or the budget is spent, TrainerError(HARDWARE)
    where a device fails again and again, TrainerError(STORAGE) where it cannot be journalled or
    loaded, TrainerError("Fenced").
    """
    if judgement.finding and judgement.finding.fault is Fault.REPLICA_DIVERGENCE:
        if trainer.remedies.device_faults >= DEVICE_FAULTS_MAX:
            raise _device_fails(trainer, judgement.finding)
    elif judgement.remedy is Remedy.STOP:
        raise _diverged(trainer, judgement)
    finding, saver, state = judgement.finding, trainer.saver, trainer.state
    from_step = state.counters.step
    state.optimizer.zero_grad(set_to_none=True)
    trainer.voice.say("Loading")
    saver.settle_to_rewind(from_step)
    to_step = trainer.gang.lead_does(
        "journal a rewind", lambda: _journal_rewind(trainer, trainer.run, judgement)
    )
    if to_step is None:
        raise _diverged(trainer, judgement)
    load_rewound(trainer)
    _report(trainer, Remedy.REWIND, finding, step=from_step, to_step=state.counters.step)


def load_rewound(trainer: Trainer) -> None:
    """Load what the newest rewind in the journal goes back to. Raises TrainerError."""
    trainer.saver.saved_step = None
    trainer.resumed = resume(
        trainer.state,
        trainer.saver,
        seed=trainer.spec.training.seed,
        total_steps=trainer.budgets.first,
    )
    trainer.remedies = trainer.resumed.remedies


def _journal_rewind(trainer: Trainer, run: Run | None, judgement: Judgement) -> int | None:
    """On the lead: choose the target and write it down. None where no checkpoint is intact."""
    if run is None or judgement.finding is None:
        return None
    counters, remedies, finding = trainer.state.counters, trainer.remedies, judgement.finding
    trainer.saver.settle()  # what is being written may be where to go,
    trainer.saver.poll(trainer.state)  # and be proven already
    trainer.saver.settle()
    with storage_errors(run.directory):
        intact = [*filter(layout.is_marked_intact, layout.newest_first(run.checkpoints))]
        # Where none is healthy yet, the one that is furthest from the fault.
        target = next(filter(layout.is_marked_healthy, intact), intact[-1] if intact else None)
        to_step = None if target is None else layout.step_of(target)
        if to_step is None:
            return None
        blames_data = finding.fault is not Fault.REPLICA_DIVERGENCE
        start, end = _suspect_data(trainer, judgement) if blames_data else (counters.position,) * 2
        run.journal.append(
            "Rewound",
            counters.step,
            to_step=to_step,
            from_position=start,
            to_position=end,
            rate_scale=remedies.next_rate_scale if blames_data else remedies.rate_scale,
            rewarm_steps=remedies.rewarm_steps_of(trainer.total_steps),
            fault=finding.fault,
            message=finding.message,
        )
    return to_step


def _suspect_data(trainer: Trainer, judgement: Judgement) -> tuple[int, int]:
    """From where to where the data may have caused it: a bad stretch is longer than the part that
    gave it away (PaLM, arXiv 2204.02311, section 5.1, skips some hundred batches)."""
    window = judgement.window
    suspects = window.bad_positions or window.positions
    return suspects[0], trainer.state.counters.position + (
        BATCHES_KEPT * trainer.plan.batch_sequences
    )


def _diverged(trainer: Trainer, judgement: Judgement) -> TrainerError:
    """The remedies are spent."""
    limits, remedies = trainer.spec.stability, trainer.remedies
    found = judgement.finding.message if judgement.finding else ""
    return TrainerError(
        FailureClass.DIVERGED,
        "RemediesSpent",
        f"{found}; {remedies.skips} batches were skipped (stability.skippedStepsMax "
        f"{limits.skipped_steps_max}) and {remedies.rewinds} rewinds made (stability.rewindsMax "
        f"{limits.rewinds_max}): lower training.optimizer.learningRate "
        f"{trainer.spec.training.optimizer.peak_rate:g}, lengthen "
        "training.schedule.warmupFraction, look at the data, or set precision.compute to fp32",
        step=trainer.state.counters.step,
    )


def judge_update(trainer: Trainer, probed: Probe, verdict: Verdict, rate: float) -> Judgement:
    """Report the sampled figures of the step that was just taken; where its update explodes, the
    weights have been rewound."""
    taken = sample(trainer, probed, verdict, rate)
    state = trainer.state
    judgement = judge_sample(
        state.counters.window, taken, limits=trainer.spec.stability, remedies=trainer.remedies
    )
    if judgement.remedy is not Remedy.ACCEPT:
        rewind_or_stop(trainer, judgement)
        return judgement
    state.counters = replace(state.counters, window=judgement.window)
    sequences = noise_scale(judgement.window)
    trainer.voice.say(
        "Training",
        update_ratio=taken.update_ratio,
        update_rms=taken.update_rms,
        swallowed_share=taken.swallowed,
        attention_logit_bound=taken.logit_bound,
        activation_max=taken.activation_max,
        noise_scale_tokens=None
        if sequences is None
        else sequences * trainer.spec.data.sequence_length,
        notice=notice(
            judgement.window,
            taken,
            step=state.counters.step,
            total_steps=trainer.total_steps,
            unigram_loss=trainer.plan.data.unigram_loss,
        ),
    )
    return judgement


def compare_replicas(trainer: Trainer) -> bool:
    """Whether the parameters are what they should be; otherwise they have been rewound."""
    fault = _replica_fault(trainer)
    if fault is not None:
        rewind_or_stop(trainer, fault)
    return fault is None


def _replica_fault(trainer: Trainer) -> Judgement | None:
    """Why the parameters are not what they should be: not finite, or not the same on all ranks;
    those of a shard are on one rank only, and have nothing to be the same as."""
    total = torch.zeros((), dtype=torch.int64, device=trainer.device)
    is_finite = torch.ones((), dtype=torch.bool, device=trainer.device)
    for tensor in trainer.state.model_tensors().values():
        total += tensor.view(torch.int32).sum(dtype=torch.int64)
        is_finite &= tensor.sum().isfinite()
    ours = int(total).to_bytes(8, signed=True) + bytes([bool(is_finite)])
    theirs = trainer.gang.gather(ours)
    if not all(digest[-1] for digest in theirs):
        finding = Finding(fault=Fault.NON_FINITE, message="a parameter is not finite")
    elif len(set(theirs)) > 1 and not trainer.state.is_sharded:
        finding = Finding(fault=Fault.REPLICA_DIVERGENCE, message=_who_differs(theirs))
    else:
        return None
    remedy = beyond_a_skip(trainer.remedies, trainer.spec.stability)
    return Judgement(remedy=remedy, window=trainer.state.counters.window, finding=finding)


def _who_differs(digests: list[bytes]) -> str:
    """Which ranks are not as most are; of two, nobody can tell."""
    most, count = Counter(digests).most_common(1)[0]
    if 2 * count <= len(digests):
        who = f"of the {len(digests)} ranks differ"
    else:
        odd = [str(rank) for rank, digest in enumerate(digests) if digest != most]
        who = f"of rank {', '.join(odd[:8])} are not those of the others"
    return f"the parameters {who}: some device or its memory fails"


def _device_fails(trainer: Trainer, finding: Finding) -> TrainerError:
    return TrainerError(
        FailureClass.HARDWARE,
        str(finding.fault),
        f"{finding.message}; that was fault {trainer.remedies.device_faults} of a device in this "
        "attempt: test the devices and memory of its nodes",
        step=trainer.state.counters.step,
    )


def _report(
    trainer: Trainer,
    remedy: str,
    finding: Finding | None,
    *,
    step: int,
    to_step: int | None = None,
    **fields: Any,
) -> None:
    """Tell the world; a batch that is skipped again on a replay is no news."""
    if finding is not None and finding.fault is not Fault.KNOWN_BAD:
        fields["last_remedy"] = RemedyReport(
            remedy=remedy,
            fault=finding.fault,
            step=step,
            to_step=to_step,
            message=finding.message,
            time=datetime.now(UTC),
        )
    trainer.voice.say("Training", **trainer.remedies_taken, **fields)
