"""A local run as a person sees it: a bar on a terminal, plain lines elsewhere.

Promise: the same figures as in the report, and nothing that is not in it. A log file gets a line
when the state changes and every `PLAIN_LINE_SECONDS`, not a bar. Each remedy gets a line of its own
in both, and stays to be read; so does each kind of trouble with saving, and its end.
Trap avoided: rich cuts each column a little where the terminal is too narrow, so that no figure can
be read any more. What has no room is left out as a whole.
"""

import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lmtraining_api import RemedyReport, TrainerReport
from lmtraining_trainer.report import Snapshot

PLAIN_LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.1
STATE_WIDTH = 13
BAR_WIDTH = 20
#: What stands before the figures, with the spaces between.
BAR_COLUMNS = STATE_WIDTH + 1 + BAR_WIDTH + 1
BETWEEN = "  "


class ProgressView:
    """Shows snapshots between `with` and its end."""

    def __init__(
        self, console: Console, *, bar: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._bar = _bar(console) if bar else None
        self._task: TaskID | None = None
        self._shown_at = float("-inf")
        self._shown = ""
        self._told: RemedyReport | None = None
        self._told_trouble = ""
        self._told_passed_over = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._task = self._bar.add_task("Starting", total=None, figures="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):  # a terminal that was closed
                self._bar.refresh()
                self._bar.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest state, unless another was shown a moment ago."""
        report, now = snapshot.report, self._clock()
        if report.last_remedy is not None and report.last_remedy != self._told:
            self._told = report.last_remedy
            self._print(remedy_line(report.last_remedy))
        if report.passed_over != self._told_passed_over:
            self._told_passed_over = report.passed_over
            self._print(f"{report.passed_over}; going on from step {report.resumed_from_step}")
        self._tell_trouble(report)
        changed = report.state != self._shown
        if self._bar is not None:
            if changed or now - self._shown_at >= REFRESH_SECONDS:
                self._move_bar(report)
                self._shown_at = now
        elif changed or now - self._shown_at >= PLAIN_LINE_SECONDS:
            self._print(line_of(report))
            self._shown_at = now
        self._shown = report.state

    def _tell_trouble(self, report: TrainerReport) -> None:
        """With saving: a full disk is told once, not with the number of each step."""
        trouble = without_numbers(report.checkpoint_error)
        if trouble == self._told_trouble:
            return
        self._told_trouble = trouble
        newest = "none" if report.checkpoint is None else f"that of step {report.checkpoint.step}"
        self._print(f"{report.checkpoint_error or 'checkpoints are saved again'}; newest: {newest}")

    def _print(self, line: str) -> None:
        """A line; above the bar where there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _move_bar(self, report: TrainerReport) -> None:
        if self._bar is None or self._task is None:
            return
        self._bar.update(
            self._task,
            description=report.state,
            completed=report.step,
            total=(report.step and report.total_steps) or None,
            figures=fitting(report, max(1, self._console.width - BAR_COLUMNS)),
        )
        self._bar.refresh()


def without_numbers(sentence: str) -> str:
    """What two sentences have in common that differ in steps and times alone."""
    return "".join(letter for letter in sentence if not letter.isdigit())


def line_of(report: TrainerReport) -> str:
    """One line for a log."""
    steps = f"step {report.step}/{report.total_steps}  " if report.step else ""
    return f"{report.state:<{STATE_WIDTH}} {steps}{figures_of(report)}".rstrip()


def figures_of(report: TrainerReport) -> str:
    """The figures that are known; before the first step, what is being done."""
    return BETWEEN.join([*_figures(report), *_message(report)])


def fitting(report: TrainerReport, width: int) -> str:
    """Steps, message and the figures that have room as a whole; the message may lose words."""
    steps = [f"{report.step}/{report.total_steps}"] if report.step and report.total_steps else []
    message = [textwrap.shorten(text, width, placeholder="…") for text in _message(report)]
    shown: list[str] = []
    for part in [*message, *steps, *_figures(report)]:
        if len(BETWEEN.join([*shown, part])) <= width:
            shown.append(part)
    return BETWEEN.join(shown)


def _message(report: TrainerReport) -> list[str]:
    """What is being done; why it failed is said at the end, with what to do."""
    return [report.message] if report.message and report.state != "Failed" else []


def _figures(report: TrainerReport) -> list[str]:
    figures = [
        f"loss {report.loss:.4f}" if report.loss is not None else "",
        "loss is not finite" if not report.loss_is_finite else "",
        f"validation {report.validation_loss:.4f}" if report.validation_loss is not None else "",
        f"F1 {report.validation_f1:.4f}" if report.validation_f1 is not None else "",
        _speed(report.tokens_per_second),
        f"{report.skipped_steps} skipped" if report.skipped_steps else "",
        _times(report.rewinds, "rewind"),
        f"eta {duration(report.eta_seconds)}" if report.eta_seconds is not None else "",
    ]
    return [figure for figure in figures if figure]


def duration(seconds: float) -> str:
    """Whole seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}" if count else ""


def remedy_line(remedy: RemedyReport) -> str:
    """What was done about a bad step, and why: Rewind at step 40 to step 30: …"""
    to = f" to step {remedy.to_step}" if remedy.to_step is not None else ""
    return f"{remedy.remedy} at step {remedy.step}{to}: {remedy.message or remedy.fault}"


def _speed(tokens_per_second: float | None) -> str:
    if tokens_per_second is None:
        return ""
    if tokens_per_second < 10_000:
        return f"{tokens_per_second:.0f} tok/s"
    return f"{tokens_per_second / 1000:.1f}k tok/s"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn(f"{{task.description:<{STATE_WIDTH}}}", markup=False),
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        auto_refresh=False,  # a thread less beside the loop; every turn of it refreshes
    )
