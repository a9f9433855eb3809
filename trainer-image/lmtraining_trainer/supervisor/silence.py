"""Which rank hangs, and where.

Promise: a rank that says nothing for much longer than it ever did is found, with the stack of every
rank of the pod as evidence. The limit is learned from the run itself, never below the one in the
spec.
Trap avoided: when one rank hangs, all others wait for it in their next collective and fall silent
in the same second. One that does not even answer a signal is the one; else the one that does not
wait for others.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmtraining_api import FailureClass
from lmtraining_trainer.rank_link import RankUpdate
from lmtraining_trainer.supervisor.failure import FRAME_LENGTH_MAX, RankEnd

LONGEST_FACTOR = 10.0
"""A silence so many times the longest one so far is a hang."""
BEFORE_FIRST_STEP_SECONDS = 600.0
"""The limit while nothing is known yet: the first step may compile, the first pull may be slow."""
STACK_SECONDS_MAX = 1.0
STACK_POLL_SECONDS = 0.02
ENDING_SECONDS = 1.0
"""How long a rank that answers, and does not wait, may take to end."""
WAITING_PATIENCE_SECONDS = 30.0
"""Ranks that wait for ranks of other pods leave it to those pods for so long."""
STACK_SIGNAL = signal.SIGUSR1
#: In a stack, a sign that the rank waits for others.
WAITS_FOR_OTHERS = ("distributed_c10d.py", "gang.py", "torch/autograd/graph.py", "distributed.py")


@dataclass(frozen=True, kw_only=True)
class Silence:
    """The longest silence of each rank of this round, once it has made a step."""

    limit_min_seconds: float
    longest: Mapping[int, float] = field(default_factory=dict)

    def after(self, update: RankUpdate, heard: Mapping[int, float], now: float) -> "Silence":
        """After another word. What came before a rank's first step says nothing about the rest."""
        rank = update.rank
        if rank not in self.longest:
            has_stepped = update.state == "Training" and update.fields.get("step")
            return replace(self, longest={**self.longest, rank: 0.0}) if has_stepped else self
        longest = max(now - heard.get(rank, now), self.longest[rank])
        return replace(self, longest={**self.longest, rank: longest})

    def limit_seconds(self, rank: int) -> float:
        """How long this rank may say nothing."""
        if rank not in self.longest:
            return max(self.limit_min_seconds, BEFORE_FIRST_STEP_SECONDS)
        return max(self.limit_min_seconds, LONGEST_FACTOR * self.longest[rank])

    def silent(self, heard: Mapping[int, float], now: float) -> list[int]:
        """The ranks that have been silent for too long, the longest first."""
        ages = {rank: now - at for rank, at in heard.items()}
        late = [rank for rank, age in ages.items() if age > self.limit_seconds(rank)]
        return sorted(late, key=lambda rank: -ages[rank])


def stack_file(directory: Path, rank: int) -> Path:
    """Where the rank writes its stack when it is asked to."""
    return directory / f"rank-{rank}.stack"


def stacks(directory: Path, processes: Mapping[int, int]) -> dict[int, str]:
    """The stack of each rank (by number, with its process id) that answers in time."""
    for rank, process in processes.items():
        stack_file(directory, rank).write_bytes(b"")  # what it answered before is no answer now
        with suppress(ProcessLookupError):
            os.kill(process, STACK_SIGNAL)
    deadline = time.monotonic() + STACK_SECONDS_MAX
    partial: dict[int, str] = {}
    found: dict[int, str] = {}
    while len(found) < len(processes) and time.monotonic() < deadline:
        time.sleep(STACK_POLL_SECONDS)
        for rank in processes.keys() - found.keys():
            text = _read(stack_file(directory, rank))
            if text and text == partial.get(rank):
                found[rank] = text
            partial[rank] = text
    return found


def culprit(silent: Sequence[int], found: Mapping[int, str]) -> int:
    """Of the silent ranks, the one that the others wait for."""
    deaf = [rank for rank in silent if rank not in found]
    busy = [rank for rank in silent if rank in found and not waits_for_others(found[rank])]
    return [*deaf, *busy, *silent][0]


def end_of_silence(rank: int, *, seconds: float, stack: str | None, now: float) -> RankEnd:
    """How a rank ended that was killed because it hung."""
    frames = frames_of_stack(stack) if stack else ()
    where = f"it was at {frames[-1]}" if frames else "it answered no signal"
    return RankEnd(
        rank=rank,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.HANG,
        reason="Hung",
        message=f"rank {rank} said nothing for {seconds:.0f} s; {where}; the stacks of all ranks "
        "are in the log and below hangs/ in the run directory",
        frames=frames,
    )


def frames_of_stack(text: str) -> tuple[str, ...]:
    """file:line function of faulthandler's newest thread, innermost last."""
    frames = []
    _, _, current = text.rpartition("Current thread")
    for line in current.splitlines():
        words = line.strip().removeprefix("File ").split('"')
        if line.startswith("  File ") and len(words) == 3:
            number, _, function = words[2].removeprefix(", line ").partition(" in ")
            name = "/".join(Path(words[1]).parts[-3:])
            frames.append(f"{name}:{number} {function}"[:FRAME_LENGTH_MAX])
    return tuple(reversed(frames[:20]))


def waits_for_others(stack: str) -> bool:
    return any(sign in frame for frame in frames_of_stack(stack)[-3:] for sign in WAITS_FOR_OTHERS)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
