"""What a person has changed or asked for while the job runs, followed by all ranks together.

Promise: the lead hears of it and decides, all ranks do it after the same step, and the report says
what became of it. A longer budget, and a way back, are in the journal before they are followed, so
that a resume finds the same run (P7, P3). A request is followed once under its name.
Trap avoided: ranks that each read a wish for themselves read it at different steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtraining_api import RemedyReport, RollbackWish
from lmtraining_trainer.checkpoint import fault_of_either
from lmtraining_trainer.guard import Fault, Remedy
from lmtraining_trainer.interval import SaveClock
from lmtraining_trainer.remedy import compare_replicas, load_rewound
from lmtraining_trainer.requests import CHECKPOINT, ROLLBACK, with_changes
from lmtraining_trainer.run import Run, layout
from lmtraining_trainer.run.directory import storage_errors
from lmtraining_trainer.trainer import Trainer

STEPS_NAMED_MAX = 12
"""Of the checkpoints that a refusal names."""


@dataclass(frozen=True, kw_only=True)
class _Orders:
    """What all ranks are to do, as the lead has decided."""

    budget_steps: int
    every_steps: int | None
    saves: bool
    rolls_back: bool


def follow(trainer: Trainer) -> None:
    """Do what is wanted and not yet done. Raises TrainerError where a rollback cannot be loaded."""
    told = trainer.gang.lead_does("read what is wanted", lambda: _decided(trainer))
    if told is None:
        return
    orders = _Orders(**told)
    trainer.budgets = (
        trainer.budgets.with_change(trainer.state.counters.step, orders.budget_steps)
        if orders.budget_steps > trainer.total_steps
        else trainer.budgets
    )
    trainer.spec = with_changes(
        trainer.spec, budget_steps=orders.budget_steps, every_steps=orders.every_steps
    )
    _set_clock(trainer)
    if orders.saves and not _saved(trainer):
        trainer.following = trainer.following.later()
        return
    if orders.rolls_back:
        _roll_back(trainer)
    trainer.following = trainer.following.followed()
    lead_only = {"applied": trainer.following.applied} if trainer.gang.is_lead else {}
    trainer.voice.say("Training", total_steps=trainer.total_steps, **lead_only)


def _decided(trainer: Trainer) -> dict[str, Any] | None:
    """On the lead: what is to be done, with a longer budget in the journal; None for nothing."""
    wishes, run, following = trainer.voice.wishes(), trainer.run, trainer.following
    if wishes is None or run is None or not following.is_news(wishes):
        return None
    steps = max(wishes.budget_steps, trainer.total_steps)
    if steps > trainer.total_steps:
        try:
            run.journal.append(
                "Asked",
                trainer.state.counters.step,
                budget_steps=steps,
                from_steps=trainer.total_steps,
            )
        except OSError:
            trainer.following = following.reading(
                wishes
            ).later()  # what the storage says, a save tells
            return None
    trainer.following = following.reading(wishes)
    rollback = wishes.rollback
    return {
        "budget_steps": steps,
        "every_steps": wishes.checkpoint_every_steps,
        "saves": wishes.checkpoint != ""
        and not following.is_answered(CHECKPOINT, wishes.checkpoint),
        "rolls_back": rollback is not None and not following.is_answered(ROLLBACK, rollback.name),
    }


def _set_clock(trainer: Trainer) -> None:
    """On the lead: the interval is chosen where the job leaves it open."""
    run = trainer.run
    if trainer.spec.checkpoint.every_steps is not None or run is None:
        trainer.save_clock = None
    elif trainer.save_clock is None:
        trainer.save_clock = SaveClock(run, trainer.voice.accounts, ranks=trainer.gang.world_size)


def _saved(trainer: Trainer) -> bool:
    """Whether this step is saved now, as a request wants; on all ranks."""
    state, step = trainer.state, trainer.state.counters.step
    if not compare_replicas(trainer):
        return False
    trainer.saver.save_now("Checkpointing", state)
    if trainer.save_clock is not None:
        trainer.save_clock.restart()

    def note() -> bool:
        following = trainer.following
        if trainer.saver.saved_step != step or following.read is None:
            return False
        name = following.read.checkpoint
        trainer.saver.note("Asked", step, request=name, checkpoint=1)
        trainer.following = following.saying(checkpoint=name, checkpoint_step=step)
        return True

    return bool(trainer.gang.lead_does("a checkpoint that was asked for", note))


def _roll_back(trainer: Trainer) -> None:
    """Go back to the checkpoint that is asked for, where there is one."""
    from_step = trainer.state.counters.step
    trainer.state.optimizer.zero_grad(set_to_none=True)
    trainer.voice.say("Loading")
    trainer.saver.settle_to_rewind(from_step)
    refusal = trainer.gang.lead_does("journal a rollback", lambda: _journal_rollback(trainer))
    if refusal:
        trainer.voice.say("Training")
        return
    load_rewound(trainer)
    step = trainer.state.counters.step
    following = trainer.following
    wish = following.read.rollback if following.read else None
    name = wish.name if wish else ""
    trainer.following = following.saying(rollback=name, rollback_step=step, refusal="")
    done = RemedyReport(
        remedy=Remedy.REWIND,
        fault=Fault.REQUESTED,
        step=from_step,
        to_step=step,
        message=f"requests.rollback {name} asked for it",
        time=datetime.now(UTC),
    )
    trainer.voice.say("Training", **trainer.remedies_taken, last_remedy=done)


def _journal_rollback(trainer: Trainer) -> str:
    """On the lead: write it down, or why not, and give that back."""
    run, following, step = trainer.run, trainer.following, trainer.state.counters.step
    wish = following.read.rollback if following.read else None
    if run is None or wish is None:
        return "nobody asks for it any more"
    trainer.saver.settle()
    with storage_errors(run.directory):
        refusal = _refusal(run, wish, trainer.voice.alive)
        if refusal:
            trainer.saver.note("Asked", step, request=wish.name, refusal=refusal)
            trainer.following = following.saying(
                rollback=wish.name, rollback_step=None, refusal=refusal
            )
            return refusal
        position, remedies = trainer.state.counters.position, trainer.remedies
        run.journal.append(
            "Rewound",
            step,
            request=wish.name,
            to_step=wish.to_step,
            from_position=position,
            to_position=position,
            rate_scale=remedies.rate_scale,
            rewarm_steps=remedies.rewarm_steps,
            fault=Fault.REQUESTED,
            message="asked for",
        )
    return ""


def _refusal(run: Run, wish: RollbackWish, alive: Callable[[], None]) -> str:
    """Why there is nothing to go back to, with the steps that there are; empty where there is. What
    is newer than the target is given up, so the target is read once more before that (P8)."""
    found = filter(layout.is_marked_intact, layout.newest_first(run.checkpoints))
    steps = [step for step in map(layout.step_of, found) if step is not None]
    why = f"there is no intact checkpoint of step {wish.to_step} to go back to"
    if wish.to_step in steps:
        directory = run.checkpoints / layout.directory_name(wish.to_step)
        fault = _fault(run, directory, alive)
        if fault is None:
            return ""
        steps.remove(wish.to_step)
        why = f"the checkpoint of step {wish.to_step} is broken ({fault})"
    if not steps:
        return f"{why}; there is no other either: ask again, by a new name, once there is"
    named = ", ".join(map(str, steps[:STEPS_NAMED_MAX]))
    more = " and older ones" if len(steps) > STEPS_NAMED_MAX else ""
    return f"{why}: ask, by a new name, for one of {named}{more}"


def _fault(run: Run, directory: Path, alive: Callable[[], None]) -> str | None:
    """What is wrong with a checkpoint's files, those of all ranks, or None; one file at a time is
    in memory. Raises OSError."""
    manifest = layout.manifest_of(directory) or {}
    for name in manifest["files"]:
        fault = fault_of_either(run.mirror, directory, manifest, alive, contents={}, names=[name])
        if fault is not None:
            return fault
    return None
