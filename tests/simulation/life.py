"""One schedule, lived from the first write to rest.

Promise: a schedule is a seed, the shape of a job and a list of faults, each with the phase of the
job in which it strikes; the same schedule is the same life. A life that goes wrong says how, with
its whole story.
"""

import asyncio
import functools
import logging
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.simulation.clock import VirtualLoop
from tests.simulation.faults import KINDS
from tests.simulation.mishaps import calm
from tests.simulation.operator_process import WatchedReconciler
from tests.simulation.oracles import Oracles
from tests.simulation.world import PERSON, PHASES, Shape, World

FAULTS_MAX = 5
DELAY_SECONDS = (0.0, 0.0, 0.05, 0.3, 1.0, 2.5)
ACTIVE = ("Pending", "Starting", "Training", "Saving")
CAUSES = {
    "Suspended": ("job is suspended",),
    "Recovering": ("pod fails", "pod is drained", "pod is deleted by force"),
    "ended pod is tidied": ("pod fails",),
    "job is made again": ("deletion comes late",),
}
"""What brings a job into a phase, or makes what a fault needs, that is not there by itself."""
HOSTILE_SECONDS_MAX = 90.0
"""Faults that have found no occasion by then find none."""
ENDED_SECONDS_MAX = 5.0
"""The same once the job has ended."""
TRIES_MAX, TRY_SECONDS = 8, 0.15
"""A fault that finds nothing to happen to tries again, while the job is in its phase."""
CALM_SECONDS_MAX = 3000.0
LOOKS_TO_REST_MAX = 400
QUIET_SECONDS = 65.0
"""So long nothing may be written once all is done; longer than any patience of a finished job."""
TICK_SECONDS = 1.0
STORY_LINES_MAX = 400


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    phase: str
    delay_seconds: float
    salt: int
    """Seed of what it draws."""

    def __str__(self) -> str:
        return f"{self.kind} in {self.phase} after {self.delay_seconds} s (salt {self.salt})"


@dataclass(frozen=True)
class Schedule:
    """All that decides a life."""

    seed: int
    shape: Shape
    faults: tuple[Fault, ...] = ()


@dataclass
class Life:
    """What has come of a schedule."""

    schedule: Schedule
    violations: list[str] = field(default_factory=list)
    fired: list[tuple[str, str]] = field(default_factory=list)
    looks_to_rest: int = 0
    seconds: float = 0.0
    outcome: dict[str, Any] = field(default_factory=dict)
    story: list[tuple[float, str]] = field(default_factory=list)

    def told(self) -> str:
        """The whole story, for a person."""
        faults = "\n".join(f"  - {fault}" for fault in self.schedule.faults) or "  none"
        lines = [f"{time:9.3f}  {text}" for time, text in self.story]
        if len(lines) > STORY_LINES_MAX:
            half = STORY_LINES_MAX // 2
            lines = [*lines[:half], f"  … {len(lines) - 2 * half} lines …", *lines[-half:]]
        return "\n".join(
            [
                f"seed {self.schedule.seed}, {self.schedule.shape}, faults:\n{faults}",
                *lines,
                *(f"violated: {text}" for text in self.violations),
            ]
        )


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(seed)
    shape = Shape(
        replicas=random.choice([1, 2, 2, 3]),
        waits_in_place=random.random() < 0.85,
        restarts_max=random.choice([1, 100, 100, 100]),
        grace_seconds=random.choice([2, 20]),
        detect_seconds=random.choice([3.0, 30.0]),
    )
    kinds = sorted(KINDS)
    first = [(kind, phase) for kind in kinds for phase in PHASES if phase not in KINDS[kind].never]
    pairs = [
        first[seed % len(first)],
        *(
            (random.choice(kinds), random.choice(PHASES))
            for _ in range(random.randrange(FAULTS_MAX))
        ),
    ]
    struck = {word for pair in pairs for word in pair}
    pairs += [
        (random.choice(causes), random.choice(ACTIVE))
        for word, causes in CAUSES.items()
        if word in struck
    ]
    faults = (
        Fault(kind, phase, random.choice(DELAY_SECONDS), random.randrange(2**16))
        for kind, phase in pairs
    )
    return Schedule(seed, shape, tuple(faults))


def live(schedule: Schedule, reconciler_class: type[WatchedReconciler] = WatchedReconciler) -> Life:
    """Live it."""
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    try:
        life = loop.run_until_complete(_live(loop, schedule, reconciler_class))
    finally:
        _close(loop)
        logging.disable(logging.NOTSET)
    _compare(life)
    return life


def _close(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


async def _live(
    loop: VirtualLoop, schedule: Schedule, reconciler_class: type[WatchedReconciler]
) -> Life:
    world = World(loop, schedule.shape, schedule.seed)
    world.operator.reconciler_class = reconciler_class
    oracles = Oracles(world)
    strikes = _Strikes(world, oracles, list(schedule.faults))
    world.operator.start()
    world.server.create(world.shape.job(), PERSON)
    life = Life(schedule, story=world.story)
    await strikes.over()
    calm(world)
    looks = world.operator.looks
    await _rest(world)
    life.looks_to_rest = world.operator.looks - looks
    await _stays(world, oracles)
    oracles.at_rest()
    life.fired, life.violations = oracles.fired, world.violations
    life.outcome, life.seconds = oracles.outcome(), world.now()
    return life


class _Strikes:
    """Lets the faults happen, each when the job is in its phase."""

    def __init__(self, world: World, oracles: Oracles, faults: list[Fault]) -> None:
        self._world, self._oracles, self._waiting = world, oracles, faults
        self._under_way = 0
        self._phase_began = 0.0
        world.phase_listeners.append(self._entered)

    def _entered(self, phase: str) -> None:
        self._phase_began = self._world.now()
        due = [fault for fault in self._waiting if fault.phase == phase]
        self._waiting = [fault for fault in self._waiting if fault.phase != phase]
        for fault in due:
            self._under_way += 1
            self._world.later(fault.delay_seconds, self._strike, fault)

    def _strike(self, fault: Fault, tries_left: int = TRIES_MAX) -> None:
        phase = self._world.phase or "none"
        self._world.tell(f"** {fault.kind}")
        if KINDS[fault.kind].act(self._world, Random(fault.salt)):
            self._under_way -= 1
            self._oracles.fired.append((fault.kind, phase))
            return
        self._world.tell("   finds nothing to happen to")
        if phase == fault.phase and tries_left:
            self._world.later(TRY_SECONDS, self._strike, fault, tries_left - 1)
        else:
            self._under_way -= 1
            self._waiting.append(fault)

    async def over(self) -> None:
        """Until all have happened, or no more can."""
        while self._under_way or self._may_come():  # noqa: ASYNC110  time is not real
            await asyncio.sleep(TICK_SECONDS)

    def _may_come(self) -> bool:
        is_ended = self._world.phase == "Ended"
        limit = ENDED_SECONDS_MAX if is_ended else HOSTILE_SECONDS_MAX
        began = self._phase_began if is_ended else 0.0
        return bool(self._waiting) and self._world.now() < began + limit


async def _rest(world: World) -> None:
    """Until nothing is left to do."""
    limit = world.now() + CALM_SECONDS_MAX
    looks = world.operator.looks
    while not _is_at_rest(world):
        if world.now() > limit:
            world.violated(f"P12: no rest within {CALM_SECONDS_MAX:.0f} s")
            return
        if world.operator.looks - looks > LOOKS_TO_REST_MAX:
            world.violated(f"P12: no rest within {LOOKS_TO_REST_MAX} looks")
            return
        await asyncio.sleep(TICK_SECONDS)


def _is_at_rest(world: World) -> bool:
    is_over = world.job is None or world.phase == "Ended"
    runs = any(container.is_running for container in world.trainers.containers.values())
    return is_over and not runs and not world.operator.busy_jobs


async def _stays(world: World, oracles: Oracles) -> None:
    """It gets there, and stays."""
    await asyncio.sleep(QUIET_SECONDS)
    writes, looks = oracles.writes, world.operator.looks
    await asyncio.sleep(QUIET_SECONDS)
    if oracles.writes != writes:
        world.violated("P12: the operator writes on when all is done")
    if world.operator.looks != looks:
        world.violated("P12: the operator looks on when all is done")


def _compare(life: Life) -> None:
    """Where only harmless things went wrong, the end and the counts are those of a clean life."""
    if not life.fired or not all(KINDS[kind].is_harmless for kind, _ in life.fired):
        return
    clean = clean_outcome(life.schedule.shape)
    for name, value in life.outcome.items():
        if value != clean[name]:
            life.violations.append(f"{name} is {value}, and {clean[name]} in a life without faults")


@functools.cache
def clean_outcome(shape: Shape) -> dict[str, Any]:
    """What comes of a life in which nothing goes wrong."""
    return live(Schedule(0, shape)).outcome


def minimised(
    schedule: Schedule, reconciler_class: type[WatchedReconciler] = WatchedReconciler
) -> Life:
    """The same violation with as few faults as possible: each is left out if it goes wrong
    without it too."""
    worst = live(schedule, reconciler_class)
    faults = list(schedule.faults)
    for fault in schedule.faults:
        fewer = tuple(one for one in faults if one is not fault)
        life = live(replace(schedule, faults=fewer), reconciler_class)
        if life.violations:
            faults, worst = list(fewer), life
    return worst
