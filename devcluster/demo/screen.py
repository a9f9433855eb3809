"""What the demo shows: one live panel while the job runs, one curve when it has ended.

Promise: on a terminal the panel is redrawn in place; elsewhere every change is one line, so that a
log of the demo can be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import HORIZONTALS
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from devcluster.demo.job_view import JobView, LossCurve

BLOCKS = " ▁▂▃▄▅▆▇█"
CURVE_WIDTH = 72
CURVE_HEIGHT = 12
COLUMN_WIDTHS = {
    "STATE": 11,
    "STEP": 9,
    "ETA": 6,
    "LOSS": 6,
    "VAL LOSS": 8,
    "TOK/S": 6,
    "RESTARTS": 8,
    "CHECKPOINT": 10,
}
PERCENT_WIDTH = 4
TIME_WIDTH = 7
PANEL_WIDTH_MAX = 100
#: Of the panel without the words of its story, border and gaps included.
FIXED_COLUMNS = TIME_WIDTH + COLUMN_WIDTHS["STATE"] + 8
FIXED_ROWS = 8
STATE_STYLES = {
    "Training": "bold green",
    "Completed": "bold green",
    "Recovering": "bold yellow",
    "Stalled": "bold yellow",
    "Unreachable": "bold yellow",
    "Failed": "bold red",
    "Diverged": "bold red",
}


@dataclass(frozen=True)
class StoryLine:
    """Something that happened, in seconds since the job was applied: to the job, which was in that
    state then, or, without a state, by the demo's own hand."""

    seconds: float
    state: str
    text: str


def job_panel(
    view: JobView, story: Sequence[StoryLine], *, columns: int, rows: int
) -> RenderableType:
    """The job as a table a person enjoys reading, above the end of its story so far.

    No column changes its width, so that figures change in place; 80 columns hold them all.
    """
    width = min(columns, PANEL_WIDTH_MAX)
    newest = _fitting(story, columns=width - FIXED_COLUMNS, rows=rows - FIXED_ROWS)
    return Panel(
        Group(_figures(view), Text(), _bar(view), Text(), _history(newest)),
        title=f"lmtj/{view.name}",
        box=HORIZONTALS,
        border_style="cyan",
        padding=0,
        width=width,
    )


def _figures(view: JobView) -> Table:
    status = view.status
    cells = (
        Text(view.state, style=_style(view.state)),
        view.steps,
        status.progress.eta,
        status.metrics.loss,
        status.metrics.validation_loss,
        status.metrics.tokens_per_second,
        str(status.restarts.total),
        str(status.checkpoint.last_step) if status.checkpoint else "",
    )
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title, width in COLUMN_WIDTHS.items():
        table.add_column(title, width=width, justify="left" if title == "STATE" else "right")
    table.add_row(*(cell or "–" for cell in cells))
    return table


def _bar(view: JobView) -> Table:
    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(ratio=1)
    line.add_column(width=PERCENT_WIDTH, justify="right")
    line.add_row(ProgressBar(total=1.0, completed=view.fraction), f"{view.fraction:.0%}")
    return line


def _fitting(story: Sequence[StoryLine], *, columns: int, rows: int) -> list[StoryLine]:
    """The newest lines, as many as `rows` hold once long ones are wrapped."""
    newest: list[StoryLine] = []
    for line in reversed(story):
        rows -= len(Text(line.text).wrap(Console(width=columns), columns)) or 1
        if rows < 0:
            break
        newest.insert(0, line)
    return newest


def _history(story: Sequence[StoryLine]) -> Table:
    """When and what; a long sentence goes on in the next row, at a word."""
    lines = Table.grid(expand=True, padding=(0, 2, 0, 0))
    lines.add_column(width=TIME_WIDTH, justify="right", style="dim")
    lines.add_column(width=COLUMN_WIDTHS["STATE"])
    lines.add_column(ratio=1)
    shown = ""
    for line in story:
        state = Text(line.state if line.state != shown else "", style=_style(line.state))
        lines.add_row(f"{line.seconds:.1f} s", state, Text(line.text, "" if line.state else "bold"))
        shown = line.state
    return lines


def _style(state: str) -> str:
    return STATE_STYLES.get(state, "bold cyan")


def one_line(view: JobView) -> str:
    """The panel for a log file."""
    status = view.status
    return (
        f"{view.state:<11} step {view.steps:>7}  loss {status.metrics.loss or '–':>6}  "
        f"tok/s {status.metrics.tokens_per_second or '–':>6}  restarts {status.restarts.total}  "
        f"{view.message}"
    )


def draw_curve(console: Console, curve: LossCurve, baseline: float) -> None:
    """Loss over steps in character cells, with the unigram baseline as a dotted line.

    `baseline` is in nats per token, like the points.
    """
    points = sorted(curve.points.items())
    if not points:
        return
    columns = _resample(points)
    low = min(columns)
    high = max(*columns, baseline)
    console.print(
        f"\n[bold]Training loss[/bold] [dim](nats per token; ┄ unigram {baseline:.2f})[/dim]"
    )
    baseline_row = round((baseline - low) / (high - low or 1.0) * (CURVE_HEIGHT - 1))
    for row in reversed(range(CURVE_HEIGHT)):
        label = {CURVE_HEIGHT - 1: f"{high:5.2f}", 0: f"{low:5.2f}"}.get(row, " " * 5)
        cells = "".join(
            _cell((value - low) / (high - low or 1.0) * (CURVE_HEIGHT - 1) + 1 - row)
            for value in columns
        )
        if row == baseline_row:
            cells = cells.replace(" ", "┄")
        console.print(f"  {label} [cyan]{cells}[/cyan]", highlight=False)
    last = points[-1][0]
    console.print(f"        step {points[0][0]}{' ' * (CURVE_WIDTH - 12 - len(str(last)))}{last}\n")


def _cell(height: float) -> str:
    """A block of `height` cells, cut to one cell."""
    return BLOCKS[max(0, min(len(BLOCKS) - 1, round(height * (len(BLOCKS) - 1))))]


def _resample(points: list[tuple[int, float]]) -> list[float]:
    """One value per column of the curve, linear between the points."""
    first, last = points[0][0], points[-1][0]
    values = []
    for column in range(CURVE_WIDTH):
        step = first + (last - first) * column / (CURVE_WIDTH - 1)
        after = next((i for i, (at, _) in enumerate(points) if at >= step), len(points) - 1)
        before = max(after - 1, 0)
        (x0, y0), (x1, y1) = points[before], points[after]
        share = (step - x0) / (x1 - x0) if x1 > x0 else 0.0
        values.append(y0 + (y1 - y0) * share)
    return values
