"""Saving, as the loop sees it.

Promise: the training pays for a copy of its state, and no more: the lead's writer, or that of each
rank where each holds a part of the state, does the rest beside it, and is waited for only where the
run cannot go on without (at the very first step and the last, before a stop and before a rewind)
and before a checkpoint that is to stay for ever. Storage that is slow, full, gone or hangs costs
checkpoints, not the training: the report says which and why, and the next save tries again. Only a
stop needs its checkpoint, and fails without. Storage that hangs while the run cannot go on is a
hang of the lead where it alone writes. Where each rank does, all give that save up: the run goes on
without it at the first step and ends without it at the last, and a rewind fails.
Trap avoided: the ranks that do not write wait for the one that does on the store, alive, instead of
in a collective that a slow disk would break; and all they must agree on is the step and its due
date, never what the writer is doing. Where each has a writer, they agree besides that all are free:
a save that one rank begins and another leaves out would never end.
"""

import errno
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from lmtraining_api import FailureClass, State
from lmtraining_api.job import Checkpoint
from lmtraining_trainer import rng
from lmtraining_trainer.checkpoint import Save, Snapshot, Staging, Writer
from lmtraining_trainer.checkpoint.together import SILENCE_SECONDS_MAX
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import json_bytes, nothing
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.heartbeat import HEARTBEAT_SECONDS
from lmtraining_trainer.run import Mirror, Run, layout
from lmtraining_trainer.run.remote import advice_for
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.voice import Voice

HANGING_SECONDS = 30.0
"""Storage that takes longer for one small piece of work is said to hang, and is not waited for by a
run that was told to stop: recovery.graceSeconds is 60 unless it is set."""
GIVE_UP_SECONDS = SILENCE_SECONDS_MAX + 30.0
"""Where each rank has a writer, one that takes longer is waited for by none of them, whatever they
wait for: they show each other that they live, and so nobody else would find that they hang. The
limits in their order: it hangs (HANGING_SECONDS), the writers of the other ranks end that save and
say whose part is missing (SILENCE_SECONDS_MAX), all go on."""
GIVEN_SECONDS = 2.0
"""So long the training waits, once, for a save that is still being written when the next is due."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass
class Saver:
    """Saves the state of all ranks; the lead writes, or each its part."""

    gang: Gang
    voice: Voice
    run: Run | None
    """The run directory, on the lead."""
    writer: Writer | None
    """On the lead, and on every rank where the state is sharded."""
    identity: dict[str, Any]
    """Model, tokenizer and world size, for the manifest."""
    keep: Checkpoint
    """Which checkpoints stay."""
    each_writes: bool = False
    """Whether every rank writes its part, or the lead all."""
    mirror: Mirror | None = None
    """Where the run lives, if not on a volume; on every rank."""
    saved_step: int | None = None
    """The step of the newest checkpoint, where there is a writer."""
    unproven: set[int] = field(default_factory=set)
    """Steps of the checkpoints that are intact and not yet healthy, on the lead."""
    staging: Staging = field(default_factory=Staging)
    _told_hanging: int | None = None
    """The step of the save that was said to hang."""
    _given_time: int | None = None
    """The step of the save that another one waited for."""
    _left_out_step: int = -1
    """The newest step that was due and left out."""

    def save(self, trained: TrainState) -> None:
        """Begin to save after a finished step, and train on; left out where the writer is still at
        the one before and does not soon come to its end. Where it is to stay for ever, that end is
        waited for as long as storage answers. Raises TrainerError("Fenced")."""
        self.voice.say("Checkpointing")
        if self._stays_for_ever(trained.counters.step):
            self._await_free()
        if self.each_writes and self.writer is not None:
            self._save_part(self.writer, trained)
            self.voice.say("Training")
            return
        generators = self.gang.gather(rng.capture())
        if self.writer is not None:
            self._give_time(self.writer)
            self._take_up(self.writer)
            if self.writer.save is None:
                self._begin(self.writer, trained, dict(enumerate(generators)), beside=True)
            else:
                save = self.writer.save
                self._leave_out(trained.counters.step, save.step, save.seconds)
        self.voice.say("Training")

    def save_now(self, why: State, trained: TrainState) -> None:
        """Save after a finished step, unless it is saved already, and wait until it is done.

        Raises TrainerError("Fenced") and, where `why` is Stopping, TrainerError(STORAGE).
        """
        step = trained.counters.step
        self.voice.say(why)
        patience = HANGING_SECONDS if why == "Stopping" else math.inf
        if self.each_writes and self.writer is not None:
            error = self._save_part_now(self.writer, trained, patience)
        else:
            generators = self.gang.gather(rng.capture())
            error = self.gang.lead_does(
                f"save step {step}", lambda: self._save_now(trained, generators, patience)
            )
        if error and why == "Stopping":
            raise TrainerError(
                FailureClass.STORAGE, "CheckpointFailed", f"stopped, but {error}", step=step
            )
        if why == "Checkpointing":
            self.voice.say("Training")

    def poll(self, trained: TrainState) -> None:
        """Say what the writer has found since, and let it mark the checkpoints healthy that enough
        good steps have followed. Raises TrainerError("Fenced")."""
        if self.writer is None:
            return
        self._take_up(self.writer)
        save = self.writer.save
        if save and save.silent_seconds > HANGING_SECONDS:
            self._tell_hanging(save)
        proven = trained.counters.proven_step
        self._begin_mark(self.writer, {step for step in self.unproven if step <= proven})

    @property
    def is_idle(self) -> bool:
        """Whether a save could begin now; on the lead."""
        return self.writer is None or self.writer.save is None

    def settle(self, silence_seconds: float = math.inf) -> str:
        """Where there is a writer: wait until it has nothing left to do. What was wrong with the
        save that it was at, or is since it hangs for so long, as a sentence; else empty."""
        if self.writer is None:
            return ""
        if self.writer.await_all(self.voice.alive, silence_seconds=silence_seconds):
            return self._take_up(self.writer)
        return self._hanging(self.writer.save)

    def settle_all(self, silence_seconds: float = math.inf) -> str:
        """The same where each rank has a writer, on all of them at once, and for GIVE_UP_SECONDS at
        most. They look at each other again and again, so that one that dies meanwhile is
        noticed."""
        if not self.each_writes or self.writer is None:
            return self.settle(silence_seconds)
        error, silence_seconds_max = "", min(silence_seconds, GIVE_UP_SECONDS)
        while True:
            self.writer.give_time(HEARTBEAT_SECONDS)
            error = self._take_up(self.writer) or error
            save = self.writer.save
            said = [None if save is None else save.silent_seconds, error]
            ranks = [json.loads(each) for each in self.gang.gather(json.dumps(said).encode())]
            silent_seconds = max((one for one, _ in ranks if one is not None), default=None)
            if silent_seconds is None:
                self.settle()  # what is left are marks
                return str(ranks[0][1])
            if silent_seconds > silence_seconds_max:
                self._tell_hanging(save)
                return str(ranks[0][1]) or self._hanging(save)
            if silent_seconds < HANGING_SECONDS:
                self.voice.alive()

    def settle_to_rewind(self, step: int) -> None:
        """The same before a rewind, which abandons what was saved since: a writer that is still at
        it could publish it afterwards. Raises TrainerError(STORAGE) on every rank."""
        error = self.settle_all()
        if self.each_writes and self.writer is not None:
            busy, _ = self._agreed(self.writer)
            if busy is not None:
                error = error or self._hanging(self.writer.save)
                raise TrainerError(
                    FailureClass.STORAGE, "CheckpointFailed", f"cannot rewind: {error}", step=step
                )

    def mark_healthy(self, steps: set[int]) -> None:
        """Say of these checkpoints that training goes on well from them; on the lead, at once."""
        if self.writer is not None:
            self._begin_mark(self.writer, steps)
            self.settle()

    def note(self, kind: str, step: int, **detail: str | float | None) -> None:
        """Journal a remedy before the run goes on. A full disk is no reason to stop: the batch
        would be found bad again."""
        if self.run is None:
            return
        try:
            self.run.journal.append(kind, step, **detail)
        except OSError as error:
            self._tell(_sentence("the journal", step, error), error)

    def _give_time(self, writer: Writer) -> None:
        """To the save before, once: where the storage keeps up, which checkpoints there are, and
        so where a rewind goes, shall not depend on who got the core."""
        if writer.save is not None and writer.save.step != self._given_time:
            self._given_time = writer.save.step
            writer.give_time(GIVEN_SECONDS)

    def _stays_for_ever(self, step: int) -> bool:
        every_steps = self.keep.keep_every_steps
        return every_steps is not None and step % every_steps == 0

    def _await_free(self) -> None:
        """On every rank: until the save before has ended, or hangs."""
        if self.each_writes:
            self.settle_all(HANGING_SECONDS)
        else:
            self.gang.lead_does("the save before", lambda: self.settle(HANGING_SECONDS))

    def _save_part(self, writer: Writer, trained: TrainState) -> None:
        """On every rank: begin where all are free, or leave it out."""
        self._give_time(writer)
        self._take_up(writer)
        busy, _ = self._agreed(writer)
        if busy is None:
            self._begin(writer, trained, self._own_generators(), beside=True)
        else:
            self._leave_out(trained.counters.step, *busy)

    def _save_part_now(self, writer: Writer, trained: TrainState, patience: float) -> str:
        """On every rank: what went wrong as a sentence, empty when nothing did."""
        error, step = self.settle_all(patience), trained.counters.step
        busy, saved_step = self._agreed(writer)
        if busy is None and saved_step != step:
            self._begin(writer, trained, self._own_generators(), beside=False)
            error = self.settle_all(patience)
            busy, saved_step = self._agreed(writer)
        if saved_step != step:
            return error or self._hanging(writer.save)
        if step == 0:
            self.mark_healthy({0})
        return ""

    def _agreed(self, writer: Writer) -> tuple[tuple[int, float] | None, int | None]:
        """The save that the writer of some rank is still at, its step and how long it has taken;
        and the step of the newest checkpoint, as the lead knows it."""
        save = writer.save
        busy = None if save is None else (save.step, save.seconds)
        said = self.gang.gather(json.dumps([busy, self.saved_step]).encode())
        ranks = [json.loads(each) for each in said]
        at = next((tuple(save) for save, _ in ranks if save is not None), None)
        return at, ranks[0][1]

    def _own_generators(self) -> dict[int, bytes]:
        return {self.gang.rank: rng.capture()}

    def _save_now(self, trained: TrainState, generators: list[bytes], patience: float) -> str:
        """On the lead: what went wrong as a sentence, empty when nothing did."""
        if self.writer is None:
            return ""
        error, step = self.settle(patience), trained.counters.step
        if self.writer.save is None and self.saved_step != step:
            self._begin(self.writer, trained, dict(enumerate(generators)), beside=False)
            error = self.settle(patience)
        if self.saved_step != step:
            return error
        if step == 0:  # nothing can be wrong with weights that nothing has changed
            self.mark_healthy({0})
        return ""

    def _begin(
        self, writer: Writer, trained: TrainState, generators: dict[int, bytes], *, beside: bool
    ) -> None:
        """Hand the state to the writer, with the generators of some ranks: a copy, where the
        training goes on `beside`."""
        documents = {layout.rng_name(rank): state for rank, state in generators.items()}
        if self.gang.is_lead:
            documents[layout.COUNTERS] = json_bytes(trained.counters.json())
        model, optimizer = layout.MODEL, layout.OPTIMIZER
        cuts = dict(zip((model, optimizer), trained.cuts(), strict=True))
        if self.each_writes:
            model, optimizer = (layout.part_name(f, self.gang.rank) for f in (model, optimizer))
        live = {model: trained.model_tensors(), optimizer: trained.optimizer_tensors()}
        writer.begin(
            Snapshot(
                step=trained.counters.step,
                tensors=self.staging.stage(live) if beside else live,
                await_copied=self.staging.await_copied if beside else nothing,
                documents=documents,
                identity=self.identity | {"validation_loss": trained.counters.validated_loss},
                cuts=cuts if self.each_writes else None,
            )
        )

    def _begin_mark(self, writer: Writer, steps: set[int]) -> None:
        self.unproven -= steps
        if steps:
            writer.mark(lambda: self._mark(steps))

    def _mark(self, steps: set[int]) -> dict[str, Any]:
        """In the writer's thread: what to say of it. Storage that fails costs the mark and nothing
        else."""
        if self.run is None:
            return {}
        try:
            for step in sorted(steps):
                directory = self.run.checkpoints / layout.directory_name(step)
                if layout.is_marked_intact(directory):
                    self.run.fence.check()
                    layout.mark_healthy(directory)
                    self.run.keep(directory / layout.HEALTHY)
        except OSError as error:
            return _trouble(_sentence("the healthy mark", max(steps), error), error)
        return {"healthy_step": max(steps)}

    def _take_up(self, writer: Writer) -> str:
        """Say what the writer has found; what was wrong with the save as a sentence, else empty.
        Raises TrainerError("Fenced")."""
        while (marked := writer.marked()) is not None:
            self.voice.add(**marked.result())
        save = writer.ended()
        if save is None:
            return ""
        try:
            written = save.written.result()
        except OSError as error:
            sentence = _sentence("checkpoint", save.step, error)
            self._tell(sentence, error)
            return sentence
        self.saved_step = save.step
        self.unproven.add(save.step)
        if written.report is not None:
            self.voice.add(checkpoint=written.report)
        if save.step > self._left_out_step:
            self._tell(_tidy_sentence(written.tidy_error))
        return ""

    def _leave_out(self, step: int, before: int, seconds: float) -> None:
        """As that of step `before` has been written for so long."""
        self._left_out_step = step
        self._tell(
            f"the checkpoint of step {step} was left out, as that of step {before} has been "
            f"written for {seconds:.0f} s: raise checkpoint.everySteps or "
            "checkpoint.writerShare, or use faster storage in checkpoint.storage"
        )

    def _tell_hanging(self, save: Save | None) -> None:
        """Once of each save."""
        if save is not None and save.step != self._told_hanging:
            self._told_hanging = save.step
            self._tell(self._hanging(save))

    def _hanging(self, save: Save | None) -> str:
        if save is None:
            return "the storage of checkpoint.storage does not answer: look at that volume"
        since = datetime.now(UTC) - timedelta(seconds=save.silent_seconds)
        stands = "" if self.saved_step is None else f"; that of step {self.saved_step} stands"
        return (
            f"the storage of checkpoint.storage has not answered since {since:%Y-%m-%dT%H:%M:%SZ}, "
            f"in the midst of the checkpoint of step {save.step}: look at that volume{stands}"
        )

    def _tell(self, sentence: str, error: OSError | None = None) -> None:
        self.voice.add(**_trouble(sentence, error))


def _trouble(sentence: str, error: OSError | None) -> dict[str, Any]:
    is_full = error is not None and error.errno in _FULL
    return {"checkpoint_error": sentence, "storage_is_full": is_full}


def _tidy_sentence(error: OSError | None) -> str:
    if error is None:
        return ""
    return (
        "older checkpoints in the storage of checkpoint.storage could not be deleted "
        f"({error.strerror or type(error).__name__}): "
        + advice_for(error, "delete them, or make it writable")
    )


def _sentence(what: str, step: int, error: OSError) -> str:
    return (
        f"{what} of step {step} could not be written ({error.strerror or type(error).__name__}): "
        + advice_for(error, "free space in the storage of checkpoint.storage, or make it writable")
    )
