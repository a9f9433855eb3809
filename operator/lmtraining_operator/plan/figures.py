"""Numbers as short strings for a person.

Promise: whatever number another process claims, the string is short: status has room for 32
characters. Trap avoided: kubectl prints 14 digits of a raw float, and NaN is not JSON.
"""

import math

MESSAGE_LENGTH_MAX = 1024
COUNT_MAX = 2**53 - 1
DAYS_MAX = 99_999
PLAIN_MAX = 1e6
"""From here on a number is written with an exponent."""


def number(value: float | None, digits: int = 4) -> str:
    """3.4123, or 6.0e-04 where the decimals would not show it; empty when there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-3 <= abs(value) < PLAIN_MAX:
        return f"{value:.1e}"
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(step: int, total: int) -> str:
    """42%; never 100% before the last step."""
    step, total = count(step), count(total)
    return f"{100 * step // total}%" if total else ""


def share(value: float | None, digits: int = 0) -> str:
    """3%; empty when there is none."""
    known = value is not None and math.isfinite(value)
    return f"{_plain(100 * (value or 0.0), digits=digits)}%" if known else ""


def duration(seconds: float | None) -> str:
    """The two largest units: 1d2h, 1h20m, 3m5s, 8s."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ""
    if seconds > DAYS_MAX * 86400:
        return f">{DAYS_MAX}d"
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        whole, left = divmod(left, size)
        if whole or parts or unit == "s":
            parts.append(f"{whole}{unit}")
    return "".join(part for part in parts[:2] if part[:-1] != "0") or "0s"


def seconds(value: float | None) -> str:
    """12.3"""
    return "" if value is None or not math.isfinite(value) else _plain(value, digits=1)


def _plain(value: float, *, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < PLAIN_MAX else f"{value:.1e}"


def bounded(text: str, limit: int = MESSAGE_LENGTH_MAX) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def count(value: int) -> int:
    """A number that another process claims, or one more than status says, within what status can
    hold."""
    return min(max(value, 0), COUNT_MAX)
