"""One process of the operator, and the next one after it dies.

Promise: handlers, tasks, passes, policy and status are the real ones; only gateway, reports and
clock are not. Events reach the process as kopf gives them: those of a kind in order, late, some
twice, some never, and a stream that breaks is followed by a list of what is left, which tells of no
deletion.
Trap avoided: an operator that hears of everything at once and so never needs its own patience.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Protocol

import kopf

from lmtraining_api import names as api
from lmtraining_operator import handlers
from lmtraining_operator.gateway import ApiError
from lmtraining_operator.metrics import Metrics
from lmtraining_operator.plan import Settings
from lmtraining_operator.reconcile import JobKey, JobReconciler, Outcome
from lmtraining_operator.reports import REPORT_SECONDS_MAX, ReportError, parse
from lmtraining_operator.tasks import JobTasks
from tests.simulation.clock import moment
from tests.simulation.network import Network, SimulatedGateway
from tests.simulation.server import ApiServer, Change
from tests.simulation.trainers import Trainers

SETTINGS = Settings(trainer_image="registry.example/trainer:1", reads_nodes=True)
EVENT_SECONDS = (0.005, 0.08)
RESTART_SECONDS = (0.5, 4.0)
CHOSEN = {api.KIND: "job_changed", "Pod": "pod_changed"}


class World(Protocol):
    """What the operator's process needs of the world."""

    server: ApiServer
    trainers: Trainers
    network: Network
    clock_jump_seconds: float

    def now(self) -> float: ...
    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None: ...
    def tell(self, text: str) -> None: ...
    def violated(self, text: str) -> None: ...


class Lies:
    """What the next pulls of a report bring instead of the truth."""

    def __init__(self) -> None:
        self.kind = ""
        self.count = 0
        self.old: list[bytes] = []

    def take(self) -> str:
        if self.count <= 0:
            return ""
        self.count -= 1
        return self.kind


class SimulatedReports:
    """`Reports`: the bytes are the fake trainers', their reader is the real one."""

    def __init__(self, world: World, lies: Lies, random: Random) -> None:
        self._world, self._lies, self._random = world, lies, random

    async def pull(self, address: str, *, job_uid: str, attempt: int) -> Any:
        await asyncio.sleep(self._random.uniform(0.001, 0.01))
        content = await self._answer(address)
        return parse(content, job_uid=job_uid, attempt=attempt)

    async def _answer(self, address: str) -> bytes:
        lie = self._lies.take()
        if lie == "silent":
            await asyncio.sleep(REPORT_SECONDS_MAX)
            raise ReportError("no answer")
        containers = self._world.trainers.containers.values()
        found = next((c for c in containers if c.address == address and c.is_running), None)
        if found is None or found.node.is_cut_off:
            raise ReportError("no connection")
        content = self._world.trainers.report(found)
        return self._lied(lie, content) if lie else self._remembered(content)

    def _remembered(self, content: bytes) -> bytes:
        self._lies.old = [*self._lies.old[-30:], content]
        return content

    def _lied(self, lie: str, content: bytes) -> bytes:
        if lie == "garbage":
            return self._random.choice([b"", b"\x00\xff", b"{", b"[]", b'{"step": "many"}'])
        if lie == "foreign":
            return content.replace(b'"jobUid": "', b'"jobUid": "x')
        if lie == "old":
            return self._older(content)
        raise AssertionError(lie)

    def _older(self, content: bytes) -> bytes:
        """What another life, another attempt or another gang has said."""
        now = json.loads(content)
        others = [old for old in self._lies.old if not _is_of_same_gang(json.loads(old), now)]
        return self._random.choice(others) if others else content


def _is_of_same_gang(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("jobUid", "attempt", "gang"))


class WatchedReconciler(JobReconciler):
    """The real one, counted and overheard."""

    world: World
    count: Callable[[], None]

    async def look(self) -> Outcome:
        self.count()
        return await self._overheard(super().look())

    async def after_report(self) -> Outcome:
        return await self._overheard(super().after_report())

    async def pull_report(self) -> bool:
        return await self._overheard(super().pull_report())

    async def _overheard(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except (ApiError, asyncio.CancelledError):
            raise
        except Exception as error:
            self.world.violated(f"a pass raised {type(error).__name__}: {error}")
            raise


METRICS = Metrics("simulation")


class OperatorProcess:
    """Starts, hears, works, dies."""

    def __init__(self, world: World, random: Random) -> None:
        self._world, self._random = world, random
        self.lies = Lies()
        self.reconciler_class: type[WatchedReconciler] = WatchedReconciler
        self.looks = 0
        self.starts = 0
        self.hold_until = 0.0
        """Events that come before are delivered then."""
        self.drops = 0
        """Events that will not come."""
        self.repeats = 0
        self._deaf_kinds: set[str] = set()
        self._last_delivery: dict[str, float] = {}
        self._handlers: dict[str, Any] = {}
        self.tasks: JobTasks | None = None
        self._gateway: SimulatedGateway | None = None
        world.server.listeners.append(self._changed)

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        if self.tasks is not None:
            return
        self.starts += 1
        self._world.tell(f"operator process {self.starts} starts")
        self._gateway = SimulatedGateway(self._world.network, self.die)
        self.tasks = JobTasks(self._make, METRICS)
        registry = handlers.registry(self.tasks)
        self._handlers = {
            handler.fn.__name__: handler.fn for handler in registry._watching.get_all_handlers()
        }
        self._deaf_kinds.clear()
        for kind in CHOSEN:
            self._relist(kind)

    def die(self) -> None:
        """The process is gone between two instructions; another one follows."""
        if self.tasks is None:
            return
        self._world.tell("the operator is dead")
        assert self._gateway is not None
        self._gateway.is_dead = True
        tasks, self.tasks = self.tasks, None
        for job in list(tasks._jobs.values()):
            if job.task is not None:
                job.task.cancel()
        self._world.later(self._random.uniform(*RESTART_SECONDS), self.start)

    def _make(self, key: JobKey) -> JobReconciler:
        assert self._gateway is not None
        made = self.reconciler_class(
            key,
            gateway=self._gateway,
            reports=SimulatedReports(self._world, self.lies, self._random),  # type: ignore[arg-type]
            settings=SETTINGS,
            clock=lambda: moment(self._world.now() + self._world.clock_jump_seconds),
        )
        made.world, made.count = self._world, self._count
        return made

    def _count(self) -> None:
        self.looks += 1

    @property
    def busy_jobs(self) -> int:
        """Jobs whose task has not ended."""
        return len(self.tasks._jobs) if self.tasks is not None else 0

    # --- events -----------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.kind not in CHOSEN or self.tasks is None or change.kind in self._deaf_kinds:
            return
        if self.drops > 0:
            self.drops -= 1
            self._world.tell(f"  the event of {change.kind} {change.name} is lost")
            return
        self._deliver(change.type, change)
        if self.repeats > 0:
            self.repeats -= 1
            self._deliver(change.type, change)

    def _deliver(self, type_: str | None, change: Change) -> None:
        now = self._world.now()
        at = max(now + self._random.uniform(*EVENT_SECONDS), self.hold_until)
        at = max(at, self._last_delivery.get(change.kind, 0.0))
        self._last_delivery[change.kind] = at
        self._world.later(at - now, self._hear, self.tasks, type_, change)

    def _hear(self, tasks: JobTasks, type_: str | None, change: Change) -> None:
        if tasks is not self.tasks:
            return  # it was told to a process that is dead
        labels = change.object["metadata"].get("labels", {})
        if change.kind == "Pod" and api.LABEL_JOB_UID not in labels:
            return
        handler = self._handlers[CHOSEN[change.kind]](body=kopf.Body(change.object), type=type_)
        try:
            handler.send(None)
        except StopIteration:
            return
        raise AssertionError("a handler only wakes, and so never waits")

    def break_stream(self, kind: str, seconds: float) -> None:
        """Nothing is heard for a while; then what is left is listed (410 Gone)."""
        self._deaf_kinds.add(kind)
        self._world.later(seconds, self._mend_stream, self.tasks, kind)

    def _mend_stream(self, tasks: JobTasks, kind: str) -> None:
        if tasks is self.tasks and tasks is not None:
            self._deaf_kinds.discard(kind)
            self._relist(kind)

    def _relist(self, kind: str) -> None:
        for found in self._world.server.of_kind(kind):
            self._deliver(None, Change("ADDED", found, ""))
