"""What of a run's history a tracker has not been told yet.

Promise: told again and again with the same history, a tracker hears of each step once, of each
validation once, and of the steps after a rewind once more, since they are others. Steps that are
merely done again after a fault are the same and are not told again.
Trap avoided: a queue between the training and its trackers, which an outage fills. The history is
bounded and whole, so what has been told is one `Position`, and nothing waits anywhere else.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pydantic import AwareDatetime

from lmtraining_api.base import Record
from lmtraining_api.history import Happening, Point, RunHistory

#: What a tracker calls them; of a validation there is one figure of its own.
FIGURES = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu")
VALIDATION = "validation_loss"
REWIND = "Rewind"


class Position(Record):
    """How far a tracker has been told."""

    step: int = 0
    time: AwareDatetime | None = None
    """When that step was."""
    validation_step: int = 0
    validation_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Figures of a step."""

    step: int
    time: AwareDatetime
    values: dict[str, float]


def unsent(
    history: RunHistory, position: Position, *, readings_max: int = sys.maxsize
) -> tuple[list[Reading], Position]:
    """The first readings after that position, by step, and the position once they are told."""
    redone = _redone(history, position)
    if redone:
        before = redone[0].step - 1
        position = position.model_copy(
            update={
                "step": min(position.step, before),
                "validation_step": min(position.validation_step, before),
                "validation_loss": None,
            }
        )
    found = list(islice(_readings(history.points, position), readings_max))
    last = found[-1].step if found else 0
    return found, _after([point for point in history.points if point.step <= last], position)


def _redone(history: RunHistory, position: Position) -> list[Point]:
    """The steps since a rewind that the tracker has not heard of."""
    known = position.time
    if known is None:
        return []
    rewinds = [one.time for one in history.happenings if _is_news(one, known)]
    return [point for point in history.points if rewinds and point.time > min(rewinds)]


def _is_news(one: Happening, known: AwareDatetime) -> bool:
    return one.kind == REWIND and one.time > known


def _readings(points: list[Point], position: Position) -> Iterator[Reading]:
    validated = {point.step for point in _validated(points, position)}
    for point in points:
        values = {}
        if point.step > position.step:
            values = {name: getattr(point, name) for name in FIGURES}
        if point.step in validated:
            values[VALIDATION] = point.validation_loss
        known = {name: value for name, value in values.items() if value is not None}
        if known:
            yield Reading(step=point.step, time=point.time, values=known)


def _validated(points: list[Point], position: Position) -> list[Point]:
    """Points with a validation that was not told. One that was told moves to a later step when its
    point becomes one with the next."""
    found, before = [], 0
    for point in points:
        known = before < position.validation_step <= point.step
        moved = known and point.validation_loss == position.validation_loss
        if point.validation_loss is not None and point.step > position.validation_step:
            found += [] if moved else [point]
        before = point.step
    return found


def _after(points: list[Point], position: Position) -> Position:
    news: dict[str, object] = {}
    if points and points[-1].step > position.step:
        news |= {"step": points[-1].step, "time": points[-1].time}
    if validated := _validated(points, position):
        last = validated[-1]
        news |= {"validation_step": last.step, "validation_loss": last.validation_loss}
    return position.model_copy(update=news)
