"""What reports and records are made of: ranks, checkpoints, time, faults and remedies.

Promise: each of them is bounded, and so is a report.
Trap avoided: a newer half may say more than its reader has room for; that is cut, since a report
that is refused says nothing at all.
"""

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field

from lmtraining_api.base import StatusModel
from lmtraining_api.exits import ReadFailureClass
from lmtraining_api.fields import (
    REASON_PATTERN,
    Message,
    ShortFrame,
    ascii_start,
    first,
    one_line,
)

HUNG_RANKS_MAX = 8
ROBUSTNESS_MAX = 8

#: Labels that are told, and characters of each; the label map itself lies with the data.
LABELS_SHOWN_MAX = 50
LABEL_LENGTH_MAX = 32
#: Of them all as JSON in ASCII: half of what a rank may say at once.
LABELS_BYTES_MAX = 2000

Label = Annotated[
    str, BeforeValidator(one_line(LABEL_LENGTH_MAX)), Field(max_length=LABEL_LENGTH_MAX)
]
Labels = Annotated[list[Label], BeforeValidator(first(LABELS_SHOWN_MAX + 1))]
PathInRun = Annotated[str, Field(max_length=512)]
#: Of ours, and so printable ASCII.
Word = Annotated[str, BeforeValidator(ascii_start(32)), Field(max_length=32, pattern=r"^[ -~]*$")]
PhaseName = Annotated[
    str, BeforeValidator(ascii_start(16)), Field(max_length=16, pattern=r"^[ -~]*$")
]


def labels_shown(labels: Sequence[str]) -> list[str]:
    """The first labels, and how many there are beside them. What is longer than a label mostly is
    may be a text that was taken for one, and is among those (P11)."""
    short = [label for label in labels if len(label) <= LABEL_LENGTH_MAX][:LABELS_SHOWN_MAX]
    sizes = accumulate(len(json.dumps(label)) for label in short)
    shown = [label for label, size in zip(short, sizes, strict=True) if size <= LABELS_BYTES_MAX]
    rest = len(labels) - len(shown)
    return [*shown, f"and {rest} more"] if rest else shown


class RankHealth(StatusModel):
    """One rank as its supervisor sees it."""

    rank: int
    heartbeat_age_seconds: float
    """Seconds since its last sign of life."""
    phase: PhaseName = ""
    """What it is doing: data, forward (and backward), collective, optimizer, save, eval and so
    on."""
    score: float | None = None
    """Seconds of the fastest rank for its own part of a step over this one's; 1 is the fastest.
    Absent for a rank alone, and before the first comparison."""


class RankScore(StatusModel):
    """How fast one rank is beside the fastest, at what it does alone."""

    rank: int
    score: float
    """Seconds of the fastest rank over this one's, from 0 to 1."""
    seconds: float
    """Its own part of a step: data, and forward until it waits for others; median."""
    is_straggler: bool = False
    """Whether it has been far behind for several comparisons in a row."""


class RankStack(StatusModel):
    """Where one rank was when a hang was found."""

    rank: int
    phase: PhaseName
    silent_seconds: float
    """Since its last sign of life."""
    frame: ShortFrame = ""
    """Its innermost place in the code, file:line function; empty where it answered no signal."""


class CheckpointReport(StatusModel):
    """The newest intact checkpoint."""

    step: int
    path: PathInRun
    """Directory, relative to the run directory."""
    time: AwareDatetime
    size_bytes: int
    sha256: Annotated[str, Field(max_length=64)]
    """SHA-256 of its manifest, and so of every file in it."""


class TimeAccounts(StatusModel):
    """Where the seconds since the run first started went; together they are its wall time."""

    productive: float = 0.0
    """Optimizer steps that are part of the model."""
    startup: float = 0.0
    """From the start of the ranks to the loop: they meet, prepare data, build the model."""
    compile: float = 0.0
    """Warming up: the measurement of formats, the throw-away pass and the first step of a start."""
    data_wait: float = 0.0
    """Waiting for the next batch."""
    checkpoint: float = 0.0
    """Time that saving took from the loop."""
    replayed_steps: float = 0.0
    """Steps that a fault or a rewind has lost, and that are done again."""
    recovery: float = 0.0
    """From the death of the ranks to their next start, and loading a checkpoint."""
    evaluation: float = 0.0
    """Validation and the test of robustness."""
    stopped: float = 0.0
    """Told to stop (suspended, preempted) or finished, until the next start."""
    other: float = 0.0
    """What is left: skipped batches, comparing replicas, reporting, the export."""

    @property
    def wall_seconds(self) -> float:
        """All of it."""
        return float(sum(seconds for _, seconds in self))

    @property
    def goodput(self) -> float | None:
        """Share of the wall time that was productive; None before there is any."""
        wall = self.wall_seconds
        return self.productive / wall if wall > 0.0 else None


class IntervalReport(StatusModel):
    """The time between two checkpoints that the trainer has chosen, and from what."""

    seconds: float
    """From the end of one save to the start of the next."""
    cost_seconds: float
    """What a save takes from the loop, on average."""
    fault_seconds: float
    """Time between two faults that end the ranks, as far as this run knows."""


class RobustnessReport(StatusModel):
    """The validation loss under one kind and strength of noise, over several draws of it."""

    noise: Word
    """tokens or embeddings."""
    level: float
    """Of tokens: the share that is replaced. Of embeddings: the standard deviation of what is
    added, as a share of their root mean square."""
    loss: float | None = None
    """Mean over the draws whose loss is finite."""
    deviation: float | None = None
    """Their standard deviation; absent for less than two."""
    failed: float = 0.0
    """Share of the draws whose loss is not finite or above the unigram loss."""


RobustnessReports = Annotated[
    list[RobustnessReport],
    BeforeValidator(first(ROBUSTNESS_MAX)),
    Field(max_length=ROBUSTNESS_MAX),
]


class FaultReport(StatusModel):
    """Why the newest round of an attempt ended."""

    round: int
    failure_class: ReadFailureClass
    reason: Annotated[str, Field(max_length=64, pattern=REASON_PATTERN)]
    message: Message = ""
    rank: int | None = None
    step: int
    """Steps done then."""
    has_stepped: bool = False
    """Whether the attempt had made a step by then."""
    ranks: Annotated[list[RankStack], BeforeValidator(first(HUNG_RANKS_MAX))] = Field(
        default=[], max_length=HUNG_RANKS_MAX
    )
    """Of a hang: where the ranks of the pod that found it were, the longest silent first; the rest
    is in the run directory."""
    time: AwareDatetime


class RemedyReport(StatusModel):
    """What the guard did, and why."""

    remedy: Word
    """Skip, Rewind or Rerun."""
    fault: Word
    """What was found: NonFinite, LossSpike, Divergence and so on."""
    step: int
    """Steps done when it was found."""
    to_step: int | None = None
    """Of a rewind: the step of the healthy checkpoint that was loaded."""
    message: Message = ""
    """What was found, in numbers."""
    time: AwareDatetime
