"""The training loop, from top to bottom.

Promise: fetch, forward and backward, agree, judge, step or remedy, report, validate, save: what is
done in a step is done here, in this order, on every rank, and what they must agree on they agree on
first.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from lmtraining_api.records import SLOWEST_RANKS_MAX
from lmtraining_trainer import rng
from lmtraining_trainer.errors import Preempted
from lmtraining_trainer.evaluation import Validated, validate
from lmtraining_trainer.follow import follow
from lmtraining_trainer.freezing import drop_frozen
from lmtraining_trainer.guard import (
    Judgement,
    Observation,
    Remedy,
    clip_norm,
    judge,
    loss_rise_max,
)
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.regularise import holding, penalise, shrink
from lmtraining_trainer.remedy import (
    Judged,
    compare_replicas,
    judge_update,
    rewind_or_stop,
    skip,
    without_corruption,
)
from lmtraining_trainer.robustness import robustness
from lmtraining_trainer.sampling import SAMPLE_STEPS, probe
from lmtraining_trainer.step import Asked, Verdict, agree, forward_backward, update
from lmtraining_trainer.straggler import RankPace
from lmtraining_trainer.trainer import Computed, Trainer

REPLICA_CHECK_STEPS = 100
"""Steps between two comparisons of the ranks' parameters; each save makes one too."""


def train(trainer: Trainer) -> None:
    """Train until the budget is used up. Raises Preempted, after saving, when any rank was asked to
    stop, TrainerError(DIVERGED) when the remedies are spent, TrainerError(PEER_LOST)."""
    state = trainer.state
    if state.counters.step == 0:
        _save(trainer)  # what a rewind can always go back to
    _validate_what_is_due(trainer)
    follow(trainer)
    while _goes_on(trainer):
        judgement, verdict = _step(trainer)
        if verdict.stop:
            compare_replicas(trainer)
            trainer.saver.save_now("Stopping", state)
            raise Preempted(state.counters.step)
        if judgement.remedy is Remedy.ACCEPT:
            _after_step(trainer, wanted=verdict.save)
        if verdict.news or state.counters.step == trainer.total_steps:
            follow(trainer)
    _validate_once(trainer)
    if trainer.is_stale:
        trainer.saver.save_now("Checkpointing", state)
    trainer.saver.settle_all()
    if trainer.spec.training.evaluation.robustness is not None:
        _test_robustness(trainer, draws=trainer.spec.training.evaluation.robustness.seeds)


def _goes_on(trainer: Trainer) -> bool:
    """Whether there is a next step."""
    _validate_what_is_due(trainer)
    return trainer.state.counters.step < trainer.total_steps and not trainer.is_stale


def _step(trainer: Trainer) -> tuple[Judgement, Verdict]:
    """One batch: a step or a remedy; and what the ranks have agreed on."""
    started = time.perf_counter()
    state = trainer.state
    position = trainer.remedies.position_from(state.counters.position)
    state.counters = replace(state.counters, position=position)
    computed, trainer.ahead = trainer.ahead or _computed(trainer, position), None
    is_taken = _may_be_late(trainer)
    first = _judged_late(trainer, computed) if is_taken else _judged(trainer, computed)
    again = partial(_judged_again, trainer, computed)
    verdict, judgement = without_corruption(trainer, first, again)
    match judgement.remedy:
        case Remedy.ACCEPT:
            probed = probe(trainer, computed.batch) if _is_sampled(trainer) else None
            rate = trainer.learning_rate
            if not (is_taken and verdict is first[0]):
                _update(trainer, judgement.clip_norm, verdict.gradient_norm)
            _accept(trainer, verdict, judgement)
            trainer.speed.add(time.perf_counter() - started)
            _report_step(trainer, verdict, rate)
            if probed is not None:
                _compare_paces(trainer)
                judgement = judge_update(trainer, probed, verdict, rate)
        case Remedy.SKIP:
            skip(trainer, verdict, judgement)
        case _:
            rewind_or_stop(trainer, judgement)
    return judgement, verdict


def _computed(trainer: Trainer, position: int) -> Computed:
    """The batch that begins at `position`, with its gradients."""
    voice, started = trainer.voice, time.perf_counter()
    with voice.during(Phase.DATA), voice.accounts.during("data_wait"):
        batch = trainer.plan.batch(position)
    data_seconds = time.perf_counter() - started
    drawn_from = rng.drawn_from()
    with voice.during(Phase.FORWARD), trainer.gang.peer_errors():
        measured = forward_backward(trainer.wrapped, batch, trainer.autocast)
        every_steps = trainer.spec.training.fine_tuning.unfreeze_every_steps
        if every_steps is not None:
            measured = drop_frozen(
                trainer.state.optimizer,
                measured,
                step=trainer.state.counters.step,
                unfreeze_every_steps=every_steps,
            )
    trainer.own_work.add(data_seconds, measured.own_seconds)
    return Computed(position=position, batch=batch, drawn_from=drawn_from, measured=measured)


def _may_be_late(trainer: Trainer) -> bool:
    """Whether nothing is due at this step that needs its verdict before the next batch."""
    counters, spec = trainer.state.counters, trainer.spec
    dues = (
        SAMPLE_STEPS,
        REPLICA_CHECK_STEPS,
        spec.training.evaluation.every_steps,
        spec.checkpoint.every_steps or trainer.total_steps,
        spec.checkpoint.keep_every_steps or trainer.total_steps,
        trainer.total_steps,
    )
    is_known = counters.position in trainer.remedies.positions
    return trainer.reads_late and not is_known and all((counters.step + 1) % n for n in dues)


def _judged_late(trainer: Trainer, computed: Computed) -> Judged:
    """What all ranks do with the batch, after the device has done so and was given the next one:
    it never waits for the host."""
    counters, limits = trainer.state.counters, trainer.spec.stability
    asked = Asked(
        trainer.gang,
        computed.measured,
        stop=trainer.voice.stop_requested(),
        save=trainer.wants_save,
        news=trainer.has_news,
    )
    center, rise_max = loss_rise_max(counters.window, limits)
    clip = clip_norm(counters.window, limits, trainer.spec.training.gradient_clip_norm)
    skips = asked.skips(center=center, rise_max=rise_max)
    _update(trainer, clip, asked.gradient_norm, skips=skips)
    following = counters.position + trainer.plan.batch_sequences
    trainer.ahead = _computed(trainer, trainer.remedies.position_from(following))
    with trainer.voice.during(Phase.COLLECTIVE):
        verdict = asked.read()
    judgement = _judgement(trainer, verdict)
    if judgement.finding is not None or verdict.stop or verdict.save or verdict.news:
        _drop(trainer, trainer.ahead)
        trainer.ahead = None
    return verdict, judgement


def _drop(trainer: Trainer, computed: Computed) -> None:
    """As if the batch had not been computed."""
    rng.draw_again_from(computed.drawn_from)
    trainer.state.optimizer.zero_grad(set_to_none=True)


def _judged_again(trainer: Trainer, computed: Computed) -> Judged:
    _drop(trainer, computed)
    return _judged(trainer, _computed(trainer, computed.position))


def _is_sampled(trainer: Trainer) -> bool:
    return (trainer.state.counters.step + 1) % SAMPLE_STEPS == 0


def _after_step(trainer: Trainer, *, wanted: bool) -> None:
    """What is due at this step: compare the ranks, validate, save."""
    state, spec = trainer.state, trainer.spec
    saves = wanted or trainer.saves_now
    compares = saves or trainer.is_due(REPLICA_CHECK_STEPS)
    if compares and not compare_replicas(trainer):
        return
    if trainer.is_due(spec.training.evaluation.every_steps):
        _validate(trainer)
    if saves:
        _save(trainer)
    trainer.saver.poll(state)


def _save(trainer: Trainer) -> None:
    """Beside the training, but for the first checkpoint and the last."""
    state = trainer.state
    if state.counters.step in (0, trainer.total_steps):
        trainer.saver.save_now("Checkpointing", state)
    else:
        trainer.saver.save(state)
    if trainer.save_clock is not None:
        trainer.save_clock.restart()
        trainer.voice.say("Training", checkpoint_interval=trainer.save_clock.interval)


def _judged(trainer: Trainer, computed: Computed) -> Judged:
    """What all ranks do with the batch."""
    with trainer.voice.during(Phase.COLLECTIVE):  # a device waits here for those of the others
        verdict = agree(
            trainer.gang,
            computed.measured,
            stop=trainer.voice.stop_requested(),
            save=trainer.wants_save,
            news=trainer.has_news,
        )
    return verdict, _judgement(trainer, verdict)


def _judgement(trainer: Trainer, verdict: Verdict) -> Judgement:
    counters = trainer.state.counters
    return judge(
        counters.window,
        Observation(
            step=counters.step,
            position=counters.position,
            loss=verdict.loss,
            gradient_norm=verdict.gradient_norm,
            is_finite=verdict.is_finite,
        ),
        limits=trainer.spec.stability,
        fixed_clip_norm=trainer.spec.training.gradient_clip_norm,
        remedies=trainer.remedies,
    )


def _update(
    trainer: Trainer,
    clip: float,
    gradient_norm: float | torch.Tensor,
    *,
    skips: torch.Tensor | None = None,
) -> None:
    """Take the optimizer step."""
    state, regularisation = trainer.state, trainer.spec.training.regularisation
    with trainer.voice.during(Phase.OPTIMIZER):
        trainer.saver.staging.before_update()
        penalise(state.optimizer, regularisation.l1)
        update(
            state.model,
            state.optimizer,
            learning_rate=trainer.learning_rate,
            clip_norm=clip,
            gradient_norm=gradient_norm,
            skips=skips,
        )
        shrink(state.optimizer, regularisation.proximal_l1, skips=skips)
        if state.average is not None:
            state.average.follow(state.model, steps=state.counters.step, skips=skips)


def _accept(trainer: Trainer, verdict: Verdict, judgement: Judgement) -> None:
    """Count the step that was taken."""
    state, training = trainer.state, trainer.spec.training
    is_unusual = judgement.clip_norm < min(training.gradient_clip_norm, verdict.gradient_norm)
    state.counters = state.counters.accepted(
        tokens=training.batch_tokens,
        sequences=trainer.plan.batch_sequences,
        loss=verdict.loss,
        window=judgement.window,
        clipped=is_unusual,
        trained_seconds=trainer.voice.accounts.stepped(),
        healthy_steps=trainer.spec.stability.healthy_steps,
    )
    trainer.gang.step = state.counters.step


def _report_step(trainer: Trainer, verdict: Verdict, rate: float) -> None:
    trainer.voice.say("Training", **_step_fields(trainer, verdict, rate))
    if trainer.run is not None:
        trainer.run.mark.record(trainer.state.counters.step)


def _compare_paces(trainer: Trainer) -> None:
    """Tell which ranks are slow at what each does alone."""
    seconds, step_seconds = trainer.own_work.median_seconds, trainer.speed.step_seconds
    if trainer.gang.world_size == 1 or seconds is None or step_seconds is None:
        return  # on all ranks, which have done the same steps
    own = RankPace(seconds=seconds, step_seconds=step_seconds)
    told = trainer.gang.gather(json.dumps(asdict(own)).encode())
    paces = [RankPace(**json.loads(each)) for each in told]
    trainer.stragglers = trainer.stragglers.after(paces)
    scores = trainer.stragglers.scored(paces)
    slowest = sorted(scores, key=lambda rank: rank.score)[:SLOWEST_RANKS_MAX]
    lead_only = {"slowest_ranks": slowest} if trainer.gang.is_lead else {}
    trainer.voice.add(score=scores[trainer.gang.rank].score, **lead_only)


def _validate_what_is_due(trainer: Trainer) -> None:
    """A stop right after a step leaves its validation to whoever comes to that step again, by a
    resume, a rewind or a rollback."""
    every_steps = trainer.spec.training.evaluation.every_steps
    if trainer.state.counters.step > 0 and trainer.is_due(every_steps):
        _validate_once(trainer)


def _validate_once(trainer: Trainer) -> None:
    """Unless this step is validated already."""
    counters = trainer.state.counters
    if counters.validation_step != counters.step:
        _validate(trainer)


def _validate(trainer: Trainer) -> None:
    trainer.voice.say("Evaluating")
    counters = trainer.state.counters
    state, stopping = trainer.state, trainer.spec.training.early_stopping
    with holding(state.model, state.validated_weights):
        found = _validation(trainer)()
        gain_min = 0.0 if stopping is None else stopping.gain_min
        state.counters = counters.validated(found.loss, gain_min=gain_min, figures=found.figures)
        if state.best is not None and state.counters.best_step == counters.step:
            state.best.take(state.model)
    trainer.voice.say(
        "Training",
        validation_loss=found.loss,
        validation_step=counters.step,
        **found.figures,
    )


def _test_robustness(trainer: Trainer, *, draws: int) -> None:
    trainer.voice.say("Evaluating")
    with holding(trainer.state.model, trainer.state.exported_weights):
        trainer.robustness = robustness(
            lambda noise: _validation(trainer)(noise=noise).loss,
            seed=trainer.spec.training.seed,
            draws=draws,
            unigram_loss=trainer.plan.data.unigram_loss,
        )
    trainer.voice.say("Training", robustness=trainer.robustness)


def _validation(trainer: Trainer) -> Callable[..., Validated]:
    return partial(
        validate,
        trainer.with_loss,
        trainer.validation,
        micro_batch_sequences=trainer.plan.micro_batch_sequences,
        gang=trainer.gang,
        device=trainer.device,
        autocast=trainer.autocast,
        alive=trainer.voice.alive,
    )


def _step_fields(trainer: Trainer, verdict: Verdict, rate: float) -> dict[str, Any]:
    """What the report says after a step; only the lead's words are read, the others' are a sign of
    life."""
    counters, now = trainer.state.counters, datetime.now(UTC)
    if not trainer.gang.is_lead:
        return {"step": counters.step}
    trainer.first_step_time = trainer.first_step_time or now
    step_seconds = trainer.speed.step_seconds
    left = trainer.total_steps - counters.step
    return {
        "step": counters.step,
        "tokens": counters.tokens,
        "step_time": now,
        "loss": verdict.loss,
        "loss_is_finite": True,
        "gradient_norm": verdict.gradient_norm,
        "learning_rate": rate,
        **trainer.speed_fields(step_seconds),
        "eta_seconds": None if step_seconds is None else step_seconds * left,
        "replayed_steps": trainer.resumed.replayed(counters.step),
        "first_step_time": trainer.first_step_time,
        "clipped_steps": counters.clipped_steps,
        "is_stable": trainer.is_stable,
    }
