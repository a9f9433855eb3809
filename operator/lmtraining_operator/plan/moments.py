"""Moments that somebody else wrote down.

Promise: no sum of them fails; one that lies beyond the calendar is its last moment. Trap avoided: a
status that was edited by hand, or a report of a clock gone mad, with which every look at the job
ends in an OverflowError.
"""

from datetime import UTC, datetime, timedelta

LAST = datetime.max.replace(tzinfo=UTC)


def later(moment: datetime, seconds: float) -> datetime:
    """So many seconds after the moment."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return LAST
