"""When the ranks of a job are started again inside their pods: rounds.

Promise: what another start can mend is tried, a limited number of times. What happens because
another pod was replaced is not counted: it is nobody's fault here.
Trap avoided: starting again for ever. What cannot help is not tried, the same fault at the same
step three times is evidence and no bad luck, and rounds without a step wait longer each time.
"""

import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from lmtraining_api import FailureClass, FaultReport, TrainerReport
from lmtraining_api.names import POD_REPLACED, REPORT_BYTES_MAX
from lmtraining_api.records import HUNG_RANKS_MAX, MESSAGE_LENGTH_MAX
from lmtraining_trainer.supervisor.failure import RankEnd

FIRST_ROUND = 1
SAME_FAULT_MAX = 3
BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 60.0
ASK_SECONDS_MAX = 1.0
MENDABLE = frozenset({FailureClass.CRASH, FailureClass.HANG, FailureClass.PEER_LOST})
"""What another start of the same ranks on the same machines can mend."""
FENCED = "Fenced"
_OF_PEERS = frozenset({FailureClass.PEER_LOST, FailureClass.DISRUPTION})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The end of a round."""

    end: RankEnd
    step: int
    """Steps done when it ended."""
    made_a_step: bool
    """Whether the round had come to one."""

    @property
    def is_of_peers(self) -> bool:
        """Whether it is what another pod did: it left, or told this one to save and stop."""
        return self.end.outcome == "Preempted" or self.end.failure_class is FailureClass.PEER_LOST

    @property
    def kind(self) -> tuple[str, int | None, int] | None:
        """What makes two faults the same; None where it is another pod's, which counts for
        itself."""
        if self.is_of_peers:
            return None
        return self.end.reason, self.end.rank, self.step


def may_start_again(faults: Sequence[Fault], *, rounds_max: int) -> bool:
    """Whether another round can help, after these faults of this attempt, oldest first."""
    end = faults[-1].end
    is_mendable = end.outcome == "Preempted" or end.failure_class in MENDABLE
    of_peers = sum(fault.is_of_peers for fault in faults)
    # Each for itself: if a pod was replaced, those of peers will turn out to be nobody's fault.
    is_spent = max(of_peers, len(faults) - of_peers) > rounds_max
    if not is_mendable or end.reason == FENCED or is_spent:
        return False
    kinds = [fault.kind for fault in faults[-SAME_FAULT_MAX:]]
    return len(kinds) < SAME_FAULT_MAX or len(set(kinds)) > 1 or None in kinds


def wait_seconds(faults: Sequence[Fault]) -> float:
    """How long to wait before the next round: not at all after one that made a step."""
    fruitless = 0
    for fault in reversed(faults):
        if fault.made_a_step:
            break
        fruitless += 1
    return min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** (fruitless - 1)) if fruitless else 0.0


def report_of(address: str, port: int, *, job_uid: str, attempt: int) -> TrainerReport | None:
    """What another pod of the attempt says; None where it does not."""
    connection = http.client.HTTPConnection(address, port, timeout=ASK_SECONDS_MAX)
    try:
        connection.request("GET", "/report")
        body = connection.getresponse().read(REPORT_BYTES_MAX + 1)
        report = TrainerReport.model_validate_json(body)
    except (OSError, http.client.HTTPException, ValidationError):
        return None
    finally:
        connection.close()
    return report if report.job_uid == job_uid and report.attempt == attempt else None


def replaced_fault(report: TrainerReport, end: RankEnd) -> FaultReport:
    """What is said of the end of a round, once it is known that a pod was replaced. Where the one
    before ended for want of that pod, and this was the wait for it, the fault is of that time."""
    known = report.last_fault
    waited = known is not None and report.first_step_time is None
    is_same = waited and known is not None and known.failure_class in _OF_PEERS
    fault = known if is_same and known is not None else fault_report(report, end)
    return fault.model_copy(
        update={
            "failure_class": FailureClass.POD_LOST,
            "reason": POD_REPLACED,
            "message": "another pod is in the place of one that was lost",
        }
    )


def fault_report(report: TrainerReport, end: RankEnd) -> FaultReport:
    """What the report says of the end of a round."""
    return FaultReport(
        round=report.round,
        failure_class=end.failure_class or FailureClass.UNKNOWN,
        reason=end.reason,
        message=end.message[:MESSAGE_LENGTH_MAX],
        rank=end.rank,
        step=report.step,
        has_stepped=report.first_step_time is not None
        or (report.last_fault is not None and report.last_fault.has_stepped),
        ranks=list(end.ranks[:HUNG_RANKS_MAX]),
        time=datetime.now(UTC),
    )
