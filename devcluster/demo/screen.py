"""What the demo shows: one live panel while the job runs, one curve when it has ended.

Promise: on a terminal the panel is redrawn in place; elsewhere every change is one line, so that a
log of the demo can be read.
"""

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from devcluster.demo.job_view import JobView, LossCurve

BLOCKS = " ▁▂▃▄▅▆▇█"
CURVE_WIDTH = 72
CURVE_HEIGHT = 12
STATE_STYLES = {
    "Training": "bold green",
    "Completed": "bold green",
    "Recovering": "bold yellow",
    "Stalled": "bold yellow",
    "Unreachable": "bold yellow",
    "Failed": "bold red",
    "Diverged": "bold red",
}


def job_panel(view: JobView, story: list[str]) -> RenderableType:
    """The job as a table a person enjoys reading, above what has happened so far."""
    status = view.status
    table = Table.grid(padding=(0, 3))
    table.add_row(*(Text(title, style="dim") for title in _TITLES))
    table.add_row(
        Text(view.state, style=STATE_STYLES.get(view.state, "bold cyan")),
        f"{status.progress.step}/{status.progress.total_steps or '–'}",
        status.progress.percent or "–",
        status.progress.eta or "–",
        status.metrics.loss or "–",
        status.metrics.validation_loss or "–",
        status.metrics.tokens_per_second or "–",
        str(status.restarts.total),
        str(status.checkpoint.last_step) if status.checkpoint else "–",
    )
    bar = ProgressBar(total=1.0, completed=view.fraction, width=78)
    said = Text(view.message, style="italic")
    return Panel(
        Group(table, Text(), bar, Text(), said, Text(), *(Text(f"  {line}") for line in story)),
        title=f"lmtj/{view.name}",
        border_style="cyan",
        width=100,
    )


_TITLES = (
    "STATE", "STEP", "PROGRESS", "ETA", "LOSS", "VALIDATION", "TOK/S", "RESTARTS", "CHECKPOINT",
)  # fmt: skip


def one_line(view: JobView) -> str:
    """The panel for a log file."""
    status = view.status
    return (
        f"{view.state:<10} step {status.progress.step}/{status.progress.total_steps}  "
        f"loss {status.metrics.loss or '-'}  tok/s {status.metrics.tokens_per_second or '-'}  "
        f"restarts {status.restarts.total}  {view.message}"
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
