"""What earlier gangs have spent, for the next one.

Promise: what a kill takes from the accounts is at most `MARK_SECONDS`, which then counts with the
time until the next start. The mark is not synced: it survives the death of the process, not of the
node; after that the journal knows what was spent until the start of the gang that died.
Trap avoided: a gang that was replaced and does not know it writes its mark over the newer one's. A
mark says on which start it builds, and any but the newest start's is passed over.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from lmtraining_api import JournalEntry, Record, TimeAccounts

MARK_SECONDS = 1.0
MARK = "accounts.json"

Detail = dict[str, str | int | float | bool | None]


class Spent(Record):
    """Seconds by cause until `as_of`."""

    as_of: AwareDatetime
    accounts: TimeAccounts = TimeAccounts()
    trained_seconds: float = 0.0
    """Productive seconds that are in the model, those before a takeover too."""
    ended_as_told: bool = False
    """The ranks were told to end, or had finished."""
    after_fault: bool = False
    """Of a start: the ranks before it ended otherwise."""
    start: int = -1
    """Sequence number of the journal's entry of the start that this builds on."""

    def detail(self) -> Detail:
        """As the journal keeps it."""
        seconds = self.accounts.model_dump(by_alias=False)
        times = {"trained_seconds": self.trained_seconds, "as_of": self.as_of.isoformat()}
        return {**seconds, **times, "after_fault": self.after_fault}


def spent_until(now: datetime, directory: Path, entries: Sequence[JournalEntry]) -> Spent:
    """What was spent before a start now. What cannot be read counts as not recorded."""
    known = _recorded(directory, entries)
    if known is None:
        return Spent(as_of=now)
    gap = max(0.0, (now - known.as_of).total_seconds())
    cause = "stopped" if known.ended_as_told else "recovery"
    seconds = known.accounts.model_dump(by_alias=False)
    accounts = TimeAccounts.model_validate(seconds | {cause: round(seconds[cause] + gap, 3)})
    return Spent(
        as_of=now,
        accounts=accounts,
        trained_seconds=known.trained_seconds,
        after_fault=not known.ended_as_told,
    )


def write_mark(directory: Path, spent: Spent) -> None:
    """By one rename, so that a kill leaves the old one. Raises OSError."""
    temporary = directory / f".{MARK}"
    temporary.write_text(spent.model_dump_json())
    temporary.replace(directory / MARK)


def _recorded(directory: Path, entries: Sequence[JournalEntry]) -> Spent | None:
    starts = [entry for entry in entries if entry.kind == "Started"]
    if not starts:
        return None
    newest = starts[-1]
    mark = _mark(directory / MARK)
    return mark if mark and mark.start == newest.sequence else _at_start(newest)


def _at_start(start: JournalEntry) -> Spent:
    """What was spent when that gang started."""
    try:
        return Spent.model_validate({**start.detail, "accounts": start.detail})
    except ValidationError:
        return Spent(as_of=start.time)


def _mark(path: Path) -> Spent | None:
    try:
        return Spent.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
