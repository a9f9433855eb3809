"""`list`: the jobs of a namespace, those that need somebody first."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lmtraining_cli.screen import style_of
from lmtraining_cli.snapshot import Object, Snapshot
from lmtraining_cli.wording import duration

URGENT = ("Failed", "Diverged", "Stalled", "Unreachable", "Recovering", "Pending")


def listing(jobs: Sequence[Object], *, namespaces: bool) -> RenderableType:
    """A table of jobs."""
    titles = ["NAME", "STATE", "STEP", "PROGRESS", "ETA", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for title in ["NAMESPACE", *titles] if namespaces else titles:
        table.add_column(title)
    for job in sorted((Snapshot(job=job, now=datetime.now(UTC)) for job in jobs), key=_order):
        status = job.status
        row = [
            Text(job.name), Text(job.state, style_of(job.state)),
            Text(str(status.progress.step)), Text(status.progress.percent or "–"),
            Text(status.progress.eta or "–"), Text(status.metrics.loss or "–"),
            Text(status.metrics.tokens_per_second or "–"), Text(str(status.restarts.total)),
            Text(duration(job.age_seconds)),
        ]  # fmt: skip
        table.add_row(*([Text(job.namespace), *row] if namespaces else row))
    return table


def _order(job: Snapshot) -> tuple[int, str, str]:
    place = URGENT.index(job.state) if job.state in URGENT else len(URGENT)
    return place, job.namespace, job.name
