"""The only place where this package waits for something it cannot be told about.

Promise: every wait has a limit, and running into it says what was waited for, how long, and what
to look at. Trap avoided: a fixed sleep is too long on a fast machine and too short on a slow one.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from devcluster.errors import DevclusterError

POLL_SECONDS = 0.05

T = TypeVar("T")


def wait_until(
    what: str,
    check: Callable[[], T | None],
    *,
    limit_seconds: float,
    hint: str = "",
    poll_seconds: float = POLL_SECONDS,
) -> T:
    """The first truthy answer of `check`; DevclusterError after `limit_seconds`."""
    deadline = time.monotonic() + limit_seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            suffix = f" {hint}" if hint else ""
            raise DevclusterError(f"{what}: not after {limit_seconds:g} s.{suffix}")
        time.sleep(poll_seconds)
