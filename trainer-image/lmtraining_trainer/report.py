"""From what ranks say to the report that the operator reads.

Promise: `merged` is a pure function that never raises, whatever a rank says: what it does not
understand, it leaves out. A report holds no NaN, since JSON has none: a value that is not finite is
absent and a flag says so. The seconds by state add up to the wall time since the supervisor
started (P9), because one clock is cut at each change of state, and nothing else is measured.
Trap avoided: a report assembled from parts that change while it is read. A `Snapshot` is frozen,
and the supervisor swaps it whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, get_args

from pydantic import ValidationError

from lmtraining_api import ExitRecord, FaultReport, RankHealth, State, TrainerReport
from lmtraining_api.names import REPORT_BYTES_MAX
from lmtraining_api.records import MESSAGE_LENGTH_MAX, RANKS_REPORTED_MAX
from lmtraining_trainer.clock import Clock
from lmtraining_trainer.phase import Sign
from lmtraining_trainer.rank_link import RankUpdate

#: What the supervisor alone may say; a rank that names one of these is not heard.
_SUPERVISORS_OWN = frozenset(
    {
        "schema_version",
        "job_uid",
        "attempt",
        "round",
        "gang",
        "state",
        "report_time",
        "time_seconds",
        "ranks",
        "last_exit",
        "last_fault",
    }
)
_STATES = frozenset(get_args(State))
_RANKS_OWN = frozenset(TrainerReport.model_fields) - _SUPERVISORS_OWN


#: Seconds by state, since the supervisor started.
StateClock = Clock[State]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that the supervisor knows, at one moment. Times are monotonic seconds."""

    report: TrainerReport
    clock: StateClock
    scores: Mapping[int, float] = field(default_factory=dict)
    """Of each rank of this pod, as of the newest comparison."""
    last_exit: ExitRecord | None = None
    leads: bool = True
    """True where rank 0 is, and so the steps are known."""

    def turned(self, state: State, now: float, message: str | None = None) -> "Snapshot":
        """This, in another state. A message left out lasts as long as its state does."""
        kept = self.report.message if state == self.report.state else ""
        text = kept if message is None else message[:MESSAGE_LENGTH_MAX]
        report = self.report.model_copy(update={"state": state, "message": text})
        return replace(self, report=report, clock=self.clock.turned(state, now))

    def going_by(self, gang: str) -> "Snapshot":
        """This, once that peer table was read."""
        return replace(self, report=self.report.model_copy(update={"gang": gang}))

    def in_round(self, number: int, gang: str, fault: FaultReport | None) -> "Snapshot":
        """This, at the start of another round: what the ranks of the last one said of themselves is
        forgotten, what they said of the run stays."""
        report = self.report.model_copy(
            update={
                "round": number,
                "gang": gang,
                "last_fault": fault,
                "first_step_time": None,
                "resumed_from_step": None,
                "load_seconds": None,
                "replayed_steps": 0,
                "tokens_per_second": None,
                "mfu": None,
                "eta_seconds": None,
                "slowest_ranks": [],
            }
        )
        return replace(self, report=report, scores={})

    def rendered(
        self, now: float, wall_time: datetime, *, signs: Mapping[int, Sign]
    ) -> TrainerReport:
        """The report as of now, with what the ranks of this pod are doing."""
        ranks = [
            RankHealth(
                rank=rank,
                heartbeat_age_seconds=round(max(0.0, now - sign.at), 3),
                phase=sign.phase,
                score=self.scores.get(rank),
            )
            for rank, sign in sorted(signs.items())[:RANKS_REPORTED_MAX]
        ]
        return self.report.model_copy(
            update={
                "report_time": wall_time,
                "time_seconds": {k: round(v, 3) for k, v in self.clock.seconds(now).items()},
                "ranks": ranks,
                "last_exit": self.last_exit,
            }
        )


def merged(report: TrainerReport, fields: Mapping[str, Any]) -> TrainerReport:
    """`report` with what a rank said; fields that are unknown or odd are left out."""
    said = {name: _finite(value) for name, value in fields.items() if name in _RANKS_OWN}
    message = said.get("message")
    if isinstance(message, str):
        said["message"] = message[:MESSAGE_LENGTH_MAX]
    if "loss" in said:
        said["loss_is_finite"] = said["loss"] is not None
    known = {name: getattr(report, name) for name in TrainerReport.model_fields}
    try:
        return TrainerReport.model_validate(known | said)
    except ValidationError as error:
        odd = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    understood = {name: value for name, value in said.items() if name not in odd}
    try:
        return TrainerReport.model_validate(known | understood)
    except ValidationError:
        return report


def heard(snapshot: Snapshot, update: RankUpdate, *, voice: int, now: float) -> Snapshot:
    """`snapshot` after one word of a rank.

    Only the lowest rank of the pod, `voice`, speaks for its state, and only rank 0 for the run:
    four ranks that change state a millisecond apart would otherwise make the state flicker.
    """
    score = _finite(update.fields.get("score"))
    if isinstance(score, float):
        snapshot = replace(snapshot, scores={**snapshot.scores, update.rank: score})
    if update.rank != voice:
        return snapshot
    if snapshot.report.state != "Stopping" and update.state in _STATES:
        snapshot = snapshot.turned(update.state, now)
    said = update.fields if update.rank == 0 else {"message": update.fields.get("message", "")}
    return replace(snapshot, report=merged(snapshot.report, said))


def report_json(report: TrainerReport) -> bytes:
    """The report as strict JSON of at most `REPORT_BYTES_MAX` bytes."""
    body = report.model_dump_json(by_alias=True).encode()
    if len(body) > REPORT_BYTES_MAX:
        # All else at its bounds just fits. Nobody decides by the ranks, which can be seen on their
        # own pods, or by the labels, which the operator remembers and the export has.
        shorter = report.model_copy(update={"ranks": [], "labels": []})
        body = shorter.model_dump_json(by_alias=True).encode()
    return body


def _finite(value: object) -> object:
    """The value, or None where it is a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
