"""Saving, as the loop sees it.

Promise: storage that is full or gone costs checkpoints, not the training: the error is reported and
the next save tries again. Only a stop needs its checkpoint, and fails without.
Trap avoided: the ranks that do not write wait for the one that does on the store, alive, instead of
in a collective that a slow disk would break.
"""

from dataclasses import dataclass, field
from typing import Any

from lmtraining_api import FailureClass, State
from lmtraining_api.job import Checkpoint
from lmtraining_trainer import rng
from lmtraining_trainer.checkpoint import Snapshot, layout, tidy, write_checkpoint
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import json_bytes
from lmtraining_trainer.gang import Gang
from lmtraining_trainer.run import Mirror, Run
from lmtraining_trainer.run.remote import advice_for
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.voice import Voice


@dataclass
class Saver:
    """Saves the state of all ranks; the lead writes."""

    gang: Gang
    voice: Voice
    run: Run | None
    """The run directory, on the lead."""
    identity: dict[str, Any]
    """Model, tokenizer and world size, for the manifest."""
    keep: Checkpoint
    """Which checkpoints stay."""
    healthy_steps: int
    """Good steps that must follow a checkpoint before it counts as healthy."""
    mirror: Mirror | None = None
    """Where the run lives, if not on a volume; on every rank."""
    saved_step: int | None = None
    """The step of the newest checkpoint."""
    unproven: set[int] = field(default_factory=set)
    """Steps of the checkpoints that are intact and not yet healthy, on the lead."""

    def save(self, why: State, trained: TrainState) -> None:
        """Save after a finished step, unless it is saved already.

        Raises TrainerError("Fenced") and, where `why` is Stopping, TrainerError(STORAGE).
        """
        step = trained.counters.step
        if self.saved_step == step:
            return
        self.voice.say(why)
        generators = self.gang.gather(rng.capture())
        error = self.gang.lead_does(
            f"save step {step}", lambda: self._write(self._snapshot(trained, generators))
        )
        if error and why == "Stopping":
            raise TrainerError(
                FailureClass.STORAGE, "CheckpointFailed", f"stopped, but {error}", step=step
            )
        if error:
            return
        self.saved_step = step
        self.unproven.add(step)
        if step == 0:  # nothing can be wrong with weights that nothing has changed
            self.mark_healthy({0})

    def promote(self, trained: TrainState) -> None:
        """Mark the checkpoints healthy that enough good steps have followed."""
        if trained.counters.window.good_steps >= self.healthy_steps:
            latest = trained.counters.step - self.healthy_steps
            self.mark_healthy({step for step in self.unproven if step <= latest})

    def mark_healthy(self, steps: set[int]) -> None:
        """Say of these checkpoints that training goes on well from them; on the lead. Storage that
        fails costs the mark and nothing else."""
        self.unproven -= steps
        if self.run is None or not steps:
            return
        try:
            for step in sorted(steps):
                directory = self.run.checkpoints / layout.directory_name(step)
                if layout.is_marked_intact(directory):
                    self.run.fence.check()
                    layout.mark_healthy(directory)
                    self.run.keep(directory / layout.HEALTHY)
        except OSError as error:
            self.voice.say(
                "Training", checkpoint_error=_sentence("the healthy mark", max(steps), error)
            )
            return
        self.voice.say("Training", healthy_step=max(steps))

    def note(self, kind: str, step: int, **detail: str | float | None) -> None:
        """Journal a remedy before the run goes on. A full disk is no reason to stop: the batch
        would
        be found bad again."""
        if self.run is None:
            return
        try:
            self.run.journal.append(kind, step, **detail)
        except OSError as error:
            self.voice.say("Training", checkpoint_error=_sentence("the journal", step, error))

    def _snapshot(self, trained: TrainState, generators: list[bytes]) -> Snapshot:
        documents = {layout.rng_name(rank): state for rank, state in enumerate(generators)}
        documents[layout.COUNTERS] = json_bytes(trained.counters.json())
        return Snapshot(
            step=trained.counters.step,
            tensors={
                layout.MODEL: trained.model_tensors(),
                layout.OPTIMIZER: trained.optimizer_tensors(),
            },
            documents=documents,
            identity=self.identity | {"validation_loss": trained.counters.validated_loss},
        )

    def _write(self, snapshot: Snapshot) -> str:
        """On the lead: write and tidy up. The error as a sentence, empty when there was none."""
        if self.run is None:
            return ""
        try:
            report = write_checkpoint(self.run, snapshot, self.voice.alive)
        except OSError as error:
            sentence = _sentence("checkpoint", snapshot.step, error)
            self.voice.say("Training", checkpoint_error=sentence)
            return sentence
        self.voice.say("Training", checkpoint=report, checkpoint_error=self._tidied())
        return ""

    def _tidied(self) -> str:
        """Tidy up; what went wrong as a sentence. The checkpoint is intact all the same."""
        if self.run is None:
            return ""
        try:
            tidy(self.run, self.keep)
        except OSError as error:
            return (
                f"older checkpoints in {self.run.checkpoints} could not be deleted "
                f"({error.strerror or type(error).__name__}): "
                + advice_for(error, "delete them, or make it writable")
            )
        return ""


def _sentence(what: str, step: int, error: OSError) -> str:
    return (
        f"{what} of step {step} could not be written ({error.strerror or type(error).__name__}): "
        + advice_for(error, "free space in the storage of checkpoint.storage, or make it writable")
    )
