"""Going on where an earlier attempt stopped: a checkpoint and the journal, and nothing else.

Promise: all ranks load the one checkpoint that the lead chose, and that is intact for each of them
where each reads a part, or none; the report says which, how long it took, and how many steps are
done again. A rewind is this too: once it is in the journal, what is newer than its target is passed
over.
Trap avoided: ranks that look for the newest checkpoint each for themselves may find different ones.
"""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from lmtraining_api import CheckpointReport
from lmtraining_trainer.budgets import Budgets
from lmtraining_trainer.checkpoint import (
    Chosen,
    Contents,
    accept,
    choose,
    needed_parts,
    part_fault,
    passed_over,
    reject,
    restore_state,
    tidy,
)
from lmtraining_trainer.guard import Remedies
from lmtraining_trainer.run import Run, layout
from lmtraining_trainer.run.directory import storage_errors
from lmtraining_trainer.saving import Saver
from lmtraining_trainer.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where this attempt goes on."""

    step: int
    """The step of the loaded checkpoint; 0 at the very beginning."""
    highest_step: int
    """The furthest that an earlier attempt came, as far as is known."""
    remedies: Remedies
    """What the journal says was done about bad steps."""
    budgets: Budgets
    """What the journal says of the budget."""

    def replayed(self, step: int) -> int:
        """How many of the steps up to `step` an earlier attempt had done and this one did again."""
        return max(0, min(step, self.highest_step) - self.step)


def resume(state: TrainState, saver: Saver, *, seed: int, total_steps: int) -> Resumed:
    """Load the newest intact checkpoint into `state`, where there is one, and replay the journal;
    `total_steps` is the budget where that tells of no other.

    Raises TrainerError(CONFIGURATION) where it is of another model.
    """
    gang, voice, run = saver.gang, saver.voice, saver.run
    started = time.perf_counter()
    voice.say("Loading")
    contents: Contents = {}
    chosen = _chosen(state, saver, contents)
    found = gang.lead_does(
        "go on from a checkpoint",
        lambda: _found(run, saver, state, chosen, total_steps) if run else {},
    )
    if chosen is not None:
        with storage_errors(Path(chosen.directory)):
            restore_state(
                state,
                chosen,
                rank=gang.rank,
                world_size=gang.world_size,
                seed=seed,
                alive=voice.alive,
                contents=contents,
                mirror=saver.mirror,
            )
        voice.accounts.loaded(state.counters.trained_seconds)
        saver.saved_step = gang.step = chosen.step
        saver.unproven = set(found["unproven"])
        if chosen.step == 0:
            saver.mark_healthy({0})
        saver.poll(state)  # a stop or a crash may have come right before
        saver.settle()
        fields = _report_fields(chosen, state, time.perf_counter() - started)
        voice.say("Loading", passed_over=found["passed_over"], **fields)
    remedies = Remedies.of_json(found["remedies"])
    for position in state.counters.skipped_positions:  # the journal may have been on a full disk
        remedies = remedies.with_skip(position, step=state.counters.step)
    changes = tuple((int(step), int(steps)) for step, steps in found["changes"])
    return Resumed(
        step=state.counters.step,
        highest_step=found["highest_step"],
        remedies=remedies,
        budgets=Budgets(first=found["first"], changes=changes),
    )


def _chosen(state: TrainState, saver: Saver, contents: Contents) -> Chosen | None:
    """The newest checkpoint that is intact for every rank, its bytes in `contents` where this rank
    has verified it; None where there is none. Raises TrainerError."""
    gang, voice, run = saver.gang, saver.voice, saver.run
    of_parts = partial(
        needed_parts, rank=gang.rank, world_size=gang.world_size, is_sharded=state.is_sharded
    )

    def choose_on_lead() -> dict[str, Any] | None:
        if run is None:
            return None
        with storage_errors(run.directory):
            found = choose(run, saver.identity, voice.alive, contents, of_parts=of_parts)
        return None if found is None else found.json()

    while (found := gang.lead_does("choose a checkpoint", choose_on_lead)) is not None:
        chosen = Chosen(**found)
        if chosen.layout == layout.WHOLE:
            return chosen
        why = ""
        if not gang.is_lead:
            with storage_errors(Path(chosen.directory)):
                why = part_fault(chosen, voice.alive, contents, of_parts=of_parts)
        said = map(json.loads, gang.gather(json.dumps(why).encode()))
        faults = [each for each in said if each]
        if not faults:
            return chosen
        contents.clear()  # the next one may be whole, and this rank has verified nothing of it
        gang.lead_does("pass over a checkpoint", partial(_pass_over, run, chosen, faults[0]))
    return None


def _pass_over(run: Run | None, chosen: Chosen, why: str) -> None:
    """On the lead."""
    if run is not None:
        with storage_errors(run.directory):
            reject(run, Path(chosen.directory), why)


def _found(
    run: Run, saver: Saver, state: TrainState, chosen: Chosen | None, total_steps: int
) -> dict[str, Any]:
    """On the lead, which goes on from `chosen`: what the journal and the progress mark know."""
    with storage_errors(run.directory):
        broken = passed_over(run)
        if chosen is not None:
            accept(run, chosen)
            _journal_loaded(run, chosen, saver.gang.world_size, state)
        tidy(run, saver.keep)
    intact = filter(layout.is_marked_intact, layout.newest_first(run.checkpoints))
    budgets = Budgets.of_journal(run.journal.entries, first=total_steps)
    return {
        "passed_over": broken,
        "highest_step": max(run.mark.highest, *(entry.step for entry in run.journal.entries)),
        "unproven": [layout.step_of(path) for path in intact if not layout.is_marked_healthy(path)],
        "remedies": Remedies.of_journal(run.journal.entries).json(),
        "first": budgets.first,
        "changes": budgets.changes,
    }


def _journal_loaded(run: Run, chosen: Chosen, world_size: int, state: TrainState) -> None:
    other = chosen.other_optimizer
    anew = {"optimizer": f"begun anew after {other}"} if other else {}
    run.journal.append(
        "Loaded",
        chosen.step,
        path=Path(chosen.directory).name,
        world_size_then=chosen.world_size,
        world_size=world_size,
        layout_then=chosen.layout,
        layout=layout.SHARDED if state.is_sharded else layout.WHOLE,
        generators="restored" if chosen.world_size == world_size else "derived",
        **anew,
    )


def _report_fields(chosen: Chosen, state: TrainState, seconds: float) -> dict[str, Any]:
    return {
        "resumed_from_step": chosen.step,
        "load_seconds": seconds,
        "step": state.counters.step,
        "tokens": state.counters.tokens,
        "loss": state.counters.loss,
        "validation_loss": state.counters.validation_loss,
        "validation_step": state.counters.validation_step,
        "validation_accuracy": state.counters.validation_accuracy,
        "validation_f1": state.counters.validation_f1,
        "checkpoint": CheckpointReport(
            step=chosen.step,
            path="/".join(Path(chosen.directory).parts[-2:]),
            time=datetime.fromisoformat(chosen.time).astimezone(UTC),
            size_bytes=chosen.size_bytes,
            sha256=chosen.manifest_sha256,
        ),
    }
