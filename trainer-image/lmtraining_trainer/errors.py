"""Errors that say what was wrong, where, and what to do.

Promise: an error a user can mend is a `TrainerError` with our own sentence; its class decides the
exit code and whether trying again can help. The text of any other exception is never reported,
since it may quote training data (P11).
"""

from collections.abc import Sequence

from lmtraining_api import FailureClass

NAMES_SHOWN_MAX = 6


class TrainerError(Exception):
    """A failure that the trainer understands.

    `reason` is one CamelCase word; `message` one sentence that names the field or file, the value
    and the fix.
    """

    def __init__(
        self,
        failure_class: FailureClass,
        reason: str,
        message: str,
        *,
        step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.failure_class = failure_class
        self.reason = reason
        self.message = message
        self.step = step


class Preempted(Exception):  # noqa: N818 - not an error: the run was told to stop, and saved
    """Told to stop; the checkpoint of `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def shown(names: Sequence[str]) -> str:
    """The first and the last of them, for a person who guessed wrong."""
    half = NAMES_SHOWN_MAX // 2
    if len(names) <= NAMES_SHOWN_MAX:
        return ", ".join(names)
    return ", ".join([*names[:half], "…", *names[-half:]])
