"""`status`: a job on one screen.

Promise: a pure function of a snapshot and the curve; every figure that can be old comes with its
age. What is not known is left out instead of shown as nought.
"""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lmtraining_api import ConditionType
from lmtraining_api.history import Point
from lmtraining_cli.snapshot import Snapshot
from lmtraining_cli.sparkline import sparkline
from lmtraining_cli.why import Finding
from lmtraining_cli.wording import ago, duration, plural, seconds_of, size

SPARK_WIDTH = 48
BAR_WIDTH = 48
OLD_SECONDS = 30.0
STYLES = {
    "Training": "bold green", "Completed": "bold green", "Recovering": "bold yellow",
    "Stalled": "bold yellow", "Unreachable": "bold yellow", "Paused": "bold yellow",
    "Failed": "bold red", "Diverged": "bold red",
}  # fmt: skip
#: Of the time, and how it is drawn.
ACCOUNTS = (
    ("productive", "green"), ("startup", "cyan"), ("compile", "blue"), ("data_wait", "yellow"),
    ("checkpoint", "magenta"), ("replayed_steps", "red"), ("recovery", "bright_red"),
    ("evaluation", "bright_cyan"), ("stopped", "bright_black"), ("other", "white"),
)  # fmt: skip


def style_of(state: str) -> str:
    """How a state is drawn."""
    return STYLES.get(state, "bold cyan")


def screen(
    snapshot: Snapshot, finding: Finding, points: Sequence[Point], *, context: str
) -> RenderableType:
    """All of it."""
    parts = [
        _head(snapshot, finding, context=context),
        _progress(snapshot, points),
        _conditions(snapshot),
        _pods(snapshot),
        _checkpoint(snapshot),
        _stability(snapshot),
        _recovery(snapshot),
        _goodput(snapshot),
        _unseen(snapshot),
    ]
    shown = [part for part in parts if part is not None]
    lines: list[RenderableType] = []
    for number, part in enumerate(shown):
        lines += [part] if number == 0 else [Text(), part]
    return Group(*lines)


def _head(snapshot: Snapshot, finding: Finding, *, context: str) -> RenderableType:
    status = snapshot.status
    line = Text()
    line.append(f"lmtj/{snapshot.name}", "bold").append("  ")
    line.append(snapshot.state, style_of(snapshot.state))
    facts = [f"namespace {snapshot.namespace}", f"context {context}"]
    facts += [f"attempt {status.attempt}", f"round {status.round}"] if status.attempt else []
    facts.append(f"age {duration(snapshot.age_seconds)}")
    reason = Text(finding.sentence, "" if finding.is_trouble else "dim")
    lines = [line, Text("  ".join(facts), "dim"), reason]
    if finding.is_trouble:
        lines.append(Text(f"→ {finding.fix}", "bold"))
    return Group(*lines)


def _progress(snapshot: Snapshot, points: Sequence[Point]) -> RenderableType | None:
    progress, metrics = snapshot.status.progress, snapshot.status.metrics
    if not progress.total_steps:
        return None
    bar = Table.grid(padding=(0, 2, 0, 0))
    ended = snapshot.status.is_terminal
    figures = [f"{progress.step}/{progress.total_steps}", progress.percent]
    figures += [f"eta {progress.eta}"] if progress.eta and not ended else []
    figures += [f"{metrics.tokens_per_second} tok/s"] if metrics.tokens_per_second else []
    figures += [f"MFU {metrics.mfu}"] if metrics.mfu else []
    share = ProgressBar(total=progress.total_steps, completed=progress.step, width=BAR_WIDTH)
    bar.add_row("step", share, "  ".join(figures))
    losses = [point.loss for point in points if point.loss is not None]
    said = {
        "loss": metrics.loss, "validation": metrics.validation_loss,
        "unigram": metrics.unigram_loss, "norm": metrics.gradient_norm,
        "rate": metrics.learning_rate,
    }  # fmt: skip
    known = "  ".join(f"{name} {value}" for name, value in said.items() if value)
    if known or losses:
        bar.add_row("loss", Text(sparkline(losses, SPARK_WIDTH), "cyan"), known)
    age = _age(snapshot)
    return Group(bar, Text(age, "yellow")) if age else bar


def _age(snapshot: Snapshot) -> str:
    """Of the figures, where they are old and the job is not over."""
    said = snapshot.status.progress.report_time
    if said is None or snapshot.status.is_terminal or snapshot.value("suspend"):
        return ""
    seconds = (snapshot.now - said).total_seconds()
    return f"these figures are {duration(seconds)} old" if seconds > OLD_SECONDS else ""


def _conditions(snapshot: Snapshot) -> RenderableType | None:
    if not snapshot.status.conditions:
        return None
    table = _table("CONDITION", "STATUS", "REASON", "SINCE")
    for kind in ConditionType:
        found = snapshot.status.condition(kind)
        if found is not None:
            since = duration((snapshot.now - found.last_transition_time).total_seconds())
            color = {"True": "green", "False": "yellow"}.get(found.status, "dim")
            table.add_row(kind.value, Text(found.status, color), found.reason, since)
    return table


def _pods(snapshot: Snapshot) -> RenderableType | None:
    """A row for each rank whose pod answers, else for its pod."""
    if not snapshot.pods:
        return None
    table = _table("RANK", "POD", "NODE", "PHASE", "HEARTBEAT", "SPEED")
    answered = {report_rank(report.ranks): report.ranks for report in snapshot.reports}
    each = max((len(ranks) for ranks in answered.values()), default=1)
    for pod in snapshot.pods:
        phase = pod.phase + (f" ({pod.waiting[0]})" if pod.waiting[0] else "")
        phase = "Terminating" if pod.is_deleting else phase
        ranks = answered.get(pod.replica * each)
        if not ranks or pod.phase != "Running":
            table.add_row("–", pod.name, pod.node or "–", phase, "–", "–")
            continue
        for rank in ranks:
            score = "–" if rank.score is None else f"{rank.score:.0%}"
            beat = f"{rank.heartbeat_age_seconds:.1f} s"
            table.add_row(str(rank.rank), pod.name, pod.node, rank.phase or phase, beat, score)
    return table


def report_rank(ranks: Sequence[object]) -> int:
    """The first rank of a pod; -1 where it names none."""
    return min((int(getattr(rank, "rank", -1)) for rank in ranks), default=-1)


def _checkpoint(snapshot: Snapshot) -> RenderableType | None:
    saved, artifacts = snapshot.status.checkpoint, snapshot.status.artifacts
    if saved is None:
        return None
    rows = {
        "checkpoint": f"step {saved.last_step}, {ago(saved.last_time, snapshot.now)}, "
        f"{size(saved.size_bytes)}, sha256 {saved.sha256[:12]}…, {saved.path}",
        "healthy": f"step {snapshot.status.stability.healthy_step}"
        if snapshot.status.stability.healthy_step is not None
        else "",
        "run": _where(artifacts.claim, artifacts.uri, artifacts.run_directory),
        "model": artifacts.export,
    }
    return _facts(rows)


def _where(claim: str, uri: str, directory: str) -> str:
    place = f"claim {claim}" if claim else uri
    return f"{place}: {directory}" if place and directory else directory


def _stability(snapshot: Snapshot) -> RenderableType | None:
    done = snapshot.status.stability
    counts = f"{done.skipped_steps} skipped, {done.clipped_steps} clipped, {done.rewinds} rewinds"
    scale = f", rate × {done.rate_scale}" if done.rate_scale else ""
    last = done.last_remedy
    when = ago(last.time, snapshot.now) if last else ""
    what = (
        f"{last.remedy} at step {last.step} ({last.fault}), {when}: {last.message}" if last else ""
    )
    if not snapshot.status.progress.step:
        return None
    return _facts({"stability": counts + scale, "last remedy": what, "notice": done.notice})


def _recovery(snapshot: Snapshot) -> RenderableType | None:
    restarts = snapshot.status.restarts
    failure, mended = snapshot.status.last_failure, snapshot.status.last_recovery
    if failure is None and mended is None:
        return None
    by = ", ".join(f"{kind} {count}" for kind, count in restarts.by_reason.items())
    rows = {
        "restarts": f"{restarts.total} ({by})" if by else str(restarts.total),
        "last failure": f"{failure.failure_class}, {ago(failure.time, snapshot.now)}: "
        f"{failure.message}"
        if failure
        else "",
    }
    if mended is not None:
        load = f" ({mended.load_seconds} s to load)" if mended.load_seconds else ""
        origin = (
            "the start" if mended.resumed_from_step is None else f"step {mended.resumed_from_step}"
        )
        rows["recovered"] = (
            f"in {mended.seconds} s{load}, from {origin}, "
            f"{plural(mended.replayed_steps, 'step')} done again"
        )
    return _facts(rows)


def _goodput(snapshot: Snapshot) -> RenderableType | None:
    spent = snapshot.status.goodput
    wall = seconds_of(spent.wall_time)
    if not wall:
        return None
    shares = [(name, seconds_of(getattr(spent, name)) / wall, color) for name, color in ACCOUNTS]
    bar, words = Text(), []
    for name, share, color in shares:
        bar.append("█" * round(share * BAR_WIDTH), color)
        if share >= 0.005:
            words.append(Text.assemble((f"{name.replace('_', ' ')} ", color), f"{share:.0%}"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row("goodput", bar, f"{spent.share} of {spent.wall_time}")
    grid.add_row("", Text("  ").join(words), "")
    return grid


def _unseen(snapshot: Snapshot) -> RenderableType | None:
    if not snapshot.unseen:
        return None
    return Group(*(Text(f"not shown: {line}", "dim") for line in snapshot.unseen))


def _facts(rows: dict[str, str]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows.items():
        if value:
            grid.add_row(Text(name, "dim"), Text(value))
    return grid


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title)
    return table
