"""`watch`: curves that move."""

import time
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lmtraining_api.history import Point
from lmtraining_cli.curves import joined, points_of
from lmtraining_cli.kubectl import Cluster
from lmtraining_cli.looking import lead_log
from lmtraining_cli.reading import read
from lmtraining_cli.screen import style_of
from lmtraining_cli.snapshot import Snapshot
from lmtraining_cli.sparkline import plot

POINTS_KEPT_MAX = 10_000
LABEL_WIDTH = 10
CURVES = (
    ("loss", "training loss, nats per token", 8),
    ("tokens_per_second", "tokens per second", 4),
    ("gradient_norm", "gradient norm", 4),
)


def watch(cluster: Cluster, name: str, *, console: Console, seconds: float) -> None:
    """Draw until the job has ended. Raises CliError."""
    snapshot = read(cluster, name)
    points = joined(points_of(lead_log(cluster, snapshot)[0]))
    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            points = with_status(points, snapshot)
            live.update(curves(snapshot, points, columns=console.width), refresh=True)
            if snapshot.status.is_terminal:
                return
            time.sleep(seconds)
            snapshot = read(cluster, name)


def with_status(points: Sequence[Point], snapshot: Snapshot) -> list[Point]:
    """The points and what status says now; steps that are to be done again are gone."""
    progress, metrics = snapshot.status.progress, snapshot.status.metrics
    if progress.report_time is None or not metrics.loss or metrics.loss == "not finite":
        return list(points)
    now = Point(
        step=progress.step,
        time=progress.report_time,
        loss=float(metrics.loss),
        gradient_norm=_number(metrics.gradient_norm),
        tokens_per_second=_number(metrics.tokens_per_second),
    )
    return [*(point for point in points if point.step < now.step), now][-POINTS_KEPT_MAX:]


def curves(snapshot: Snapshot, points: Sequence[Point], *, columns: int) -> RenderableType:
    """All curves that have two points or more."""
    progress = snapshot.status.progress
    head = Text.assemble(
        (f"lmtj/{snapshot.name}  ", "bold"),
        (snapshot.state, style_of(snapshot.state)),
        f"  step {progress.step}/{progress.total_steps}"
        + (f"  eta {progress.eta}" if progress.eta else ""),
    )
    parts: list[RenderableType] = [head]
    for field, title, height in CURVES:
        values = [value for point in points if (value := getattr(point, field)) is not None]
        if len(values) > 1:
            parts.append(Text(f"\n{title}: {values[-1]:.4g}", "dim"))
            rows = plot(values, width=max(10, columns - LABEL_WIDTH - 1), height=height)
            parts += [Text(row, "cyan", no_wrap=True) for row in rows]
    if len(parts) == 1:
        parts.append(Text("no step yet", "dim"))
    return Group(*parts)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
