"""How long to wait before trying again."""

import zlib

DOUBLINGS_MAX = 30
"""Beyond this the limit has long been reached, and the power would only get large."""

REFUSAL_SECONDS_MIN = 2.0
REFUSAL_SECONDS_MAX = 60.0
LEAVING_SECONDS_MIN = 0.5
"""The same while the name belongs to an object that is going."""
LEAVING_SECONDS_MAX = 5.0


def backoff_seconds(*, first: float, limit: float, earlier: int) -> float:
    """The wait after `earlier` tries: doubled with each, never above `limit`."""
    return min(first * 2.0 ** min(earlier, DOUBLINGS_MAX), limit)


def jitter(key: str) -> float:
    """A share in [0, 1) that differs from key to key and never changes."""
    return zlib.crc32(key.encode()) / 2**32


def refusal_wait_seconds(count: int, *, is_leaving: bool = False) -> float:
    """The wait before an object is offered again that was refused `count` times."""
    first, limit = (
        (LEAVING_SECONDS_MIN, LEAVING_SECONDS_MAX)
        if is_leaving
        else (REFUSAL_SECONDS_MIN, REFUSAL_SECONDS_MAX)
    )
    return backoff_seconds(first=first, limit=limit, earlier=max(count - 1, 0))
