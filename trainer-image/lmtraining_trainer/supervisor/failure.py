"""How a rank ended, and which rank's end is the pod's.

Promise: our own words for what we understand; for anything else only the exception's type and the
places in the code, never its text, which may quote training data (P11). The full traceback goes to
the pod's log. The first failure that is not another's consequence decides.
Trap avoided: when one rank dies, all others fail in their next collective within milliseconds, and
often are heard first.
"""

import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from lmtraining_api import FailureClass, RankStack
from lmtraining_api.names import POD_REPLACED
from lmtraining_api.records import FRAMES_MAX
from lmtraining_trainer.errors import Preempted, TrainerError

FRAME_LENGTH_MAX = 256
TYPE_LENGTH_MAX = 128
RANK_EXITED = "RankExited"

OUT_OF_MEMORY_REMEDY = (
    "lower training.batchTokens or data.sequenceLength, raise training.gradientAccumulation, or "
    "give more memory (workers.resources.memory, or a larger accelerator)"
)


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How one rank ended, or the supervisor itself where `rank` is None.

    `time` is monotonic, and comparable on one machine.
    """

    rank: int | None
    outcome: Literal["Finished", "Preempted", "Failed", "Ended"]
    """Ended: by the supervisor, which had waited long enough."""
    time: float
    failure_class: FailureClass | None = None
    reason: str = "Finished"
    message: str = ""
    step: int | None = None
    exception_type: str | None = None
    frames: tuple[str, ...] = ()
    signal: int | None = None
    """What killed the process."""
    ranks: tuple[RankStack, ...] = ()
    """Of a hang: where every rank of the pod was."""


def finished(rank: int, *, now: float) -> RankEnd:
    """The rank has done its work."""
    return RankEnd(rank=rank, outcome="Finished", time=now)


def stopped_before_start(*, now: float) -> RankEnd:
    """Told to stop while no rank had been started."""
    return RankEnd(
        rank=None,
        outcome="Preempted",
        time=now,
        failure_class=FailureClass.DISRUPTION,
        reason="Preempted",
        message="told to stop before the ranks were started; nothing was lost",
    )


def end_of_gang(*, now: float) -> RankEnd:
    """The operator has put another pod in the place of one of the gang."""
    return RankEnd(
        rank=None,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.PEER_LOST,
        reason=POD_REPLACED,
        message="another pod is in the place of one of this round",
    )


def end_of_supervisor(error: Exception, *, now: float) -> RankEnd:
    """The supervisor itself failed: our own words where it knew why, else a defect of ours."""
    end = end_of_exception(error, rank=None, now=now)
    if end.failure_class is not FailureClass.CRASH:
        return end
    return replace(end, failure_class=FailureClass.UNKNOWN, reason="SupervisorFailed")


def end_of_exception(error: BaseException, *, rank: int | None, now: float) -> RankEnd:
    """What an exception that left the loop means."""
    if isinstance(error, Preempted):
        return RankEnd(
            rank=rank,
            outcome="Preempted",
            time=now,
            failure_class=FailureClass.DISRUPTION,
            reason="Preempted",
            message=f"told to stop; the checkpoint of step {error.step} is saved"
            if error.step
            else "told to stop before a new step was done; nothing was lost",
            step=error.step or None,
        )
    who = "the supervisor" if rank is None else f"rank {rank}"
    kind = type_name(error)
    frames = frames_of(error.__traceback__)
    if isinstance(error, TrainerError):
        failure, reason, message = error.failure_class, error.reason, error.message
    elif _is_out_of_memory(error):
        failure, reason = FailureClass.OUT_OF_MEMORY, "OutOfMemory"
        message = f"{who} ran out of memory: {OUT_OF_MEMORY_REMEDY}"
    else:
        failure, reason = FailureClass.CRASH, "RankRaised"
        where = f" at {frames[-1]}" if frames else ""
        message = f"{who} raised {kind}{where}; its text is in the log"
    return RankEnd(
        rank=rank,
        outcome="Failed",
        time=now,
        failure_class=failure,
        reason=reason,
        message=message,
        step=error.step if isinstance(error, TrainerError) else None,
        exception_type=kind,
        frames=frames,
    )


def end_of_process(exit_code: int, *, rank: int, now: float) -> RankEnd:
    """What it means that a rank's process is gone and had not said how it ended.

    `exit_code` is that of `multiprocessing`: negative for a signal. Zero is a failure too, since a
    rank that finished would have said so (and a pod must not exit 0 for less).
    """
    if exit_code >= 0:
        reason = RANK_EXITED
        message = f"rank {rank} ended with code {exit_code} without a result; see the log"
    else:
        reason = "RankKilled"
        name = signal_name(-exit_code)
        hint = (
            "; if nobody killed it, it was memory: raise workers.resources.memory or lower "
            "training.batchTokens"
            if -exit_code == signal.SIGKILL
            else "; see the log"
        )
        message = f"rank {rank} was killed by {name}{hint}"
    return RankEnd(
        rank=rank,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.CRASH,
        reason=reason,
        message=message,
        signal=-exit_code if exit_code < 0 else None,
    )


def end_of_fork_server(exit_code: int, *, now: float) -> RankEnd:
    """The fork server is gone, and with it the way to start a rank or to hear of its end."""
    how = f"with {signal_name(-exit_code)}" if exit_code < 0 else f"with code {exit_code}"
    return RankEnd(
        rank=None,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.UNKNOWN,
        reason="ForkServerEnded",
        message=f"the fork server, which imports torch and starts the ranks, ended {how}; see the "
        "log",
        signal=-exit_code if exit_code < 0 else None,
    )


def killed_for_memory(end: RankEnd, *, limit_bytes: int | None) -> RankEnd:
    """`end`, which was a SIGKILL, once it is known that the kernel sent it for want of memory."""
    who = "the fork server" if end.rank is None else f"rank {end.rank}"
    where = (
        "the machine's memory ran out: set workers.resources.memory to what the ranks need"
        if limit_bytes is None
        else f"memory ran out at {limit_bytes / 2**20:.0f}Mi (workers.resources.memory): raise it"
    )
    return replace(
        end,
        failure_class=FailureClass.OUT_OF_MEMORY,
        reason="OutOfMemory",
        message=f"the kernel killed {who} because {where}, or lower training.batchTokens or raise "
        "training.gradientAccumulation",
    )


def end_of_patience(*, rank: int, now: float) -> RankEnd:
    """The supervisor killed the rank, which had neither finished nor failed by itself."""
    return RankEnd(
        rank=rank,
        outcome="Ended",
        time=now,
        failure_class=FailureClass.UNKNOWN,
        reason="Killed",
        message=f"rank {rank} was killed before it had saved; the newest checkpoint is intact, and "
        "the run goes on from it",
    )


def out_of_grace(end: RankEnd, *, grace_seconds: int, step: int | None) -> RankEnd:
    """`end`, of a rank that was killed because it had not saved when the grace was nearly over."""
    newest = f"the intact checkpoint of step {step}" if step else "the newest intact checkpoint"
    return replace(
        end,
        failure_class=FailureClass.DISRUPTION,
        reason="GraceTooShort",
        message=f"told to stop, and the save did not end within recovery.graceSeconds "
        f"{grace_seconds}: {newest} stands, and the run goes on from it; raise "
        "recovery.graceSeconds, for the pods to come",
    )


def end_of_peer(message: str, *, rank: int, now: float) -> RankEnd:
    """A rank that would wait in vain for one of another pod."""
    return RankEnd(
        rank=rank,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.PEER_LOST,
        reason="PeerLost",
        message=f"rank {rank} waited for a rank of another pod, which had ended: {message}",
    )


def decisive(ends: Sequence[RankEnd]) -> RankEnd | None:
    """The end that is the pod's; None when all of `ends`, one per rank, finished.

    A cause before a preemption before a consequence, and the earliest of its sort: ranks that
    saved because they were told to stop did so whatever befell their peers afterwards.
    """

    def order(end: RankEnd) -> tuple[int, float]:
        if end.outcome == "Failed":
            consequence = end.failure_class is not None and end.failure_class.is_consequence
            return (2 if consequence else 0), end.time
        return (1 if end.outcome == "Preempted" else 3), end.time

    return min((end for end in ends if end.outcome != "Finished"), key=order, default=None)


def print_unless_known(error: BaseException) -> None:
    """The traceback of what nobody expected; an error of ours has said it all in its sentence."""
    if not isinstance(error, TrainerError | Preempted):
        traceback.print_exception(error)


def frames_of(trace: TracebackType | None) -> tuple[str, ...]:
    """file:line function, innermost last, with paths relative to where modules are found."""
    frames = [
        f"{_relative(frame.filename)}:{frame.lineno} {frame.name}"[:FRAME_LENGTH_MAX]
        for frame in traceback.extract_tb(trace)
    ]
    return tuple(frames[-FRAMES_MAX:])


def type_name(error: BaseException) -> str:
    """The exception's type, with its module unless that is Python's own."""
    kind = type(error)
    name = kind.__qualname__
    full = name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"
    return full[:TYPE_LENGTH_MAX]


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_out_of_memory(error: BaseException) -> bool:
    """True for Python's, CUDA's and the CPU allocator's way of saying it.

    torch is not imported here: a rank that raised its error has it loaded.
    """
    torch = sys.modules.get("torch")
    kinds: tuple[type[BaseException], ...] = (MemoryError,)
    if torch is not None and hasattr(torch, "OutOfMemoryError"):
        kinds += (torch.OutOfMemoryError,)
    if isinstance(error, kinds):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _relative(filename: str) -> str:
    path = Path(filename)
    roots = [Path(entry) for entry in sys.path if entry and path.is_relative_to(entry)]
    deepest = max(roots, key=lambda root: len(root.parts), default=None)
    return str(path.relative_to(deepest)) if deepest else path.name
