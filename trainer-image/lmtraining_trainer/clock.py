"""One clock that is cut at each change of state.

Promise: the seconds by state add up to the time since the clock began, because nothing else is
measured: what is moved from one state to another is there only once.
Trap avoided: stretches that are timed one by one leave gaps and overlaps between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, kw_only=True)
class Clock(Generic[Name]):
    """Seconds by state. `since` is the monotonic time at which the present stretch began."""

    state: Name
    since: float
    past_seconds: Mapping[Name, float] = field(default_factory=dict)

    def turned(self, state: Name, now: float) -> "Clock[Name]":
        """The clock once another stretch has begun, of `state`."""
        return Clock(state=state, since=now, past_seconds=self.seconds(now))

    def renamed(self, state: Name) -> "Clock[Name]":
        """The clock where the present stretch turns out to have been `state` all along."""
        return replace(self, state=state)

    def moved(self, source: Name, target: Name, seconds: float) -> "Clock[Name]":
        """The clock with so many past seconds of `source`, or as many as there are, in `target`."""
        moved = min(seconds, self.past_seconds.get(source, 0.0))
        past = dict(self.past_seconds)
        past[source] = past.get(source, 0.0) - moved
        past[target] = past.get(target, 0.0) + moved
        return replace(self, past_seconds=past)

    def seconds(self, now: float) -> dict[Name, float]:
        """Seconds spent in each state until now."""
        spent = dict(self.past_seconds)
        spent[self.state] = spent.get(self.state, 0.0) + max(0.0, now - self.since)
        return spent
