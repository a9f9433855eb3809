"""How often the ranks of an attempt start again inside their pods."""

import pytest

from lmtraining_api import FailureClass
from lmtraining_trainer.supervisor.failure import RankEnd
from lmtraining_trainer.supervisor.rounds import SAME_FAULT_MAX, Fault, may_start_again

ROUNDS_MAX = 10


def fault(
    number: int,
    failure_class: FailureClass = FailureClass.CRASH,
    *,
    reason: str = "RankKilled",
    step: int | None = None,
) -> Fault:
    end = RankEnd(
        rank=0, outcome="Failed", time=0.0, failure_class=failure_class, reason=reason, message=""
    )
    return Fault(end=end, step=number if step is None else step, made_a_step=True)


OWN = [fault(number) for number in range(ROUNDS_MAX + 1)]
OF_PEERS = [fault(number, FailureClass.PEER_LOST) for number in range(ROUNDS_MAX + 1)]


@pytest.mark.parametrize(
    ("faults", "may"),
    [
        (OWN[:ROUNDS_MAX], True),
        (OWN, False),
        # It may turn out that the peer's pod was lost, which is nobody's fault here.
        ([*OWN[:ROUNDS_MAX], OF_PEERS[0]], True),
        (OF_PEERS[:ROUNDS_MAX], True),
        (OF_PEERS, False),
        ([fault(0, FailureClass.CONFIGURATION)], False),
        ([fault(0, reason="Fenced")], False),
        ([fault(0, step=7)] * (SAME_FAULT_MAX - 1), True),
        ([fault(0, step=7)] * SAME_FAULT_MAX, False),
        ([fault(0, FailureClass.PEER_LOST, step=7)] * SAME_FAULT_MAX, True),
    ],
)
def test_when_another_round_can_help(faults: list[Fault], may: bool) -> None:
    assert may_start_again(faults, rounds_max=ROUNDS_MAX) is may
