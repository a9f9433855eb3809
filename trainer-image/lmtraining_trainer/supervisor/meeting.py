"""Which pods train together, and in which round: agreed before a rank is started.

Promise (P1): the lead counts, and a number is never used twice in an attempt, whoever leads. A lead
that has gone on counts one up; one that is new, which does not know what was, first hears from all
others that they go by its peer table, and so will follow nobody else, and then takes a number above
all that they have been in. The others go with the lead that goes by the same table. All of it works
while the operator is down.
Trap avoided: a pod whose lead was replaced would wait for a round that nobody counts, or join one
of the lead that was. While the table is not complete the operator is at work: there is no limit.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lmtraining_api import FaultReport, TrainerReport
from lmtraining_trainer.run.fence import newest_mark
from lmtraining_trainer.supervisor.assignment import Assignment
from lmtraining_trainer.supervisor.intent import Gang, Waiting, gang_of
from lmtraining_trainer.supervisor.rounds import report_of

INTENT_POLL_SECONDS = 0.1
ASK_AGAIN_SECONDS = 0.05
ASK_AGAIN_SECONDS_MAX = 1.0
"""Pods that wait long ask less often: there may be hundreds of them."""
ASKED_AT_ONCE_MAX = 16
ASK_CAUSE_TIMES = 4
NEW_POD_SECONDS_MAX = 600.0
"""A new pod asks others that may have been started a moment ago, from a slow disk."""
SILENT_SECONDS_MAX = 60.0
"""A lead that does not answer for so long, while the operator names it, is gone."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """One pod's part in agreeing."""

    assignment: Assignment
    turn: Callable[[float], bool]
    """Wait so many seconds; False once told to stop."""
    waits: Callable[[str], None]
    """Say what is waited for."""
    goes_by: Callable[[Gang], None]
    """Tell the others which peer table was read."""

    def gang(self) -> Gang | Waiting:
        """What the intent says now."""
        given = self.assignment
        return gang_of(given.read_intent(), identity=given.identity, job=given.job)

    def next(self, *, past: int) -> tuple[Gang, int] | None:
        """The gang, and its round after `past`, the last one of this pod (0: it is new). None when
        told to stop, or when those that are asked stay silent."""
        silent_max = NEW_POD_SECONDS_MAX if past == 0 else SILENT_SECONDS_MAX
        heard_at, pause = time.monotonic(), 0.0
        while self.turn(pause):
            gang = self.gang()
            if isinstance(gang, Waiting):
                self.waits(gang.message)
                heard_at, pause = time.monotonic(), INTENT_POLL_SECONDS
                continue
            if self.assignment.leads and past > 0:
                return gang, past + 1
            self.goes_by(gang)
            answers = self._ask(gang.other_addresses if self.assignment.leads else gang.leads)
            number = self._agreed(gang, answers, past=past)
            if number is not None:
                return gang, number
            if None not in answers:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > silent_max:
                return None
            pause = min(ASK_AGAIN_SECONDS_MAX, max(ASK_AGAIN_SECONDS, 1.2 * pause))
        return None

    def cause_elsewhere(self, gang: Gang, *, number: int) -> FaultReport | None:
        """What ended this round, where it happened in another pod. Its supervisor hears of it in
        the same moment as we do, so it is asked more than once."""
        for _ in range(ASK_CAUSE_TIMES):
            fault = self._fault_elsewhere(gang, number=number, consequences=False)
            if fault is not None:
                return fault
            time.sleep(ASK_AGAIN_SECONDS)
        return None

    def left_elsewhere(self, gang: Gang, *, number: int) -> str | None:
        """Why this round is over, where another pod knows that it is: the lead asks the others,
        they ask the lead."""
        if self.assignment.leads:
            fault = self._fault_elsewhere(gang, number=number, consequences=True)
            return fault.message if fault is not None else None
        newest = max((answer.round for answer in self._ask(gang.leads) if answer), default=0)
        return f"the lead is in round {newest} by now" if newest > number else None

    def _fault_elsewhere(
        self, gang: Gang, *, number: int, consequences: bool
    ) -> FaultReport | None:
        """What another pod says that ended this round; `consequences`: also where it only lost a
        peer."""
        for report in self._ask(gang.other_addresses[:ASKED_AT_ONCE_MAX]):
            fault = report.last_fault if report is not None else None
            if fault is None or fault.round != number:
                continue
            if consequences or not fault.failure_class.is_consequence:
                return fault
        return None

    def _agreed(
        self, gang: Gang, answers: Sequence[TrainerReport | None], *, past: int
    ) -> int | None:
        there = [a for a in answers if a is not None and a.state != "Failed"]
        if len(there) < len(answers) or any(a.gang != gang.digest for a in there):
            return None
        rounds = [answer.round for answer in there]
        if self.assignment.leads:
            return 1 + max([self._fenced_round(), *rounds])
        return rounds[0] if rounds[0] > past else None

    def _fenced_round(self) -> int:
        """The newest round of this attempt that has written; 0 where that is not to be known: then
        the ranks are told, before they write."""
        given = self.assignment
        try:
            mark = newest_mark(Path(given.job.run_directory))
        except OSError:
            return 0
        is_ours = mark is not None and mark.job_uid == given.job.job_uid
        return mark.round if mark and is_ours and mark.attempt == given.identity.attempt else 0

    def _ask(self, addresses: Sequence[str]) -> list[TrainerReport | None]:
        if not addresses:
            return []
        given = self.assignment

        def ask(address: str) -> TrainerReport | None:
            return report_of(
                address,
                given.report_port,
                job_uid=given.job.job_uid,
                attempt=given.identity.attempt,
            )

        with ThreadPoolExecutor(min(len(addresses), ASKED_AT_ONCE_MAX)) as threads:
            return list(threads.map(ask, addresses))
