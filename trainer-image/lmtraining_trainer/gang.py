"""The ranks of one (job UID, attempt, round), and all that they say to each other.

Promise: ranks of another gang are never met (every key carries job UID, attempt, round and the
digest of the pods); every wait is bounded, says that it lives, and ends at once when the lead's
connection breaks; a peer that went away is `PeerLost`, with the step at which it was noticed.
Trap avoided: a rank that waits inside a collective is deaf. Whatever the lead does alone and may
take long (data, checkpoints, export) the others await on the rendezvous store instead.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from lmtraining_api import FailureClass
from lmtraining_trainer.errors import Preempted, TrainerError
from lmtraining_trainer.phase import Phase
from lmtraining_trainer.rank_link import RankPlace
from lmtraining_trainer.voice import Voice

#: From the first try to reach the lead until it must have answered: slow image pulls are over by
#: then, since the peer table is complete.
MEET_SECONDS_MAX = 600.0
#: One try to be served by a lead that listens.
CONNECT_SECONDS_MAX = 5.0
#: A collective that takes longer has lost a peer.
COLLECTIVE_SECONDS_MAX = 300.0
#: The lead says that it lives far oftener than this while others wait for it.
LEAD_SILENCE_SECONDS_MAX = 300.0
#: How long the lead stays for the others to read its last word.
LEAVE_SECONDS_MAX = 30.0
#: One wait on the store, between two signs of life.
SLICE_SECONDS = 1.0
#: Between two tries to reach the lead, or two looks at a counter.
POLL_SECONDS = 0.05
#: Results of the lead that stay readable for slow ranks.
RESULTS_KEPT = 64

_MET = "met"
_STOP = "stop"
_PULSE = "pulse"
_GONE = "gone"


class Gang:
    """One rank's view of its gang. Use as a context manager: leaving it closes connections."""

    def __init__(self, place: RankPlace, store: Store, voice: Voice) -> None:
        self.rank = place.rank
        self.world_size = place.world_size
        self.is_lead = place.is_lead
        self.step = 0
        """Steps done, for the message when a peer is lost."""
        self._is_local = place.lead_address.startswith("127.")
        self._store = store
        self._voice = voice
        self._results = 0
        self._pulsed_at = 0.0
        self._pulses = 0
        if self.world_size > 1 and self.is_lead:
            voice.pulse = self._pulse
            voice.others_stop = lambda: bool(store.check([_STOP]))

    @classmethod
    def meet(cls, job_uid: str, place: RankPlace, voice: Voice) -> Self:
        """Reach the lead's store. Raises TrainerError(PEER_LOST) when it does not answer."""
        gang_name = f"{job_uid}/{place.attempt}/{place.round}/{place.gang}"
        with _peer_errors(place.rank, 0):
            store = PrefixStore(gang_name, _store_of(place, voice))
            gang = cls(place, store, voice)
            # A lead of another gang may still hold the address: only ours knows these keys. The
            # lead waits for all, so that when it fails later, nobody is still on the way to it.
            store.add(_MET, 1)
            gang.lead_does("meet", gang._await_all)
        return gang

    def start_collectives(self, device: torch.device) -> None:
        """Connect every rank with every other. Control messages always travel over gloo."""
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if self._is_local:  # the host's name may lead to an interface that is down
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with _peer_errors(self.rank, self.step):
            dist.init_process_group(
                backend,
                store=PrefixStore("collectives", self._store),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=COLLECTIVE_SECONDS_MAX),
            )

    def lead_does(self, what: str, work: Callable[[], Any]) -> Any:
        """What `work` returns (JSON) on the lead, on every rank; the others await it.

        Raises what `work` raises on the lead, on the others Preempted or TrainerError(PEER_LOST).
        """
        self._results += 1
        key = f"result/{self._results}"
        with _peer_errors(self.rank, self.step):
            if not self.is_lead:
                return self._awaited(what, key)
            outcome, error = _attempted(work)
            if self.world_size > 1:
                self._store.delete_key(f"result/{self._results - RESULTS_KEPT}")
                self._store.set(key, json.dumps(outcome))
        if error is not None:
            raise error
        return outcome["value"]

    def another_store(self, purpose: str) -> Store:
        """The rendezvous store by a connection of its own, for another thread than the training's;
        the keys of each purpose are apart."""
        with self.peer_errors():
            return PrefixStore(purpose, self._store.clone())

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all ranks, the same bits on each."""
        vector = torch.tensor(values, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(vector)
        return [float(value) for value in vector]

    def added(self, vector: torch.Tensor) -> torch.Tensor:
        """The same for a vector that stays on its device, which nobody waits for."""
        if self.world_size > 1:
            with self._collective():
                dist.all_reduce(vector)
        return vector

    def gather(self, payload: bytes) -> list[bytes]:
        """The payloads of all ranks, in order of rank, on each."""
        with self._collective():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
            dist.all_gather(sizes, torch.tensor([len(payload)]))
            longest = max(int(size) for size in sizes)
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            parts = [torch.zeros_like(padded) for _ in range(self.world_size)]
            dist.all_gather(parts, padded)
        return [
            part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)
        ]

    def peer_errors(self) -> AbstractContextManager[None]:
        """A context in which a lost peer is a TrainerError(PEER_LOST)."""
        return _peer_errors(self.rank, self.step)

    def leave(self) -> None:
        """The last word was said: the lead stays until all have heard it, within limits."""
        if self.world_size == 1:
            return
        with self.peer_errors():
            gone = self._store.add(_GONE, 1)
            deadline = time.monotonic() + LEAVE_SECONDS_MAX
            while self.is_lead and gone < self.world_size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                gone = self._store.add(_GONE, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _collective(self) -> Iterator[None]:
        with self._voice.during(Phase.COLLECTIVE), self.peer_errors():
            yield

    def _await_all(self) -> None:
        """On the lead: until every rank has come."""
        deadline = time.monotonic() + MEET_SECONDS_MAX
        while (met := self._store.add(_MET, 0)) < self.world_size:
            self._voice.progress("Starting", f"{met} of {self.world_size} ranks have come")
            if time.monotonic() > deadline:
                missing = self.world_size - met
                raise _lost(self.rank, 0, f"{missing} of {self.world_size} ranks did not come")
            time.sleep(POLL_SECONDS)

    def _awaited(self, what: str, key: str) -> Any:
        pulse, heard_at = b"", time.monotonic()
        while not self._wait_slice(key):
            self._voice.alive()
            if self._voice.stop_requested():
                self._store.set(_STOP, "1")
            newest = self._store.get(_PULSE) if self._store.check([_PULSE]) else b""
            if newest != pulse:
                pulse, heard_at = newest, time.monotonic()
            if time.monotonic() - heard_at > LEAD_SILENCE_SECONDS_MAX:
                raise _lost(self.rank, self.step, f"rank 0 fell silent while it did: {what}")
        outcome = json.loads(self._store.get(key))
        if outcome["preempted"] is not None:
            raise Preempted(outcome["preempted"])
        if outcome["failed"] is not None:
            raise _lost(self.rank, self.step, f"rank 0 failed while it did: {what}")
        return outcome["value"]

    def _wait_slice(self, key: str) -> bool:
        try:
            self._store.wait([key], timedelta(seconds=SLICE_SECONDS))
        except dist.DistStoreError:  # only this is a time-out; a broken connection is another
            return False
        return True

    def _pulse(self) -> None:
        now = time.monotonic()
        if now - self._pulsed_at >= SLICE_SECONDS:
            self._pulsed_at = now
            self._pulses += 1
            self._store.set(_PULSE, str(self._pulses))


def _attempted(work: Callable[[], Any]) -> tuple[dict[str, Any], BaseException | None]:
    try:
        return {"value": work(), "failed": None, "preempted": None}, None
    except Preempted as error:
        return {"value": None, "failed": None, "preempted": error.step}, error
    except BaseException as error:  # raised again once the others know
        return {"value": None, "failed": type(error).__name__, "preempted": None}, error


def _store_of(place: RankPlace, voice: Voice) -> Store:
    if place.world_size == 1:
        return HashStore()
    if place.is_lead:
        return _served_store(place)
    deadline = time.monotonic() + MEET_SECONDS_MAX
    while True:
        _await_listener(place, voice, deadline)
        try:
            store = _store(place, CONNECT_SECONDS_MAX)
        except dist.DistNetworkError as error:
            # What listened a moment ago was the lead of an older gang, or no lead at all.
            deadline = _patience(place, voice, deadline, error)
            continue
        store.set_timeout(timedelta(seconds=COLLECTIVE_SECONDS_MAX))
        return store


def _store(place: RankPlace, seconds: float) -> TCPStore:
    return TCPStore(
        place.lead_address,
        place.rendezvous_port,
        is_master=place.is_lead,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )


def _served_store(place: RankPlace) -> Store:
    try:
        return _store(place, COLLECTIVE_SECONDS_MAX)
    except dist.DistNetworkError as error:
        raise TrainerError(
            FailureClass.CRASH,
            "PortTaken",
            f"rank 0 cannot listen on port {place.rendezvous_port}: another process holds it",
        ) from error


def _await_listener(place: RankPlace, voice: Voice, deadline: float) -> None:
    """Until the lead listens. torch would wait deaf, and print a stack at each try."""
    address = (place.lead_address, place.rendezvous_port)
    while True:
        try:
            socket.create_connection(address, timeout=SLICE_SECONDS).close()
            return
        except OSError as error:
            deadline = _patience(place, voice, deadline, error)


def _patience(place: RankPlace, voice: Voice, deadline: float, error: Exception) -> float:
    """A moment before the next try; the deadline for all of them, sooner once told to stop.

    Raises Preempted or TrainerError(PEER_LOST) when it is over.
    """
    voice.alive()
    if voice.stop_requested():  # a lead that is about to listen should still hear of it
        deadline = min(deadline, time.monotonic() + CONNECT_SECONDS_MAX)
    if time.monotonic() > deadline:
        if voice.stop_requested():
            raise Preempted(0) from error
        where = f"{place.lead_address} port {place.rendezvous_port}"
        raise _lost(place.rank, 0, f"rank 0 does not answer at {where}") from error
    time.sleep(POLL_SECONDS)
    return deadline


def _lost(rank: int, step: int, what: str) -> TrainerError:
    return TrainerError(
        FailureClass.PEER_LOST,
        "PeerLost",
        f"rank {rank} lost a peer after step {step}: {what}; that rank's own record says why",
        step=step,
    )


@contextmanager
def _peer_errors(rank: int, step: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own: the path of its source is in each message.
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise _lost(rank, step, "a connection broke or timed out") from error
        raise
