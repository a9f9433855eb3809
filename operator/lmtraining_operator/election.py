"""Who leads: one Lease, held by one operator at a time.

Promise: the right to write is counted from before the request that renewed it, and ends
LEASE_SECONDS - HOLD_SECONDS before another operator may take the lease; a follower takes over
LEASE_SECONDS after the last renewal that it saw, and at once when the lease was given back. Traps
avoided: comparing the clocks of two machines (each counts by its own, from what it has seen); a
process that stood still and wakes up in the belief that it leads (the right is asked for at each
write and ends by time alone); a renewal that waits behind the requests of a thousand jobs (the
lease has a connection of its own).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from lmtraining_operator.gateway import CONFLICT, NOT_FOUND, ApiError, Object

LEASE_SECONDS = 7
"""How long others leave a lease alone that is not renewed."""
HOLD_SECONDS = 5.0
"""How long the holder writes after its last renewal."""
RENEW_SECONDS = 2.0
LOOK_SECONDS = 0.5
"""Time between two looks of a follower, and between two tries to renew that fail."""
REQUEST_SECONDS_MAX = 2.0
SEEN_SECONDS_MAX = 15.0
"""A follower that has not seen the lease for so long could not take over."""

logger = logging.getLogger(__name__)


class Leases(Protocol):
    """What is asked of the API server here."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None when there is none."""

    async def create(self, body: Object) -> Object:
        """Make it; ApiError 409 when the name is taken."""

    async def replace(self, body: Object) -> Object:
        """Write it over the version that it names; ApiError 409 when that is not the newest."""


class Leadership(Protocol):
    """The right to write."""

    def is_held(self) -> bool:
        """Whether this operator may write now."""

    async def win(self) -> None:
        """Return once it may."""

    async def keep(self) -> None:
        """Return once it may not any more."""

    async def give_up(self) -> None:
        """Write no more, and let the next one begin at once."""

    def problem(self) -> str:
        """Why this operator could not take over, in a sentence; empty when it could."""


class Alone:
    """The right of an operator that was told to be the only one."""

    def is_held(self) -> bool:
        return True

    async def win(self) -> None:
        """At once."""

    async def keep(self) -> None:
        await asyncio.Event().wait()

    async def give_up(self) -> None:
        """Nobody waits for it."""

    def problem(self) -> str:
        return ""


@dataclass(frozen=True)
class LeaseName:
    """Where the Lease is."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "LeaseName":
        """Of "namespace/name"."""
        namespace, _, name = text.partition("/")
        if not namespace or not name or "/" in name:
            raise ValueError(f"{text!r} is not NAMESPACE/NAME, such as lmtraining-system/operator")
        return cls(namespace, name)


class Election:
    """The right of whoever holds the Lease."""

    def __init__(
        self,
        leases: Leases,
        lease: LeaseName,
        *,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._identity = identity
        self._clock = clock
        self._now = now
        self._held_until = 0.0
        self._mine: Object | None = None
        """The lease as this operator wrote it last."""
        self._seen = ("", clock())
        """The version of the lease that was seen last, and when it was seen first."""
        self._answered_at = clock()
        self._said = ""

    def is_held(self) -> bool:
        return self._clock() < self._held_until

    def problem(self) -> str:
        silent_seconds = self._clock() - self._answered_at
        if silent_seconds < SEEN_SECONDS_MAX:
            return ""
        return f"Lease {self._where} was last read or written {silent_seconds:.0f} s ago"

    async def win(self) -> None:
        is_ours = await self.attempt()
        while not is_ours:
            await asyncio.sleep(LOOK_SECONDS)
            is_ours = await self.attempt()
        self._say(logging.INFO, f"is held by this operator, {self._identity}: it runs the jobs")

    async def keep(self) -> None:
        is_renewed = True
        while self.is_held():
            left = self._held_until - self._clock()
            await asyncio.sleep(min(RENEW_SECONDS if is_renewed else LOOK_SECONDS, max(left, 0.0)))
            is_renewed = await self.attempt()
        self._say(logging.WARNING, "was lost: this operator writes nothing")

    async def give_up(self) -> None:
        """A lease that cannot be given back ends by time."""
        mine, self._mine, self._held_until = self._mine, None, 0.0
        if mine is None:
            return
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                await self._leases.replace(given_back(mine))
        except (ApiError, TimeoutError) as error:
            logger.warning("Lease %s could not be given back: %s", self._where, error)

    async def attempt(self) -> bool:
        """Take the lease or renew it; False where that failed."""
        started = self._clock()
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                written = await self._write()
        except (ApiError, TimeoutError) as error:
            if isinstance(error, ApiError) and error.code in (CONFLICT, NOT_FOUND):
                self._mine = None  # somebody wrote or deleted it, or an answer of ours was lost
            else:
                self._say(logging.WARNING, f"could not be read or written: {error or 'no answer'}")
            return False
        self._answered_at = self._clock()
        if written is not None:
            self._mine, self._held_until = written, started + HOLD_SECONDS
        return written is not None

    async def _write(self) -> Object | None:
        """The lease as ours; None while it is another's."""
        if self._mine is not None:
            return await self._leases.replace(self._claimed(self._mine))
        found = await self._leases.get("Lease", self._lease.namespace, self._lease.name)
        if found is None:
            return await self._leases.create(self._claimed(self._new()))
        if not self._may_take(found):
            self._held_until = 0.0
            self._say(logging.INFO, f"is held by {found['spec']['holderIdentity']}")
            return None
        found |= {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        return await self._leases.replace(self._claimed(found))

    def _may_take(self, found: Object) -> bool:
        """Whether it is free, ours, or was not renewed for as long as its holder asked for."""
        spec = found.get("spec") or {}
        if spec.get("holderIdentity", "") in ("", self._identity):
            return True
        version, now = str(found["metadata"]["resourceVersion"]), self._clock()
        if version != self._seen[0]:
            self._seen = (version, now)
        return now - self._seen[1] >= float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _claimed(self, lease: Object) -> Object:
        spec = lease.get("spec") or {}
        now = self._now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        claimed = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }
        if spec.get("holderIdentity") != self._identity:
            transitions = int(spec.get("leaseTransitions") or 0)
            claimed |= {"acquireTime": now, "leaseTransitions": transitions + 1}
        return lease | {"spec": spec | claimed}

    def _new(self) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._lease.name, "namespace": self._lease.namespace},
        }

    def _say(self, level: int, what: str) -> None:
        """Once, though it be found again at every look."""
        if what != self._said:
            logger.log(level, "Lease %s %s", self._where, what)
        self._said = what

    @property
    def _where(self) -> str:
        return f"{self._lease.namespace}/{self._lease.name}"


def given_back(lease: Object) -> Object:
    """The lease without a holder."""
    spec = {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
    return lease | {"spec": spec}
