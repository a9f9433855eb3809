"""One leader at a time, whatever the network does to the requests for the lease."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeVar

import pytest

from lmtraining_operator.election import (
    HOLD_SECONDS,
    LEASE_SECONDS,
    SEEN_SECONDS_MAX,
    Alone,
    Election,
    LeaseName,
)
from lmtraining_operator.gateway import CONFLICT, ApiError, Object

pytestmark = pytest.mark.unit

NAME = LeaseName("system", "operator")
T = TypeVar("T")
Fate = Literal["answered", "lost on the way", "answer lost"]


@dataclass
class Server:
    """Holds the lease, and the time. What a request meets is said before it is made."""

    time: float = 1000.0
    lease: Object | None = None
    version: int = 0
    delays: tuple[float, float] = (0.0, 0.0)
    """Seconds to the server, and back."""
    fate: Fate = "answered"
    passes: Callable[[], None] = lambda: None
    """Called whenever time has passed."""

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.passes()

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        assert (kind, namespace, name) == ("Lease", NAME.namespace, NAME.name)
        return self._answer(lambda: copy.deepcopy(self.lease))

    async def create(self, body: Object) -> Object:
        return self._answer(lambda: self._store(body, is_new=True))

    async def replace(self, body: Object) -> Object:
        return self._answer(lambda: self._store(body, is_new=False))

    def _answer(self, carry_out: Callable[[], T]) -> T:
        self.wait(self.delays[0])
        if self.fate == "lost on the way":
            raise ApiError(0, "Unreachable", "no connection")
        answer = carry_out()
        self.wait(self.delays[1])
        if self.fate == "answer lost":
            raise ApiError(0, "Unreachable", "the connection broke")
        return answer

    def _store(self, body: Object, *, is_new: bool) -> Object:
        expected = None if is_new else str(self.version)
        if (self.lease is None) is not is_new or body["metadata"].get(
            "resourceVersion"
        ) != expected:
            raise ApiError(CONFLICT, "Conflict", "not the newest")
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    def elector(self, name: str, *, offset: float = 0.0) -> Election:
        """A candidate whose clock is another one."""
        return Election(self, NAME, identity=name, clock=lambda: self.time + offset)

    @property
    def holder(self) -> str:
        return str(self.lease["spec"].get("holderIdentity", "")) if self.lease else ""


async def test_first_come_leads_and_stays_leader() -> None:
    server = Server()
    first, second = server.elector("a"), server.elector("b", offset=500.0)
    assert await first.attempt()
    for _ in range(10):
        server.wait(2.0)
        assert await first.attempt()
        assert not await second.attempt()
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1, "it never changed hands"


async def test_follower_takes_over_from_one_that_is_silent() -> None:
    """Not before the holder has stopped to write, by more than a second; then at once."""
    server = Server()
    first, second = server.elector("a"), server.elector("b")
    assert await first.attempt()
    assert not await second.attempt()
    server.wait(HOLD_SECONDS)
    assert not first.is_held()
    server.wait(LEASE_SECONDS - HOLD_SECONDS - 0.01)
    assert not await second.attempt()
    server.wait(0.01)
    assert await second.attempt()
    assert not await first.attempt()
    assert server.holder == "b"


async def test_lease_that_was_given_back_is_taken_at_once() -> None:
    server = Server()
    first, second = server.elector("a"), server.elector("b")
    assert await first.attempt()
    assert not await second.attempt()
    await first.give_up()
    assert not first.is_held()
    assert server.holder == ""
    assert await second.attempt()
    await first.give_up()
    assert server.holder == "b", "what is another's is not given back"


async def test_answer_that_was_lost_costs_the_holder_nothing() -> None:
    server = Server()
    first = server.elector("a")
    assert await first.attempt()
    server.wait(2.0)
    server.fate = "answer lost"
    assert not await first.attempt()
    assert first.is_held(), "by the renewal before"
    server.fate = "answered"
    assert not await first.attempt(), "its version is not the newest"
    assert await first.attempt()
    server.wait(HOLD_SECONDS - 0.1)
    assert first.is_held()


async def test_right_counts_from_before_the_request() -> None:
    server = Server(delays=(3.0, 1.0))
    first = server.elector("a")
    assert await first.attempt()  # two requests, the lease made by the second
    assert not first.is_held(), "it was asked for eight seconds ago"


async def test_leader_whose_lease_another_has_stops_at_once() -> None:
    """Somebody deleted the Lease, and another was faster."""
    server = Server()
    first, second = server.elector("a"), server.elector("b")
    assert await first.attempt()
    server.lease = None
    assert await second.attempt()
    assert not await first.attempt()
    assert not await first.attempt()
    assert not first.is_held()


async def test_lease_that_was_deleted_is_made_again() -> None:
    server = Server()
    first = server.elector("a")
    assert await first.attempt()
    server.lease = None
    assert not await first.attempt()
    assert await first.attempt()
    assert server.holder == "a"


async def test_keep_ends_when_the_lease_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    first = server.elector("a")
    monkeypatch.setattr("lmtraining_operator.election.asyncio.sleep", _sleep(server))
    await first.win()
    server.fate = "lost on the way"
    started = server.time
    await first.keep()
    assert server.time - started == pytest.approx(HOLD_SECONDS, abs=0.01)


def _sleep(server: Server) -> Callable[[float], object]:
    async def sleep(seconds: float) -> None:
        server.wait(seconds + 0.001)

    return sleep


def test_follower_that_cannot_see_the_lease_is_not_ready() -> None:
    server = Server()
    follower = server.elector("b")
    assert follower.problem() == ""
    server.wait(SEEN_SECONDS_MAX)
    assert "Lease system/operator was last read or written 15 s ago" in follower.problem()


def test_alone() -> None:
    assert Alone().is_held()
    assert Alone().problem() == ""


@pytest.mark.parametrize("text", ["", "operator", "/operator", "system/", "a/b/c"])
def test_name_of_a_lease(text: str) -> None:
    assert LeaseName.parse("system/operator") == NAME
    with pytest.raises(ValueError, match="NAMESPACE/NAME"):
        LeaseName.parse(text)


@dataclass(frozen=True)
class Step:
    """A candidate does something, or time passes."""

    who: int
    act: Literal["attempt", "give up", "die", "wait"]
    seconds: float
    delays: tuple[float, float]
    fate: Fate


SCHEDULES = 2000
STEPS = 40


def step(random: Random) -> Step:
    """Most of it goes well, so that a lease is held at all when something goes wrong."""
    delays = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 2.5, LEASE_SECONDS)
    return Step(
        who=random.randrange(2),
        act=random.choices(("attempt", "give up", "die", "wait"), (16, 1, 1, 2))[0],
        seconds=random.choice((0.0, 0.5, 0.5, 2.0, 2.0, HOLD_SECONDS - 0.1, LEASE_SECONDS)),
        delays=(random.choice(delays), random.choice(delays)),
        fate=random.choices(("answered", "lost on the way", "answer lost"), (10, 1, 1))[0],
    )


@dataclass
class Candidates:
    """Two at one server; whoever dies comes back under another name."""

    server: Server = field(default_factory=Server)
    lives: int = 0
    alive: list[Election] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.passes = self.check
        for who in range(2):
            self.alive.append(self.born(who))

    def born(self, who: int) -> Election:
        self.lives += 1
        return self.server.elector(f"{who}-{self.lives}", offset=who * 1234.5)

    def check(self) -> None:
        assert sum(one.is_held() for one in self.alive) <= 1, "two leaders at one time"

    async def play(self, step: Step) -> None:
        self.server.wait(step.seconds)
        self.server.delays, self.server.fate = step.delays, step.fate
        match step.act:
            case "attempt":
                await self.alive[step.who].attempt()
            case "give up":
                await self.alive[step.who].give_up()
            case "die":
                self.alive[step.who] = self.born(step.who)
        self.check()


async def test_never_two_leaders() -> None:
    """P1: whatever is lost, late or dead, at every moment at most one may write."""
    terms = 0
    for seed in range(SCHEDULES):
        random, candidates = Random(seed), Candidates()
        for number in range(STEPS):
            try:
                await candidates.play(step(random))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, step {number}: {error}") from error
        terms += int(candidates.server.lease["spec"]["leaseTransitions"])
    assert terms > 2 * SCHEDULES, "the lease changes hands"
