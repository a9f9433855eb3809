"""The way between one operator process and the API server, and what can go wrong on it.

Promise: a request takes time on its way there and back, and its answer is of the moment in between;
it may fail with or without effect, be answered from the past, or take effect long after everybody
has given up; the process may die just before or just after it. A dead process is never answered.
Trap avoided: faults at places where real ones do not happen. A read can fail and can be old; only a
write can be lost, and only an object's name and UID decide what it hits.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from lmtraining_operator.gateway import CONFLICT, NOT_FOUND, ApiError, Object
from tests.simulation.server import OPERATOR, ApiServer

TRAVEL_SECONDS = (0.001, 0.01)
SLOW_TRAVEL_SECONDS = (0.1, 1.0)
TIMEOUT_SECONDS = 30.0
"""As in the real gateway."""
LATE_SECONDS = (0.5, 12.0)
HIT_SHARE = 0.6
"""Of the requests while there is trouble; so it hits the middle of a pass too."""
ERRORS = {
    0: "Unreachable",
    CONFLICT: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
}


@dataclass
class Trouble:
    """What happens to the next requests, until it is used up."""

    kind: str
    """error, lost answer, timeout, late or stale."""
    count: int
    code: int = 0
    only: str = ""
    """The verb that it happens to, or "write" for any but reads; empty for all."""
    until: float = 0.0
    """Of stale reads: when they end."""
    lag_seconds: float = 0.0
    each_its_own: bool = False
    """Of stale reads: each from another moment of the past."""


class World(Protocol):
    """What the network needs of the world."""

    server: ApiServer

    def now(self) -> float: ...
    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None: ...
    def tell(self, text: str) -> None: ...


class Network:
    """Shared by all processes that were: trouble does not end with one of them."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.troubles: list[Trouble] = []
        self.crash_at_write: int | None = None
        """The process dies at this many writes from now."""
        self.crash_after = False
        self.slow_until = 0.0
        """Until then each request takes long, and the world moves on in the middle of a pass."""

    def take(self, verb: str) -> Trouble | None:
        """The trouble that a request with this verb (read, create and so on) meets."""
        now = self.world.now()
        self.troubles = [t for t in self.troubles if t.count > 0 and not 0 < t.until < now]
        for trouble in self.troubles:
            if trouble.kind == "stale":
                if verb == "read":
                    return trouble
            elif _concerns(trouble, verb) and self.random.random() < HIT_SHARE:
                trouble.count -= 1
                return trouble
        return None

    def clear(self) -> None:
        self.troubles.clear()
        self.slow_until = 0.0
        self.crash_at_write = None


def _concerns(trouble: Trouble, verb: str) -> bool:
    return trouble.only in ("", verb) or (trouble.only == "write" and verb != "read")


class SimulatedGateway:
    """`Gateway` of one operator process."""

    def __init__(self, network: Network, die: Callable[[], None]) -> None:
        self._network = network
        self._server = network.world.server
        self._die = die
        self.is_dead = False

    # --- reads ------------------------------------------------------------------------------

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        objects = await self._read()
        found = objects.get((kind, name))
        return dict(found) if found is not None else None

    async def list_objects(
        self, kind: str, namespace: str, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        found = self._server.matching(
            kind, labels=labels, fields=fields, objects=await self._read()
        )
        return [dict(one) for one in found]

    async def _read(self) -> Any:
        await self._travel()
        trouble = self._network.take("read")
        if trouble is not None and trouble.kind == "stale":
            return self._server.at(self._network.world.now() - self._lag(trouble))
        answer = self._server.objects
        if trouble is not None:
            await self._fail(trouble)
        await self._travel()
        return answer

    def _lag(self, trouble: Trouble) -> float:
        share = self._network.random.random() if trouble.each_its_own else 1.0
        return trouble.lag_seconds * share

    # --- writes -----------------------------------------------------------------------------

    async def create(self, body: Object) -> Object:
        what = f"create {body['kind']} {body['metadata']['name']}"
        made: Object = await self._write(what, lambda: self._server.create(body, OPERATOR))
        return made

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None
    ) -> None:
        await self._unless_gone(
            f"delete {kind} {name}",
            lambda: self._server.delete(
                (kind, name), OPERATOR, uid=uid, grace_seconds=grace_seconds
            ),
        )

    async def annotate(
        self, kind: str, namespace: str, name: str, *, uid: str, annotations: dict[str, str]
    ) -> None:
        await self._unless_gone(
            f"annotate {kind} {name}",
            lambda: self._server.annotate((kind, name), OPERATOR, uid=uid, annotations=annotations),
        )

    async def apply_status(self, body: Object) -> Object:
        written = await self._write(
            "apply status", lambda: self._server.apply_status(body, OPERATOR)
        )
        return dict(written)

    async def _unless_gone(self, what: str, act: Callable[[], Any]) -> None:
        """As the real gateway does: what was meant is gone."""
        try:
            await self._write(what, act)
        except ApiError as error:
            if error.code not in (NOT_FOUND, CONFLICT):
                raise

    async def _write(self, what: str, act: Callable[[], Any]) -> Any:
        await self._travel()
        dies_after = await self._maybe_die(what)
        trouble = self._network.take(what.partition(" ")[0])
        if trouble is not None and trouble.kind in ("late", "lost answer"):
            self._act_anyway(what, act, is_late=trouble.kind == "late")
        if trouble is not None:
            self._network.world.tell(f"  {what}: {trouble.kind} {trouble.code or ''}")
            await self._fail(trouble)
        answer = act()
        if dies_after:
            await self._death(f"after: {what}")
        await self._travel()
        return answer

    def _act_anyway(self, what: str, act: Callable[[], Any], *, is_late: bool) -> None:
        """The request takes effect, now or later, and nobody hears of it."""

        def arrive() -> None:
            try:
                act()
            except ApiError as error:
                self._network.world.tell(f"  {what} arrives late: {error}")

        delay = self._network.random.uniform(*LATE_SECONDS) if is_late else 0.0
        self._network.world.later(delay, arrive)

    # --- trouble ----------------------------------------------------------------------------

    async def _travel(self) -> None:
        network = self._network
        is_slow = network.world.now() < network.slow_until
        span = SLOW_TRAVEL_SECONDS if is_slow else TRAVEL_SECONDS
        await asyncio.sleep(network.random.uniform(*span))
        if self.is_dead:
            await asyncio.Event().wait()

    async def _fail(self, trouble: Trouble) -> None:
        if trouble.kind == "timeout":
            await asyncio.sleep(TIMEOUT_SECONDS)
        if self.is_dead:
            await asyncio.Event().wait()
        code = trouble.code if trouble.kind == "error" else 0
        raise ApiError(code, ERRORS[code], "the simulation says so")

    async def _maybe_die(self, what: str) -> bool:
        """True when the process is to die once the write has taken effect."""
        network = self._network
        if network.crash_at_write is None:
            return False
        network.crash_at_write -= 1
        if network.crash_at_write > 0:
            return False
        network.crash_at_write = None
        if network.crash_after:
            return True
        await self._death(f"before: {what}")
        return False

    async def _death(self, when: str) -> None:
        self._network.world.tell(f"the operator dies {when}")
        self._die()
        await asyncio.Event().wait()
