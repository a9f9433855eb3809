"""Numbers and times as a person reads them."""

from datetime import datetime

UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def duration(seconds: float) -> str:
    """The two largest units: 1d2h, 3m5s, 8s."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in UNITS:
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(part for part in parts[:2] if part[:-1] != "0") or "0s"


def seconds_of(text: str) -> float:
    """What `duration` wrote, as seconds; 0 where it is empty or something else."""
    sizes, total, digits = dict(UNITS), 0.0, ""
    for letter in text:
        if letter.isdigit() or letter == ".":
            digits += letter
        elif letter in sizes and digits:
            total, digits = total + float(digits) * sizes[letter], ""
    return total


def size(count: float) -> str:
    """Bytes as B, KB, MB, GB or TB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(time: datetime, now: datetime) -> str:
    """12s ago."""
    return f"{duration((now - time).total_seconds())} ago"


def plural(count: int, word: str) -> str:
    """1 pod, 2 pods."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def bytes_of(quantity: str) -> float:
    """A Kubernetes quantity as a number; 0 where it is none."""
    number = quantity.rstrip("mkKMGTPEi")
    factor = {
        "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
        "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
    }.get(quantity[len(number) :], 0.0)  # fmt: skip
    try:
        return float(number) * factor
    except ValueError:
        return 0.0
