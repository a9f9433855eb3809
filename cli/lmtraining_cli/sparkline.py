"""Curves in character cells."""

from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"
FULL = " ▁▂▃▄▅▆▇█"


def resampled(values: Sequence[float], width: int) -> list[float]:
    """`width` means of equal parts; fewer where there are fewer values."""
    if len(values) <= width:
        return list(values)
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    parts = [values[first:last] for first, last in pairwise(edges)]
    return [sum(part) / len(part) for part in parts if part]


def sparkline(values: Sequence[float], width: int) -> str:
    """One line; empty where there is nothing."""
    shown = resampled(values, width)
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int((value - low) / span * 8))] for value in shown)


def plot(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Lines of `height` rows, the largest value on top, with its scale before them."""
    shown = resampled(values, width)
    if not shown:
        return []
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    heights = [(value - low) / span * (height - 1) + 1 for value in shown]
    rows = []
    for row in reversed(range(height)):
        label = {height - 1: f"{high:9.4g}", 0: f"{low:9.4g}"}.get(row, " " * 9)
        rows.append(f"{label} " + "".join(_cell(one - row) for one in heights))
    return rows


def _cell(height: float) -> str:
    """A block of `height` cells, cut to one."""
    return FULL[max(0, min(8, round(height * 8)))]
