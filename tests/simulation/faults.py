"""What can go wrong, each under a name, and what each is good for.

Promise: a fault is a function of the world and of random numbers of its own; it says whether it
found something to happen to. What it breaks for a while it mends itself, or `calm` does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from lmtraining_api import names as api
from tests.simulation.network import Trouble
from tests.simulation.world import World

Act = Callable[[World, Random], bool]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault."""

    act: Act
    is_harmless: bool = False
    """Such a life must come to the same, by the same creations and deletions, as one without."""
    is_charged: bool = False
    """It may spend recovery.restartsMax."""
    never: frozenset[str] = frozenset()
    """Phases in which it finds nothing to happen to."""
    forgets: bool = False
    """What was said of the job before is lost: nobody can tell what was charged or made by then."""
    sees_the_past: bool = False
    """Reads are not of now: what rests on a fresh view cannot be asked."""


KINDS: dict[str, Kind] = {}


def fault(**properties: Any) -> Callable[[Act], Act]:
    """Enter the function under its name."""

    def enter(act: Act) -> Act:
        KINDS[act.__name__.replace("_", " ")] = Kind(act=act, **properties)
        return act

    return enter


def enter(name: str, act: Act, **properties: Any) -> None:
    KINDS[name] = Kind(act=act, **properties)


# --- the operator ---------------------------------------------------------------------------


def _crash_at_write(*, after: bool) -> Act:
    def act(world: World, random: Random) -> bool:
        if world.operator.tasks is None:
            return False
        world.network.crash_at_write = random.randint(1, 4)
        world.network.crash_after = after
        return True

    return act


enter("operator dies before a write", _crash_at_write(after=False), is_harmless=True)
enter("operator dies after a write", _crash_at_write(after=True), is_harmless=True)


@fault(is_harmless=True)
def operator_dies(world: World, random: Random) -> bool:
    is_up = world.operator.tasks is not None
    world.operator.die()
    return is_up


# --- events ---------------------------------------------------------------------------------


@fault(is_harmless=True)
def events_are_late(world: World, random: Random) -> bool:
    world.operator.hold_until = world.now() + random.uniform(1.0, 25.0)
    return True


@fault(is_harmless=True)
def events_are_lost(world: World, random: Random) -> bool:
    world.operator.drops += random.randint(1, 8)
    return True


@fault(is_harmless=True)
def events_come_twice(world: World, random: Random) -> bool:
    world.operator.repeats += random.randint(1, 8)
    return True


def _stream_breaks(kind: str) -> Act:
    def act(world: World, random: Random) -> bool:
        world.operator.break_stream(kind, random.uniform(0.5, 20.0))
        return world.operator.tasks is not None

    return act


enter("watch of jobs breaks", _stream_breaks(api.KIND), is_harmless=True)
enter("watch of pods breaks", _stream_breaks("Pod"), is_harmless=True)

# --- the API server ---------------------------------------------------------------------------


def _trouble(kind: str, *, code: int = 0, only: str = "", most: int = 4) -> Act:
    def act(world: World, random: Random) -> bool:
        count = random.randint(1, most)
        world.network.troubles.append(Trouble(kind, count, code=code, only=only))
        return True

    return act


def _stale(*, each_its_own: bool) -> Act:
    def act(world: World, random: Random) -> bool:
        until = world.now() + random.uniform(2.0, 15.0)
        world.network.troubles.append(
            Trouble(
                "stale",
                1,
                until=until,
                lag_seconds=random.choice([0.2, 1.0, 4.0, 12.0]),
                each_its_own=each_its_own,
            )
        )
        return True

    return act


enter("409", _trouble("error", code=409, only="write"), is_harmless=True)
enter("410", _trouble("error", code=410), is_harmless=True)
enter("429", _trouble("error", code=429), is_harmless=True)
enter("500", _trouble("error", code=500), is_harmless=True)
enter("timeout", _trouble("timeout", most=2), is_harmless=True)
enter("answer is lost", _trouble("lost answer", only="write"), is_harmless=True)
enter("write comes late", _trouble("late", only="write", most=2), is_harmless=True)
enter("deletion comes late", _trouble("late", only="delete"), is_harmless=True)
enter("reads are old", _stale(each_its_own=False), sees_the_past=True)
enter("reads are of different times", _stale(each_its_own=True), sees_the_past=True)


@fault(is_harmless=True)
def requests_are_slow(world: World, random: Random) -> bool:
    world.network.slow_until = world.now() + random.uniform(3.0, 20.0)
    return True


def _quota(kind: str) -> Act:
    def act(world: World, random: Random) -> bool:
        what = "count/pods" if random.random() < 0.3 else "requests.cpu"
        world.server.refused[kind] = f"exceeded quota: team, requested: {what}=1"
        world.later(random.uniform(2.0, 20.0), lambda: world.server.refused.pop(kind, None))
        return True

    return act


enter("quota refuses pods", _quota("Pod"))
enter("quota refuses the job file", _quota("ConfigMap"), is_harmless=True)
enter("events are refused", _quota("Event"), is_harmless=True)


# --- clocks ---------------------------------------------------------------------------------


@fault()
def clock_jumps_ahead(world: World, random: Random) -> bool:
    world.clock_jump_seconds += random.choice([5.0, 120.0, 3600.0])
    return True


@fault()
def clock_jumps_back(world: World, random: Random) -> bool:
    world.clock_jump_seconds -= random.choice([5.0, 120.0, 3600.0])
    return True


# --- reports --------------------------------------------------------------------------------


def _lie(kind: str) -> Act:
    def act(world: World, random: Random) -> bool:
        world.operator.lies.kind = kind
        world.operator.lies.count = random.randint(1, 6)
        return True

    return act


for _name in ("garbage", "foreign", "old", "silent"):
    enter(f"report is {_name}", _lie(_name), is_harmless=True)
