"""One answer to "why?"."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmtraining_cli.snapshot import Event
from lmtraining_cli.wording import duration

EVIDENCE_MAX = 8
WORDS_LENGTH_MAX = 300


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The cause in one word and one sentence, what shows it, and what to do."""

    cause: str
    sentence: str
    fix: str
    evidence: Sequence[str] = ()
    is_trouble: bool = True
    """False where there is nothing to mend."""


def words_of(event: Event) -> str:
    """An event as evidence."""
    times = f" ({event.count} times)" if event.count > 1 else ""
    return f"event {event.reason} of {event.about}{times}: {shortened(event.message)}"


def shortened(text: str) -> str:
    """One line; the beginning where it is long."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= WORDS_LENGTH_MAX else f"{line[: WORDS_LENGTH_MAX - 1]}…"


def lasting(seconds: float) -> str:
    """for 3m5s."""
    return f"for {duration(seconds)}"
