"""Curves and bars as SVG.

Promise: a curve is drawn from at most two values per column, the least and the largest of it, so no
spike is lost and the file stays small; its scale is in data attributes, so that what is drawn can
be read back. Colours come from the page's style, for light and dark.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lmtraining_api.history import Happening, Point
from lmtraining_cli.wording import duration

WIDTH, HEIGHT = 720, 230
LEFT, RIGHT, TOP, BOTTOM = 80, 12, 12, 28  # on a phone six figures take 70
COLUMNS_MAX = 640
TICKS = 5
HAPPENINGS_DRAWN_MAX = 200

Pair = tuple[float, float]
Value = Callable[[Point], float | None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From steps and values to the drawing, and back."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    def at(self, pair: Pair) -> Pair:
        """Where a value is drawn."""
        x = LEFT + (pair[0] - self.x_min) / _span(self.x_min, self.x_max) * (WIDTH - LEFT - RIGHT)
        share = (pair[1] - self.y_min) / _span(self.y_min, self.y_max)
        return x, HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    @property
    def attributes(self) -> str:
        """For who reads the drawing back."""
        names = ("x_min", "x_max", "y_min", "y_max")
        return " ".join(
            f'data-{name.replace("_", "-")}="{getattr(self, name)!r}"' for name in names
        )


def pairs_of(points: Sequence[Point], value: Value) -> list[Pair]:
    """Step and value, where there is one."""
    found = ((float(point.step), value(point)) for point in points)
    return [(step, number) for step, number in found if number is not None]


def thinned(pairs: Sequence[Pair], columns: int = COLUMNS_MAX) -> list[Pair]:
    """At most two of each column: the least and the largest, in the order of their steps."""
    if len(pairs) <= 2 * columns:
        return list(pairs)
    low, high = pairs[0][0], pairs[-1][0]
    buckets: dict[int, list[Pair]] = {}
    for pair in pairs:
        column = int((pair[0] - low) / _span(low, high) * (columns - 1))
        buckets.setdefault(column, []).append(pair)
    kept: list[Pair] = []
    for column in sorted(buckets):
        bucket = buckets[column]
        extremes = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
        kept += sorted(extremes)
    return kept if kept[-1] == pairs[-1] else [*kept, pairs[-1]]


def curve(
    identity: str,
    lines: Mapping[str, Sequence[Pair]],
    *,
    unit: str,
    happenings: Sequence[Happening] = (),
    band: tuple[Sequence[Pair], Sequence[Pair]] | None = None,
    baseline: float | None = None,
) -> str:
    """One chart of one or more lines over steps; empty where there is nothing to draw."""
    known = {name: thinned(pairs) for name, pairs in lines.items() if pairs}
    if not known:
        return ""
    edges = [*band[0], *band[1]] if band else []
    scale = _scale([*(pair for pairs in known.values() for pair in pairs), *edges], baseline)
    parts = [
        f'<svg id="{identity}" class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(", ".join(known))} by step" {scale.attributes}>',
        _axes(scale, unit),
        _band(scale, band) if band else "",
        _baseline(scale, baseline) if baseline is not None else "",
        *(_marks(scale, happenings)),
        *(_line(scale, name, pairs, number) for number, (name, pairs) in enumerate(known.items())),
        "</svg>",
    ]
    return "".join(parts)


def bar(accounts: Mapping[str, float]) -> str:
    """Where the time went, as one bar."""
    wall = sum(accounts.values())
    if wall <= 0:
        return ""
    x, parts = 0.0, []
    for name, seconds in accounts.items():
        width = seconds / wall * WIDTH
        if width > 0:
            said = f"{name.replace('_', ' ')}: {seconds / wall:.1%}, {duration(seconds)}"
            parts.append(
                f'<rect class="account {name}" x="{x:.2f}" y="0" width="{width:.2f}" height="28" '
                f'data-seconds="{seconds!r}"><title>{escape(said)}</title></rect>'
            )
        x += width
    return (
        f'<svg id="goodput" viewBox="0 0 {WIDTH} 28" role="img" aria-label="goodput">'
        f"{''.join(parts)}</svg>"
    )


def ticks_of(low: float, high: float) -> list[float]:
    """Round values within the range."""
    span = _span(low, high)
    size = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= TICKS + 1)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """As short as it can be read: 24,000, 0.003, 2e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _scale(pairs: Sequence[Pair], baseline: float | None) -> Scale:
    steps = [step for step, _ in pairs]
    values = [value for _, value in pairs] + ([baseline] if baseline is not None else [])
    low, high = min(values), max(values)
    margin = 0.05 * _span(low, high)
    return Scale(
        x_min=min(steps), x_max=max(steps), y_min=low - margin if low < 0 or low > margin else 0.0,
        y_max=high + margin,
    )  # fmt: skip


def _axes(scale: Scale, unit: str) -> str:
    parts = []
    for value in ticks_of(scale.y_min, scale.y_max):
        _, y = scale.at((scale.x_min, value))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{tick_text(value)}</text>"
        )
    for step in ticks_of(scale.x_min, scale.x_max):
        x, _ = scale.at((step, scale.y_min))
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{tick_text(step)}</text>"
        )
    parts.append(f'<text class="unit" x="{LEFT + 4}" y="{TOP + 8}">{escape(unit)}</text>')
    return "".join(parts)


def _line(scale: Scale, name: str, pairs: Sequence[Pair], number: int) -> str:
    drawn = " ".join(f"{x:.2f},{y:.2f}" for x, y in map(scale.at, pairs))
    if len(pairs) == 1:
        x, y = scale.at(pairs[0])
        dot = f'cx="{x:.2f}" cy="{y:.2f}" r="3"'
        return f'<circle class="line-{number}" data-name="{escape(name)}" {dot}/>'
    return f'<polyline class="line-{number}" data-name="{escape(name)}" points="{drawn}"/>'


def _band(scale: Scale, band: tuple[Sequence[Pair], Sequence[Pair]]) -> str:
    low, high = (thinned(pairs) for pairs in band)
    edge = [*map(scale.at, low), *map(scale.at, reversed(high))]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    return f'<polygon class="band" points="{drawn}"/>'


def _baseline(scale: Scale, value: float) -> str:
    _, y = scale.at((scale.x_min, value))
    return (
        f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}">'
        f"<title>unigram {value:.4g}</title></line>"
    )


def _marks(scale: Scale, happenings: Sequence[Happening]) -> list[str]:
    """The newest of them, where there are very many."""
    shown = [one for one in happenings if scale.x_min <= one.step <= scale.x_max]
    marks = []
    for one in shown[-HAPPENINGS_DRAWN_MAX:]:
        x, _ = scale.at((one.step, scale.y_min))
        said = escape(f"{one.kind} at step {one.step}: {one.message}")
        marks.append(
            f'<line class="mark {escape(one.kind)}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"><title>{said}</title></line>'
        )
    return marks


def _span(low: float, high: float) -> float:
    return (high - low) or 1.0
