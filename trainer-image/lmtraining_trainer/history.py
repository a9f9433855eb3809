"""The past of a run, for its curves: in the lead pod's log, and whole in the run directory, for us
and for TensorBoard.

Promise: bounded whatever the run's length: when there are too many points, each two become one,
which keeps the least and the largest loss of its steps. Steps that are done again replace what was
said of them first. A later attempt goes on from what lies in the run directory, and repeats the
gist of it in its own log.
Trap avoided: the run directory may be another job's until the ranks have claimed it, so nothing is
written before the first step; who writes a note never waits for storage (`Aside`); and a log line
per step would be most of the log, so they come ever more rarely, from two seconds to five minutes
apart.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lmtraining_api import TrainerReport
from lmtraining_api.history import (
    HAPPENINGS_MAX,
    HISTORY_FILE,
    POINTS_MAX,
    Happening,
    Point,
    RunHistory,
    line_of,
)
from lmtraining_trainer.event_file import EventFiles
from lmtraining_trainer.run.aside import Aside

WRITE_SECONDS = 10.0
CLOSE_SECONDS_MAX = 2.0
LINE_SECONDS_MIN = 2.0
LINE_SECONDS_MAX = 300.0
LINE_SHARE = 0.01
"""Of the time since the start: the distance of two lines."""
PAST_LINES_MAX = 64

logger = logging.getLogger(__name__)


@dataclass
class Curve:
    """Points by step, and the steps since the newest of them."""

    points: list[Point]
    stride: int = 1
    """Steps of a point."""
    open: Point | None = None
    """The steps that are not a point yet."""
    count: int = 0
    """How many they are."""

    @property
    def step(self) -> int:
        """The newest step."""
        if self.open is not None:
            return self.open.step
        return self.points[-1].step if self.points else 0

    def add(self, point: Point) -> None:
        """One more step, or one that is done again."""
        if point.step <= self.step:
            self.points = [one for one in self.points if one.step < point.step]
            self.open, self.count = None, 0
        self.open = point if self.open is None else together(self.open, point, self.count)
        self.count += 1
        if self.count >= self.stride:
            self._close()

    def validated(self, loss: float) -> None:
        """Of the newest step."""
        if self.open is not None:
            self.open = self.open.model_copy(update={"validation_loss": loss})
        elif self.points:
            self.points[-1] = self.points[-1].model_copy(update={"validation_loss": loss})

    def whole(self) -> list[Point]:
        """With the steps that are not a point yet."""
        return [*self.points, self.open] if self.open is not None else list(self.points)

    def _close(self) -> None:
        if self.open is not None:
            self.points.append(self.open)
        self.open, self.count = None, 0
        if len(self.points) >= POINTS_MAX:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [together(first, second, 1) for first, second in pairs]
            self.stride *= 2


def together(first: Point, second: Point, count: int) -> Point:
    """One point of two, the first of which stands for `count` of the second's length."""
    values = {
        "loss": _mean(first.loss, second.loss, count),
        "loss_min": _extreme(min, _low(first), _low(second)),
        "loss_max": _extreme(max, _high(first), _high(second)),
        "gradient_norm": _extreme(max, first.gradient_norm, second.gradient_norm),
        "validation_loss": first.validation_loss
        if second.validation_loss is None
        else second.validation_loss,
    }
    return second.model_copy(update=values)


class History:
    """What the lead keeps; nothing anywhere else."""

    def __init__(
        self,
        directory: Path | None,
        *,
        job_uid: str = "",
        job_name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = directory / HISTORY_FILE if directory else None
        self._events = EventFiles(directory) if directory else None
        self._names = {"job_uid": job_uid, "job_name": job_name}
        self._clock = clock
        self._began = self._written_at = clock()
        self._line_at = float("-inf")
        self._logged_step = 0
        self._curve = Curve(points=[])
        self._happenings: list[Happening] = []
        self._before: TrainerReport | None = None
        self._has_stepped = False
        """Whether this life took a step, and so has claimed the run directory."""
        self._aside = Aside()

    def read(self) -> None:
        """What the attempts before this one have left, which is repeated in the log."""
        if self._path is None:
            return
        try:
            found = RunHistory.model_validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            return
        self._curve = Curve(points=found.points, stride=_stride(found.points))
        self._happenings = found.happenings
        every = max(1, math.ceil(len(found.points) / PAST_LINES_MAX))
        for point in found.points[::every]:
            logger.info(line_of(point, 0, is_past=True))

    def hear(self, report: TrainerReport) -> None:
        """The report as it is now."""
        if self._path is None or report.state in ("Waiting", "Preparing"):
            return
        before, self._before = self._before, report
        self._happenings += _happened(before, report)
        del self._happenings[:-HAPPENINGS_MAX]
        is_new = before is None or report.step_time != before.step_time
        if report.step_time is not None and is_new:
            self._has_stepped = True
            self._curve.add(_point(report, report.step_time))
            self._log(report)
        if report.validation_loss is not None and _validated(before, report):
            self._curve.validated(report.validation_loss)
        if self._clock() - self._written_at >= WRITE_SECONDS:
            self._write()

    def close(self) -> None:
        """The last words."""
        report = self._before
        if self._path is None or report is None:
            return
        if report.step != self._logged_step:
            self._say(report)
        self._write()
        self._aside.finish(CLOSE_SECONDS_MAX)

    def document(self) -> RunHistory:
        """All of it."""
        points = self._curve.whole()
        return RunHistory.model_validate(
            {**self._names, "points": points, "happenings": self._happenings}
        )

    def _log(self, report: TrainerReport) -> None:
        now = self._clock()
        rest = LINE_SHARE * (now - self._began)
        if now - self._line_at >= min(LINE_SECONDS_MAX, max(LINE_SECONDS_MIN, rest)):
            self._line_at = now
            self._say(report)

    def _say(self, report: TrainerReport) -> None:
        self._logged_step = report.step
        if report.step_time is not None:
            logger.info(
                line_of(_point(report, report.step_time, all_of_it=True), report.total_steps)
            )

    def _write(self) -> None:
        path, events, document = self._path, self._events, self.document()
        self._written_at = self._clock()
        if path is not None and events is not None and self._has_stepped:
            self._aside.offer(lambda: _put(path, events, document))


def _put(path: Path, events: EventFiles, document: RunHistory) -> None:
    """By one rename; not synced, since it may be lost with its node. A kill leaves a half that the
    next one overwrites."""
    half = path.with_name(f".{path.name}")
    half.write_text(document.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    half.replace(path)
    events.follow(document)


def _point(report: TrainerReport, time: datetime, *, all_of_it: bool = False) -> Point:
    return Point(
        step=report.step,
        time=time,
        loss=report.loss,
        validation_loss=report.validation_loss if all_of_it else None,
        learning_rate=report.learning_rate,
        gradient_norm=report.gradient_norm,
        tokens_per_second=report.tokens_per_second,
        mfu=report.mfu,
    )


def _validated(before: TrainerReport | None, report: TrainerReport) -> bool:
    """Whether the newest step was validated just now; the last report may say again what an earlier
    one came to, whose weights are exported."""
    is_new = before is None or report.validation_step != before.validation_step
    return is_new and report.validation_step == report.step


def _happened(before: TrainerReport | None, report: TrainerReport) -> list[Happening]:
    """What is new since the report before."""
    step, now = report.step, report.report_time
    if before is None:
        text = f"attempt {report.attempt}"
        return [Happening(step=step, time=now, kind="Start", message=text)]
    found = []
    if report.round != before.round:
        fault = report.last_fault.message if report.last_fault else ""
        text = f"round {report.round}" + (f" after {fault}" if fault else "")
        found.append(Happening(step=step, time=now, kind="Round", message=text))
    done = report.last_remedy
    if done is not None and done != before.last_remedy:
        text = f"{done.fault}: {done.message}"
        found.append(Happening(step=done.step, time=done.time, kind=done.remedy, message=text))
    return found


def _stride(points: list[Point]) -> int:
    """Steps between two points, as they were left."""
    if len(points) < 2:
        return 1
    each = (points[-1].step - points[0].step) / (len(points) - 1)
    return 1 << max(0, round(math.log2(each))) if each > 1 else 1


def _mean(first: float | None, second: float | None, count: int) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return (first * count + second) / (count + 1)


def _low(point: Point) -> float | None:
    return point.loss if point.loss_min is None else point.loss_min


def _high(point: Point) -> float | None:
    return point.loss if point.loss_max is None else point.loss_max


def _extreme(
    pick: Callable[[float, float], float], first: float | None, second: float | None
) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return pick(first, second)
