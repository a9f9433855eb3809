"""The past of a run as its pods' logs tell it.

Promise: works with the right to read logs alone, also for pods that have ended. A step that was
done again after a fault counts as it was done last.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import quote

from lmtraining_api.history import Point, point_of
from lmtraining_cli.kubectl import Cluster, Question
from lmtraining_cli.refusals import RefusalError
from lmtraining_cli.snapshot import Pod

LOG_BYTES_MAX = 16 * 1024 * 1024
"""Counted from the first of the lines that are asked for, so these must fit in it."""
LINES_SHOWN = 2000


def ask_log(cluster: Cluster, namespace: str, pod: Pod, *, lines: int = LINES_SHOWN) -> Question:
    """The end of a pod's log, with the time of each line."""
    query = f"container=trainer&timestamps=true&tailLines={lines}&limitBytes={LOG_BYTES_MAX}"
    return cluster.ask(f"/api/v1/namespaces/{namespace}/pods/{quote(pod.name)}/log?{query}")


def points_of(text: str) -> list[Point]:
    """The points in a log with timestamps, in the order of its lines."""
    found = []
    for line in text.splitlines():
        stamp, _, rest = line.partition(" ")
        try:
            time = datetime.fromisoformat(stamp)
        except ValueError:
            continue
        point = point_of(rest, time if time.tzinfo else time.replace(tzinfo=UTC))
        if point is not None:
            found.append(point)
    return found


def joined(points: Iterable[Point]) -> list[Point]:
    """By step, each once, as it was done last."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: point.time):
        while kept and kept[-1].step >= point.step:
            kept.pop()  # a run that went back does these again
        kept.append(point)
    return kept


def text_or_none(question: Question) -> tuple[str, RefusalError | None]:
    """What a log says; empty and why where it cannot be had."""
    try:
        return question.text(), None
    except RefusalError as refused:
        return "", refused
