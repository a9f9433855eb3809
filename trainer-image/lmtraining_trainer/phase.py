"""What a rank is doing now, written where its supervisor can always read it.

Promise: entering a phase costs about a microsecond and no system call, so each is a sign of life.
The supervisor knows of every rank of its pod the phase, the last sign of life, and the longest time
without one in each phase, also of a rank that is stopped or can run no Python any more: the file is
mapped into both, and CLOCK_MONOTONIC is the same for all processes of a machine.
Trap avoided: a mapped file that shrinks kills its reader, so the supervisor makes it whole before
the rank starts. And a reader may come between two writes: the time is written before the phase and
read after it, so a mixture is younger than the truth, and no rank is thought silent for it.
"""

import mmap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lmtraining_api import State


class Phase(StrEnum):
    """The parts of a rank's life that have limits of their own."""

    STARTUP = "startup"
    LOAD = "load"
    DATA = "data"
    FORWARD = "forward"
    """And backward, in which ranks also wait for each other's gradients."""
    COLLECTIVE = "collective"
    OPTIMIZER = "optimizer"
    SAVE = "save"
    EVAL = "eval"
    OTHER = "other"
    """Between the others: the verdict, the report."""


#: The phase that a state begins with.
PHASE_OF_STATE: dict[State, Phase] = {
    "Starting": Phase.STARTUP,
    "Preparing": Phase.STARTUP,
    "Loading": Phase.LOAD,
    "Training": Phase.OTHER,
    "Evaluating": Phase.EVAL,
    "Checkpointing": Phase.SAVE,
    "Stopping": Phase.SAVE,
    "Exporting": Phase.SAVE,
    "Finished": Phase.OTHER,
}

_PHASES = tuple(Phase)
_NUMBERS = {phase: number for number, phase in enumerate(_PHASES)}
#: Where in the file, in words of 8 bytes: a torn word is never seen.
_AT, _PHASE, _LONGEST = 0, 1, 2
_WORDS = _LONGEST + len(_PHASES)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The newest sign of life of a rank."""

    phase: Phase
    at: float
    """Monotonic seconds."""
    longest: Mapping[Phase, float]
    """The longest time without one so far, in seconds; 0 where the phase is not known yet."""


class PhaseReader:
    """The supervisor's side."""

    def __init__(self, path: Path, *, now: float) -> None:
        """Makes the file; a rank that never writes has given its last sign `now`."""
        path.unlink(missing_ok=True)  # a rank of an earlier round may have it mapped
        path.write_bytes(bytes(8 * _WORDS))
        self._words = _mapped(path)
        self._words[_AT] = now

    def sign(self) -> Sign:
        """As of now."""
        words = self._words
        phase = _PHASES[int(words[_PHASE])]
        longest = dict(zip(_PHASES, words[_LONGEST:], strict=True))
        return Sign(phase=phase, longest=longest, at=words[_AT])


class PhaseWriter:
    """The rank's side."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._words = _mapped(path)
        self._monotonic = monotonic
        self._at = self._words[_AT]
        self._place = _LONGEST
        self._trains = False

    def enter(self, phase: Phase) -> None:
        """From now on the rank does this."""
        self.alive()
        if phase is Phase.OTHER and not self._trains:
            self._trains = True
            self._forget()
        number = _NUMBERS[phase]
        self._words[_PHASE] = number
        self._place = _LONGEST + number

    def alive(self) -> None:
        """A sign of life in the midst of a phase."""
        words, now = self._words, self._monotonic()
        words[_AT] = now
        words[self._place] = max(words[self._place], now - self._at)
        self._at = now

    def _forget(self) -> None:
        """How long the parts of a start took says nothing about the steps."""
        for place in range(_LONGEST, _WORDS):
            self._words[place] = 0.0


def _mapped(path: Path) -> "memoryview[float]":
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * _WORDS)).cast("d")
