"""A condition before it has a time.

Promise: all conditions are present from the first visit; lastTransitionTime moves only when status
does.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lmtraining_api.status import (
    Accepted,
    Checkpointed,
    Condition,
    ConditionType,
    DataReady,
    Healthy,
    LMTrainingJobStatus,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.plan import figures

Reason = Succeeded | Accepted | DataReady | Scheduled | Progressing | Healthy | Checkpointed
Value = Literal["True", "False", "Unknown"]

_TYPE_OF_REASON: dict[type[Reason], ConditionType] = {
    Succeeded: ConditionType.SUCCEEDED,
    Accepted: ConditionType.ACCEPTED,
    DataReady: ConditionType.DATA_READY,
    Scheduled: ConditionType.SCHEDULED,
    Progressing: ConditionType.PROGRESSING,
    Healthy: ConditionType.HEALTHY,
    Checkpointed: ConditionType.CHECKPOINTED,
}


@dataclass(frozen=True)
class Verdict:
    """What is said of one condition; the reason's type says which."""

    status: Value
    reason: Reason
    message: str = ""

    @property
    def type(self) -> ConditionType:
        return _TYPE_OF_REASON[type(self.reason)]


FIRST_VISIT = (
    Verdict("Unknown", Succeeded.PENDING),
    Verdict("Unknown", Accepted.VALID),
    Verdict("Unknown", DataReady.PENDING),
    Verdict("Unknown", Scheduled.PENDING),
    Verdict("False", Progressing.NOT_STARTED),
    Verdict("Unknown", Healthy.UNKNOWN),
    Verdict("False", Checkpointed.NONE_YET),
)


def with_conditions(
    status: LMTrainingJobStatus, verdicts: Iterable[Verdict], *, generation: int, now: datetime
) -> LMTrainingJobStatus:
    """The status after these have been said; conditions not spoken of stay as they are."""
    said = {verdict.type: verdict for verdict in FIRST_VISIT if not status.condition(verdict.type)}
    said |= {verdict.type: verdict for verdict in verdicts}
    conditions = [
        _renewed(status.condition(kind), said.get(kind), generation=generation, now=now)
        for kind in ConditionType
    ]
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def _renewed(
    old: Condition | None, verdict: Verdict | None, *, generation: int, now: datetime
) -> Condition:
    if verdict is None:
        assert old is not None, "a condition is spoken of on the first visit"
        return old.model_copy(update={"observed_generation": generation})
    is_same = old is not None and old.status == verdict.status
    return Condition(
        type=verdict.type,
        status=verdict.status,
        reason=verdict.reason,
        message=figures.bounded(verdict.message),
        last_transition_time=old.last_transition_time if old and is_same else now,
        observed_generation=generation,
    )
