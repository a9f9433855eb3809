"""When the ranks of a job are started again inside their pods: rounds.

Promise: the lead's supervisor counts the rounds, the others follow it by reading its report, and a
round is never gone back to; so all ranks of a gang are of one round, and an older one is fenced.
Works while the operator is down.
Trap avoided: starting again for ever. What cannot help is not tried, the same fault at the same
step three times is evidence and no bad luck, and rounds without a step wait longer each time.
"""

import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from lmtraining_api import FailureClass, FaultReport, TrainerReport
from lmtraining_api.names import REPORT_BYTES_MAX
from lmtraining_api.records import MESSAGE_LENGTH_MAX
from lmtraining_trainer.supervisor.failure import RankEnd

FIRST_ROUND = 1
SAME_FAULT_MAX = 3
BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 60.0
ASK_SECONDS_MAX = 1.0
ASK_AGAIN_SECONDS = 0.05
ASK_AGAIN_SECONDS_MAX = 1.0
"""Pods that wait long ask less often: there may be hundreds of them."""
ASK_PEERS_TIMES = 4
PEERS_ASKED_MAX = 16
LEAD_SILENT_SECONDS_MAX = 30.0
"""A lead that does not answer for so long is gone; the operator sees to it."""
MENDABLE = frozenset({FailureClass.CRASH, FailureClass.HANG, FailureClass.PEER_LOST})
"""What another start of the same ranks on the same machines can mend."""
FENCED = "Fenced"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The end of a round."""

    end: RankEnd
    step: int
    """Steps done when it ended."""
    made_a_step: bool
    """Whether the round had come to one."""

    @property
    def kind(self) -> tuple[str, int | None, int] | None:
        """What makes two faults the same; None where it is another pod's, which counts for
        itself."""
        if self.end.failure_class is FailureClass.PEER_LOST:
            return None
        return self.end.reason, self.end.rank, self.step


def may_start_again(faults: Sequence[Fault], *, rounds_max: int) -> bool:
    """Whether another round can help, after these faults of this attempt, oldest first."""
    end = faults[-1].end
    if end.failure_class not in MENDABLE or end.reason == FENCED or len(faults) > rounds_max:
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


def round_of_lead(address: str, port: int, *, job_uid: str, attempt: int) -> int | None:
    """The round that the lead's supervisor is in; None where it does not say."""
    report = _report_of(address, port, job_uid=job_uid, attempt=attempt)
    return report.round if report is not None and report.state != "Failed" else None


def _report_of(address: str, port: int, *, job_uid: str, attempt: int) -> TrainerReport | None:
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


def fault_of_peers(
    addresses: Sequence[str],
    port: int,
    *,
    job_uid: str,
    attempt: int,
    round_number: int,
    times: int = ASK_PEERS_TIMES,
    consequences: bool = False,
) -> FaultReport | None:
    """What ended this round, where it happened in another pod. Its supervisor hears of it in the
    same moment as we do, so it is asked more than once. `consequences`: also where that pod only
    lost a peer."""
    for _ in range(times):
        for address in addresses[:PEERS_ASKED_MAX]:
            report = _report_of(address, port, job_uid=job_uid, attempt=attempt)
            fault = report.last_fault if report is not None else None
            is_of_round = fault is not None and fault.round == round_number
            if fault is None or not is_of_round:
                continue
            if consequences or not fault.failure_class.is_consequence:
                return fault
        time.sleep(ASK_AGAIN_SECONDS)
    return None


def await_newer_round(
    ask: Callable[[], int | None], *, than: int, turn: Callable[[float], bool]
) -> int | None:
    """The lead's next round; None where it is gone, or `turn` says that there is no point."""
    heard_at, pause = time.monotonic(), ASK_AGAIN_SECONDS
    while turn(pause):
        pause = min(ASK_AGAIN_SECONDS_MAX, 1.2 * pause)
        found = ask()
        if found is not None:
            heard_at = time.monotonic()
            if found > than:
                return found
        elif time.monotonic() - heard_at > LEAD_SILENT_SECONDS_MAX:
            return None
    return None


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
        time=datetime.now(UTC),
    )
