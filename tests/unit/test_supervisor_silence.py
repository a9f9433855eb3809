"""Which rank hangs: limits, the one to blame, and what is said of it."""

import pytest

from lmtraining_trainer.phase import Phase, Sign
from lmtraining_trainer.supervisor.rounds import fault_report
from lmtraining_trainer.supervisor.silence import (
    BEFORE_FIRST_STEP_SECONDS,
    FIRST_TIME_SECONDS_MIN,
    culprit,
    end_of_silence,
    frames_of_stack,
    limit_seconds,
    seconds_left,
    where_each_was,
)
from tests.unit.test_supervisor_report import BLANK

pytestmark = pytest.mark.unit

FLOOR = 2.0


def sign(phase: Phase = Phase.OTHER, at: float = 0.0, **longest: float) -> Sign:
    known = {each: longest.get(each.value, 0.0) for each in Phase}
    return Sign(phase=phase, at=at, longest=known)


STEPS = {"forward": 1.0, "data": 0.01}
LIMITS = [
    ("nothing is known yet", Phase.STARTUP, {}, BEFORE_FIRST_STEP_SECONDS),
    ("nor in the first forward pass", Phase.FORWARD, {"data": 0.1}, BEFORE_FIRST_STEP_SECONDS),
    ("ten times the longest", Phase.FORWARD, STEPS, 10.0),
    ("and not less than the floor", Phase.DATA, STEPS, FLOOR),
    ("each phase has its own", Phase.SAVE, {**STEPS, "save": 30.0}, 300.0),
    ("what is done now and then", Phase.EVAL, {**STEPS, "eval": 0.1}, 10.0),
    ("as the sampled figures", Phase.OTHER, {**STEPS, "other": 0.1}, 10.0),
    ("one that is new to a rank that steps", Phase.OPTIMIZER, STEPS, FIRST_TIME_SECONDS_MIN),
    ("may take what the slowest takes", Phase.EVAL, {"forward": 9.0}, 90.0),
    ("a rewind is no start", Phase.LOAD, STEPS, FIRST_TIME_SECONDS_MIN),
]


@pytest.mark.parametrize(("phase", "longest", "seconds"), [case[1:] for case in LIMITS],
                         ids=[case[0] for case in LIMITS])  # fmt: skip
def test_the_limit_is_learned_by_phase(
    phase: Phase, longest: dict[str, float], seconds: float
) -> None:
    assert limit_seconds(sign(phase, **longest), limit_min_seconds=FLOOR) == seconds


def test_a_high_floor_holds_everywhere() -> None:
    for phase in Phase:
        for longest in ({}, STEPS):
            assert limit_seconds(sign(phase, **longest), limit_min_seconds=900.0) == 900.0


def test_a_rank_is_late_from_its_limit_on() -> None:
    forward = sign(Phase.FORWARD, at=100.0, **STEPS)
    assert seconds_left(forward, limit_min_seconds=FLOOR, now=104.0) == 6.0
    assert seconds_left(forward, limit_min_seconds=FLOOR, now=111.0) == -1.0


def stack(*places: str) -> str:
    """As faulthandler writes it, newest call first."""
    lines = [f'  File "/site/{place}", line 7 in run' for place in places]
    return "\n".join(["Thread 0x01 (most recent call first):", '  File "/x/idle.py", line 1 in f',
                      "", "Current thread 0x02 (most recent call first):", *lines])  # fmt: skip


IN_BACKWARD = stack("torch/autograd/graph.py", "torch/_tensor.py", "trainer/step.py")
IN_CONNECT = stack("torch/distributed/distributed_c10d.py", "trainer/gang.py", "trainer/rank.py")
IN_GATHER = stack(
    "torch/_ops.py", "torch/_library/autograd.py", "torch/_library/autograd.py", "torch/_ops.py",
    "torch/distributed/_functional_collectives.py", "torch/distributed/_functional_collectives.py",
    "torch/distributed/tensor/_redistribute.py", "torch/distributed/tensor/_api.py",
)  # fmt: skip
"""As DTensor.full_tensor waits."""
IN_SHARDS = stack(
    "torch/distributed/distributed_c10d.py", "torch/distributed/c10d_logger.py",
    "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py",
)  # fmt: skip
AT_WORK = stack("trainer/data/batches.py", "trainer/loop.py")
IN_A_LAYER = stack(
    "torch/nn/functional.py", "torch/nn/modules/linear.py", "torch/nn/modules/module.py",
    "torch/distributed/fsdp/_fully_shard/_fsdp_state.py",
)  # fmt: skip
"""Called by a wrapper that could wait, but does not."""

CULPRITS = [
    ("the deaf one", {0: (Phase.FORWARD, AT_WORK), 1: (Phase.COLLECTIVE, "")}, (1, False)),
    ("the one that reads data", {0: (Phase.COLLECTIVE, AT_WORK), 1: (Phase.DATA, AT_WORK)},
     (1, False)),
    ("the one in a forward pass", {0: (Phase.FORWARD, IN_BACKWARD), 1: (Phase.FORWARD, AT_WORK)},
     (1, False)),
    ("the one that saves", {0: (Phase.FORWARD, IN_BACKWARD), 1: (Phase.SAVE, AT_WORK)},
     (1, False)),
    ("the one in a layer, not those that wait for its part of the weights",
     {0: (Phase.EVAL, IN_SHARDS), 1: (Phase.EVAL, IN_A_LAYER)}, (1, False)),
    ("the one that exports, not the one that gathers",
     {0: (Phase.SAVE, IN_GATHER), 1: (Phase.SAVE, AT_WORK)}, (1, False)),
    ("the one that looks beside, not the one that waits there",
     {0: (Phase.OTHER, IN_SHARDS), 1: (Phase.OTHER, AT_WORK)}, (1, False)),
    ("the one that does not connect", {0: (Phase.STARTUP, IN_CONNECT), 1: (Phase.STARTUP, AT_WORK)},
     (1, False)),
    ("none: all wait", {0: (Phase.COLLECTIVE, AT_WORK), 1: (Phase.FORWARD, IN_BACKWARD)},
     (0, True)),
]  # fmt: skip


@pytest.mark.parametrize(("ranks", "expected"), [case[1:] for case in CULPRITS],
                         ids=[case[0] for case in CULPRITS])  # fmt: skip
def test_the_one_that_the_others_wait_for_is_blamed(
    ranks: dict[int, tuple[Phase, str]], expected: tuple[int, bool]
) -> None:
    signs = {rank: sign(phase) for rank, (phase, _) in ranks.items()}
    found = {rank: text for rank, (_, text) in ranks.items() if text}
    assert culprit(sorted(ranks), signs, found) == expected


def test_the_report_says_where_every_rank_was() -> None:
    signs = {0: sign(Phase.COLLECTIVE, at=11.0), 1: sign(Phase.DATA, at=10.0)}
    found = {0: IN_BACKWARD}
    ranks = where_each_was(signs, found, now=18.04)
    end = end_of_silence(1, seconds=8.04, limit=5.0, ranks=ranks, stack="", now=18.04)
    assert end.message.startswith(
        "rank 1 said nothing for 8 s in data; limit 5 s; it answered no signal; the stacks"
    )
    fault = fault_report(BLANK, end)
    assert [(each.rank, each.phase, each.silent_seconds, each.frame) for each in fault.ranks] == [
        (1, "data", 8.04, ""),
        (0, "collective", 7.04, "torch/autograd/graph.py:7 run"),
    ]


def test_only_places_in_the_code_are_taken_from_a_stack() -> None:
    """P11."""
    text = 'Current thread 0x1:\n  secret text\n  File "a.py", line 1 in f\n'
    assert frames_of_stack(text) == ("a.py:1 f",)
