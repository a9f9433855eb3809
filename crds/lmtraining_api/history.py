"""The past of a run, bounded: what its curves are drawn from.

Promise: at most `POINTS_MAX` points and `HAPPENINGS_MAX` happenings, however long the run is; what
the lead pod writes to its log and what lies in the run directory say the same (`line_of`,
`point_of`). Numbers and words of ours only (P11).
Trap avoided: JSON has no NaN, so a loss that is not finite is absent.
"""

import math
import re
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field, ValidationError

from lmtraining_api.base import Record, StatusModel
from lmtraining_api.fields import Message, newest
from lmtraining_api.report_parts import Word

#: Name of the file in the run directory.
HISTORY_FILE = "history.json"
POINTS_MAX = 1024
HAPPENINGS_MAX = 256

_MARK = "figures"
_PAIR = re.compile(r"([a-z_]+)=(\S+)")
_WORDS = {
    "loss": "loss",
    "validation": "validation_loss",
    "rate": "learning_rate",
    "norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
    "mfu": "mfu",
}


class Point(StatusModel):
    """The run at one step, or over the steps since the point before."""

    step: int
    time: AwareDatetime
    loss: float | None = None
    """Mean training loss, nats per token."""
    loss_min: float | None = None
    loss_max: float | None = None
    validation_loss: float | None = None
    """Where one was taken."""
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """The largest, before clipping."""
    tokens_per_second: float | None = None
    mfu: float | None = None


class Happening(StatusModel):
    """Something that belongs on the curves: a restart, a rewind, a skipped batch."""

    step: int
    time: AwareDatetime
    kind: Word
    """Start, Round, Skip, Rewind, Rerun."""
    message: Message = ""


class RunHistory(Record):
    """history.json of a run directory."""

    job_uid: Annotated[str, Field(max_length=64)] = ""
    job_name: Annotated[str, Field(max_length=253)] = ""
    points: Annotated[list[Point], BeforeValidator(newest(POINTS_MAX))] = Field(
        default=[], max_length=POINTS_MAX
    )
    """By step."""
    happenings: Annotated[list[Happening], BeforeValidator(newest(HAPPENINGS_MAX))] = Field(
        default=[], max_length=HAPPENINGS_MAX
    )
    """By time."""


def line_of(point: Point, total_steps: int, *, is_past: bool = False) -> str:
    """The point as a line of a log that a person can read too; with its time, where that is not
    when the line is written."""
    known = {word: getattr(point, field) for word, field in _WORDS.items()}
    figures = [f"{word}={value:.6g}" for word, value in known.items() if value is not None]
    past = [f"time={point.time.isoformat()}"] if is_past else []
    of = [f"of={total_steps}"] if total_steps else []
    return " ".join([f"{_MARK} step={point.step}", *of, *figures, *past])


def point_of(line: str, time: AwareDatetime) -> Point | None:
    """What `line_of` wrote, behind whatever a logger puts before it; None for any other line.
    `time`: when it was written."""
    before, mark, rest = line.partition(f"{_MARK} step=")
    if not mark or "=" in before:
        return None
    said = dict(_PAIR.findall(f"step={rest}"))
    values = {field: _number(said.get(word)) for word, field in _WORDS.items()}
    step = said.get("step", "")
    if not step.isdigit():
        return None
    try:
        return Point.model_validate({"step": step, "time": said.get("time", time), **values})
    except ValidationError:
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
