"""What the writers of a gang say to each other about one save, beside the training.

Promise: no wait is without an end. A rank whose part failed says so, and all give that save up; one
that has not come on for so long is given up too. Words about another save are never met: each key
carries the save's number and step. While a writer waits it lives as long as the one it waits for.
Trap avoided: the collectives, and the gang's connection to the rendezvous store, belong to the
training's thread; whoever else waited there would hold it up. So a writer has a connection of its
own.
"""

import errno
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from lmtraining_trainer.checkpoint.pace import Pace

LEAD = 0
#: A rank whose writer does not come on for so long is no longer waited for.
SILENCE_SECONDS_MAX = 300.0
#: Between two looks at the store: the first, and the longest. torch's own wait would print two
#: lines for each that finds nothing.
LOOK_SECONDS = 0.02
LOOK_SECONDS_MAX = 0.25
#: Between two signs of life there.
ALIVE_SECONDS = 1.0

BEGUN, WRITTEN, PUBLISHED, READ, ENDED = "begun", "written", "published", "read", "ended"
_ALIVE, _FAILED = "alive", "failed"


class Line:
    """One writer's connection to those of the other ranks."""

    def __init__(self, store: Store, *, rank: int, world_size: int) -> None:
        self.store = store
        """A connection of the writer's own."""
        self.rank = rank
        self.world_size = world_size
        self._saves = 0

    @property
    def others(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def talk(self, step: int, pace: Pace) -> "Talk":
        """What is said about the next save, which all ranks begin."""
        self._saves += 1
        return Talk(self, f"{self._saves}/{step}", pace)


class Talk:
    """All that is said about one save."""

    def __init__(self, line: Line, save: str, pace: Pace) -> None:
        self._line = line
        self._save = save
        self._pace = pace
        self._told_at = -ALIVE_SECONDS
        pace.on_turn = self._live

    def tell(self, what: str, **words: Any) -> None:
        """Say how far this rank is. Raises OSError."""
        with _store_errors():
            self._line.store.set(self._key(what, self._line.rank), json.dumps(words))

    def hear(self, what: str, rank: int) -> dict[str, Any]:
        """What `rank` says once it is that far. Raises OSError where some rank has failed, or this
        one is silent for too long."""
        pulse, heard_at, pause = b"", time.monotonic(), LOOK_SECONDS
        while not (said := self._newest(self._key(what, rank))):
            self._refuse_failed()
            time.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS_MAX)
            newest, now = self._newest(self._key(_ALIVE, rank)), time.monotonic()
            if newest != pulse:
                pulse, heard_at = newest, now
                self._pace.beat()
                self._live()
            if now - heard_at > SILENCE_SECONDS_MAX:
                seconds = f"{SILENCE_SECONDS_MAX:.0f} s"
                raise OSError(errno.ETIMEDOUT, f"rank {rank} has not come on for {seconds}")
        words: dict[str, Any] = json.loads(said)
        return words

    def hear_all(self, what: str) -> list[dict[str, Any]]:
        """What the other ranks say once all are that far. Raises OSError."""
        return [self.hear(what, rank) for rank in self._line.others]

    @contextmanager
    def telling_failure(self) -> Iterator[None]:
        """A context whose exception is the end of this save on every rank."""
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def forget(self) -> None:
        """Delete all that was said; once no rank is at this save any more. Raises OSError."""
        kinds = (BEGUN, WRITTEN, PUBLISHED, READ, ENDED, _ALIVE)
        with _store_errors():
            for rank in range(self._line.world_size):
                for kind in kinds:
                    self._line.store.delete_key(self._key(kind, rank))
            self._line.store.delete_key(self._failed_key)

    @property
    def _failed_key(self) -> str:
        return f"{self._save}/{_FAILED}"

    def _key(self, what: str, rank: int) -> str:
        return f"{self._save}/{what}/{rank}"

    def _live(self) -> None:
        """A sign of life for those who wait for this rank."""
        now = time.monotonic()
        if now - self._told_at >= ALIVE_SECONDS:
            self._told_at = now
            self.tell(_ALIVE, at=now)

    def _fail(self, error: BaseException) -> None:
        """The first failure counts: the others follow from it."""
        number = error.errno if isinstance(error, OSError) else None
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        words = json.dumps({"rank": self._line.rank, "errno": number or 0, "why": why})
        try:
            self._line.store.compare_set(self._failed_key, "", words)
        except RuntimeError:
            return  # the gang is gone, and so is everyone who would hear it

    def _refuse_failed(self) -> None:
        if failed := self._newest(self._failed_key):
            words = json.loads(failed)
            raise OSError(words["errno"], f"rank {words['rank']}: {words['why']}")

    def _newest(self, key: str) -> bytes:
        with _store_errors():
            return self._line.store.get(key) if self._line.store.check([key]) else b""


@contextmanager
def _store_errors() -> Iterator[None]:
    """A context in which a lost store is an OSError: the training's own thread finds the lead gone,
    and says why."""
    try:
        yield
    except dist.DistError as error:
        raise OSError(errno.ECONNRESET, "the connection to rank 0 broke") from error
