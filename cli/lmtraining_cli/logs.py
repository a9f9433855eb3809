"""`logs`: what all pods of a job say, in one stream.

Promise: lines of one pod stay in order, each with the pod's replica before it; following goes on
with the pods of the next attempt, and with one that takes another's place, until the job has ended.
Trap avoided: `kubectl logs -f` ends with its pod, and a restart makes another.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from heapq import merge

from lmtraining_cli.kubectl import Cluster, Stream
from lmtraining_cli.refusals import RefusalError
from lmtraining_cli.snapshot import CONTAINER, Pod

LOOK_SECONDS = 2.0
LINES_WAITING_MAX = 10_000
_OLDEST = datetime.min.replace(tzinfo=UTC)
_FRACTION = re.compile(r"(\.\d{6})\d+")

Line = tuple[datetime, str, str]
"""Time, who, words."""


def lines_of(who: str, text: Iterable[str]) -> Iterator[Line]:
    """The lines of one pod, each with its time; one without a time has that of the line before."""
    at = _OLDEST
    for line in text:
        stamp, _, words = line.partition(" ")
        try:
            at = datetime.fromisoformat(_FRACTION.sub(r"\1", stamp))
        except ValueError:
            words = line
        yield at, who, words


def merged(logs: Iterable[tuple[str, Iterable[str]]]) -> Iterator[Line]:
    """All pods' lines by time."""
    return merge(*(lines_of(who, text) for who, text in logs), key=lambda line: line[0])


def who_is(pod: Pod) -> str:
    """Attempt and replica, and how often that was replaced: 1/0, 2/3.1."""
    number = pod.name.rpartition("-")[2]
    return f"{pod.attempt}/{pod.replica}" + (f".{number}" if number not in ("", "0") else "")


class Followed:
    """The logs of all pods there are and will be."""

    def __init__(self, cluster: Cluster, namespace: str, *, tail: int) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._tail = tail
        self._lines: queue.Queue[Line] = queue.Queue(LINES_WAITING_MAX)
        self._streams: dict[str, Stream] = {}
        self._threads: dict[str, threading.Thread] = {}
        self.refused: RefusalError | None = None
        """Why a log cannot be read, if so."""

    def follow(self, look: Callable[[], tuple[list[Pod], bool]]) -> Iterator[Line]:
        """Lines as they come. `look` tells the pods, and whether the job has ended."""
        looked, ended = float("-inf"), False
        while True:
            now = time.monotonic()
            if not ended and now - looked >= LOOK_SECONDS:
                pods, ended = look()
                looked = now
                for pod in pods:
                    self._attach(pod)
            try:
                yield self._lines.get(timeout=0.1)
            except queue.Empty:
                running = any(thread.is_alive() for thread in self._threads.values())
                if self.refused or (ended and not running):
                    return

    def stop(self) -> None:
        """End all that was started."""
        for stream in self._streams.values():
            stream.stop()

    def _attach(self, pod: Pod) -> None:
        if pod.uid in self._streams or not pod.has_started:
            return
        stream = self._cluster.stream(
            "logs", pod.name, f"--namespace={self._namespace}", f"--container={CONTAINER}",
            "--timestamps", "--follow", f"--tail={self._tail}",
        )  # fmt: skip
        self._streams[pod.uid] = stream
        thread = threading.Thread(target=self._read, args=(pod, stream), daemon=True)
        self._threads[pod.uid] = thread
        thread.start()

    def _read(self, pod: Pod, stream: Stream) -> None:
        for line in lines_of(who_is(pod), stream.lines()):
            self._lines.put(line)
        refused = stream.refusal()
        if refused is not None and refused.reason == "Forbidden":
            self.refused = refused
