"""Which rank hangs, and where.

Promise: a rank that gives no sign of life for much longer than it ever did in the same phase of
this round is found, and the others, who only wait for it, are not blamed.
Trap avoided: when one rank hangs, all others wait for it in their next collective and fall silent
in the same second. One that does not even answer a signal is the one; else the one that does not
wait for others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmtraining_api import FailureClass, RankStack
from lmtraining_trainer.phase import Phase, Sign
from lmtraining_trainer.supervisor.failure import FRAME_LENGTH_MAX, RankEnd

LONGEST_FACTOR = 10.0
"""A silence so many times the longest one so far is a hang."""
BEFORE_FIRST_STEP_SECONDS = 600.0
"""The limit while nothing is known yet: the first step may compile, the first pull may be slow."""
FIRST_TIME_SECONDS_MIN = 60.0
"""The least limit of a phase that a rank is in for the first time, once it steps."""
WAITING_PATIENCE_SECONDS = 30.0
"""Ranks that wait for ranks of other pods leave it to those pods for so long."""
EVERY_STEP = frozenset({Phase.DATA, Phase.FORWARD, Phase.COLLECTIVE, Phase.OPTIMIZER})
#: In a stack, a sign that the rank waits for others: while they connect, in the backward pass,
#: which a rank never leaves before all have come to the same gradients, and for parts of weights,
#: which may be in any phase.
WAITS_FOR_OTHERS = (
    "torch/autograd/graph.py",
    "distributed.py",
    "distributed_c10d.py",
    "_functional_collectives.py",
    "tensor/_redistribute.py",
    "_fully_shard/",
)
#: How torch finds the function to call: frames that say nothing of what is done.
DISPATCH = ("/torch/_ops.py", "_library/autograd.py")
INNERMOST_FRAMES = 3
"""So many say what a rank does; those further out are there whatever it does."""


def limit_seconds(sign: Sign, *, limit_min_seconds: float) -> float:
    """How long a rank may give no sign of life where it is.

    A phase that is new to a rank that steps, such as the first optimizer step, validation or save,
    gets as much as the slowest phase so far: compiling, allocating and reading from cold storage
    have happened in that one already, and what takes longer than a minute says that it lives. What
    is done now and then (saves, validations, sampled figures) has never been seen at its slowest,
    but it too takes longer where steps do.
    """
    if not sign.longest[Phase.FORWARD]:
        return max(limit_min_seconds, BEFORE_FIRST_STEP_SECONDS)
    known, slowest = sign.longest[sign.phase], max(sign.longest.values())
    if not known:
        return max(limit_min_seconds, FIRST_TIME_SECONDS_MIN, LONGEST_FACTOR * slowest)
    usual = known if sign.phase in EVERY_STEP else slowest
    return max(limit_min_seconds, LONGEST_FACTOR * usual)


def seconds_left(sign: Sign, *, limit_min_seconds: float, now: float) -> float:
    """Until the rank is late; less than 0 from then on."""
    return limit_seconds(sign, limit_min_seconds=limit_min_seconds) - (now - sign.at)


def culprit(
    late: Sequence[int], signs: Mapping[int, Sign], found: Mapping[int, str]
) -> tuple[int, bool]:
    """Of the late ranks, the one that the others wait for; and whether it too waits for others.
    `found`: the stacks of those that answered."""
    deaf = [rank for rank in late if rank not in found]
    busy = [rank for rank in late if rank in found and not waits(signs[rank], found[rank])]
    rank = [*deaf, *busy, *late][0]
    return rank, rank not in (*deaf, *busy)


def waits(sign: Sign, stack: str) -> bool:
    """Whether a rank that answers waits for others."""
    if sign.phase is Phase.COLLECTIVE:
        return True
    frames = [each for each in frames_of_stack(stack) if not any(name in each for name in DISPATCH)]
    return any(mark in frame for frame in frames[-INNERMOST_FRAMES:] for mark in WAITS_FOR_OTHERS)


def end_of_silence(
    rank: int, *, seconds: float, limit: float, ranks: Sequence[RankStack], stack: str, now: float
) -> RankEnd:
    """How a rank ended that was killed because it hung. `stack` is empty where it answered no
    signal."""
    frames = frames_of_stack(stack)
    where = f"it was at {frames[-1]}" if frames else "it answered no signal"
    phase = next(each.phase for each in ranks if each.rank == rank)
    return RankEnd(
        rank=rank,
        outcome="Failed",
        time=now,
        failure_class=FailureClass.HANG,
        reason="Hung",
        message=f"rank {rank} said nothing for {_rounded(seconds)} s in {phase}; limit "
        f"{_rounded(limit)} s; {where}; the stacks of the ranks that answered are in the log and "
        "below hangs/ in the run directory",
        frames=frames,
        ranks=tuple(ranks),
    )


def where_each_was(
    signs: Mapping[int, Sign], found: Mapping[int, str], *, now: float
) -> list[RankStack]:
    """Phase and innermost frame of every rank, those that have been silent the longest first."""
    return [
        RankStack(
            rank=rank,
            phase=sign.phase,
            silent_seconds=round(max(0.0, now - sign.at), 3),
            frame=next(iter(frames_of_stack(found.get(rank, ""))[-1:]), ""),
        )
        for rank, sign in sorted(signs.items(), key=lambda item: item[1].at)
    ]


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


def _rounded(seconds: float) -> str:
    return f"{round(seconds, 1):g}"
