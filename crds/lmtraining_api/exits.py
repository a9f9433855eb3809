"""How a trainer ends: exit codes and the classes of failure.

Promise: an exit code says what kind of end it was, and the class whether trying again can help.
Trap avoided: codes that something else uses; ours avoid 1 and 2 (Python) and 126-165 (shell,
signals). A preemption is not zero: a pod that exits 0 has finished the run.
"""

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import BeforeValidator

from lmtraining_api.fields import known_or


class ExitCode(IntEnum):
    """Exit codes of the supervisor, and so of the pod."""

    FINISHED = 0
    PREEMPTED = 80  # told to stop; a checkpoint is saved
    CONFIGURATION = 81
    DATA = 82
    DIVERGED = 83
    OUT_OF_MEMORY = 84
    HANG = 85
    HARDWARE = 86
    STORAGE = 87
    PEER_LOST = 88  # another pod of the gang went away; its own record says why
    CRASH = 89  # a rank raised or was killed
    UNKNOWN = 90


class FailureClass(StrEnum):
    """What kind of failure it was."""

    CONFIGURATION = "Configuration"
    DATA = "Data"
    DIVERGED = "Diverged"
    OUT_OF_MEMORY = "OutOfMemory"
    HANG = "Hang"
    HARDWARE = "Hardware"
    STORAGE = "Storage"
    PEER_LOST = "PeerLost"
    CRASH = "Crash"
    DISRUPTION = "Disruption"
    POD_LOST = "PodLost"
    UNKNOWN = "Unknown"

    @property
    def may_retry(self) -> bool:
        """False where the same input must fail the same way."""
        return self not in _FINAL

    @property
    def is_consequence(self) -> bool:
        """True where the record points at another pod's failure."""
        return self is FailureClass.PEER_LOST


_FINAL = frozenset({FailureClass.CONFIGURATION, FailureClass.DATA, FailureClass.DIVERGED})

CLASS_OF_CODE: dict[ExitCode, FailureClass] = {
    ExitCode.PREEMPTED: FailureClass.DISRUPTION,
    ExitCode.CONFIGURATION: FailureClass.CONFIGURATION,
    ExitCode.DATA: FailureClass.DATA,
    ExitCode.DIVERGED: FailureClass.DIVERGED,
    ExitCode.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    ExitCode.HANG: FailureClass.HANG,
    ExitCode.HARDWARE: FailureClass.HARDWARE,
    ExitCode.STORAGE: FailureClass.STORAGE,
    ExitCode.PEER_LOST: FailureClass.PEER_LOST,
    ExitCode.CRASH: FailureClass.CRASH,
    ExitCode.UNKNOWN: FailureClass.UNKNOWN,
}
CODE_OF_CLASS: dict[FailureClass, ExitCode] = {cls: code for code, cls in CLASS_OF_CODE.items()}

#: As read from another version, which may know more kinds of ends than we do.
ReadExitCode = Annotated[ExitCode, BeforeValidator(known_or(ExitCode, ExitCode.UNKNOWN))]
ReadFailureClass = Annotated[
    FailureClass, BeforeValidator(known_or(FailureClass, FailureClass.UNKNOWN))
]
