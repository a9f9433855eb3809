"""What a report says, wherever it was read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lmtraining_api.history import Happening, Point

Row = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Content:
    """One run. What could not be had is empty, and `missing` says why."""

    name: str
    state: str
    made: datetime
    summary: str = ""
    """One sentence: how it stands, or why it ended."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """The newest, with their names."""
    points: Sequence[Point] = ()
    happenings: Sequence[Happening] = ()
    unigram_loss: float | None = None
    accounts: Mapping[str, float] = field(default_factory=dict)
    """Seconds by cause."""
    stability: Mapping[str, str] = field(default_factory=dict)
    recoveries: Sequence[Row] = ()
    """When, what, how it was mended."""
    checkpoints: Sequence[Row] = ()
    """Step, when, size, marks, SHA-256."""
    environment: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()


def placed(happenings: Sequence[Happening], points: Sequence[Point]) -> list[Happening]:
    """Those without a step get that of the newest point before them."""
    found = []
    for one in happenings:
        before = [point.step for point in points if point.time <= one.time]
        step = one.step if one.step > 0 else max(before, default=0)
        found.append(one.model_copy(update={"step": step}))
    return sorted(found, key=lambda one: one.time)
