"""The HTML page of a report.

Promise: one file that asks for nothing from elsewhere and runs no script (its own policy forbids
both); light and dark, narrow and wide, printable; every text is escaped.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lmtraining_cli.report.charts import Value, bar, curve, pairs_of
from lmtraining_cli.report.content import Content, Row
from lmtraining_cli.report.style import STYLE
from lmtraining_cli.wording import duration

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
HAPPENINGS_LISTED_MAX = 100
MINUTE = 60.0


def page(content: Content) -> str:
    """The whole file."""
    sections = [
        _head(content),
        _notes(content.missing),
        _charts(content),
        _goodput(content),
        _section("Stability", _facts(content.stability)),
        _section("Events", _happenings(content)),
        _section("Recoveries", _table(("Time", "What", "How it was mended"), content.recoveries)),
        _section(
            "Checkpoints",
            _table(
                ("Step", "Time", "Size", "Marks", "SHA-256 of the manifest"), content.checkpoints
            ),
        ),
        _section("Environment", _facts(content.environment)),
        _configuration(content.configuration),
    ]
    made = content.made.strftime("%Y-%m-%d %H:%M:%S %Z")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(content.name)}: training report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main><footer>Made {made} by lm-training-operator"
        "</footer></body></html>\n"
    )


def _head(content: Content) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in content.figures.items()
        if value
    )
    summary = f"<p>{escape(content.summary)}</p>" if content.summary else ""
    return (
        f'<header><h1>{escape(content.name)} <span class="state {escape(content.state)}">'
        f'{escape(content.state)}</span></h1>{summary}<dl class="tiles">{tiles}</dl></header>'
    )


def _notes(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    return f'<section class="missing"><h2>Not in this report</h2>{_list(missing)}</section>'


def _charts(content: Content) -> str:
    points, marks = content.points, content.happenings
    low, high = pairs_of(points, lambda p: p.loss_min), pairs_of(points, lambda p: p.loss_max)
    drawn = {
        "Loss": curve(
            "loss",
            {
                "training": pairs_of(points, lambda p: p.loss),
                "validation": pairs_of(points, lambda p: p.validation_loss),
            },
            unit="nats per token",
            happenings=marks,
            band=(low, high) if low and high else None,
            baseline=content.unigram_loss,
        ),
        "Learning rate": _single(content, "rate", "", lambda p: p.learning_rate),
        "Gradient norm": _single(content, "norm", "before clipping", lambda p: p.gradient_norm),
        "Throughput": _single(content, "speed", "tokens per second", lambda p: p.tokens_per_second),
    }
    legends = {"Loss": _legend(content)}
    figures = [
        f"<figure><figcaption>{title}{legends.get(title, '')}</figcaption>{chart}</figure>"
        for title, chart in drawn.items()
        if chart
    ]
    return f'<section class="charts">{"".join(figures)}</section>' if figures else ""


def _single(content: Content, identity: str, unit: str, value: Value) -> str:
    pairs = pairs_of(content.points, value)
    return curve(identity, {identity: pairs}, unit=unit, happenings=content.happenings)


def _legend(content: Content) -> str:
    names = ['<span class="key line-0">training</span>']
    if any(point.validation_loss is not None for point in content.points):
        names.append('<span class="key line-1">validation</span>')
    if content.unigram_loss is not None:
        names.append(f'<span class="key baseline">unigram {content.unigram_loss:.4g}</span>')
    kinds = sorted({one.kind for one in content.happenings})
    names += [f'<span class="key mark {escape(kind)}">{escape(kind)}</span>' for kind in kinds]
    return " ".join(["", *names])


def _goodput(content: Content) -> str:
    wall = sum(content.accounts.values())
    if wall <= 0:
        return ""
    rows = [
        (
            f'<span class="key account {escape(name)}">{escape(name.replace("_", " "))}</span>',
            f"{seconds / wall:.1%}",
            duration(seconds) if seconds >= MINUTE else f"{seconds:.1f}s",
        )
        for name, seconds in content.accounts.items()
        if seconds > 0
    ]
    body = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in rows)
    share = content.accounts.get("productive", 0.0) / wall
    title = f"Goodput: {share:.1%} of {duration(wall)}"
    return _section(title, f"{bar(content.accounts)}<table>{body}</table>")


def _happenings(content: Content) -> str:
    newest = list(content.happenings)[-HAPPENINGS_LISTED_MAX:]
    rows = [
        (one.time.strftime("%Y-%m-%d %H:%M:%S"), str(one.step), one.kind, one.message)
        for one in newest
    ]
    return _table(("Time", "Step", "What", "Why"), rows)


def _configuration(configuration: Mapping[str, object]) -> str:
    if not configuration:
        return ""
    text = escape(json.dumps(configuration, indent=2, default=str, ensure_ascii=False))
    return f"<section><h2>Configuration</h2><pre>{text}</pre></section>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _facts(facts: Mapping[str, str]) -> str:
    return _table((), [(name, value) for name, value in facts.items() if value])


def _table(titles: Row, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = f"<thead><tr>{_cells(titles, 'th')}</tr></thead>" if titles else ""
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _cells(row: Iterable[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
