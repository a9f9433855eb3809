"""Long work that cannot say that it lives.

Promise: while `work` runs in another thread, this one calls `alive` at least twice a second, and
ends with what `work` returned or raised.
Trap avoided: a library's one long call (a tokenizer's training, a listing, an export) looks like a
hang to the supervisor and like a lost lead to the ranks that wait.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

HEARTBEAT_SECONDS = 0.5

Result = TypeVar("Result")


def while_alive(name: str, work: Callable[[], Result], alive: Callable[[], None]) -> Result:
    """What `work` returns. `alive` may raise: then nobody waits for `work` any more."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again by the one that waits
            errors.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    while thread.is_alive():
        alive()
        thread.join(HEARTBEAT_SECONDS)
    if errors:
        raise errors[0]
    return results[0]
