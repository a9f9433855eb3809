"""What the operator is told, and no half of ours would say: statuses written by hand, reports and
exit records of somebody else's trainer.

Promise: all that gets past the schemas, and what of a status the policy turns on (the attempt, a
failure in it, the marks in the conditions) often enough together to mislead it. Trap avoided: a
status drawn without regard to that is nearly always that of a job which ended long ago, or is far
in another attempt.
"""

import random
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lmtraining_api.records import ExitRecord, TrainerReport
from lmtraining_api.status import ConditionType, Scheduled, Succeeded
from lmtraining_crdgen.convert import structural_schema
from lmtraining_crdgen.manifest import root_schema
from tests.contract_cases import Document
from tests.fuzz.specs import good_value

KNOWN_ATTEMPT_SHARE = 0.7
ACTIVE_SHARE = 0.6
KNOWN_REASON_SHARE = 0.7
REASONS = {ConditionType.SCHEDULED: tuple(Scheduled), ConditionType.SUCCEEDED: tuple(Succeeded)}
STATUS: Document = root_schema()["properties"]["status"]
REPORT, EXIT = (structural_schema(m, lambda _, node: node) for m in (TrainerReport, ExitRecord))

Record = TypeVar("Record", bound=BaseModel)


def status_by_hand(chance: random.Random) -> Document:
    """A status that the API server takes, and no operator has written."""
    status: Document = good_value(chance, STATUS)
    status.pop("schemaVersion", None)  # that of a newer operator is left alone
    if chance.random() < KNOWN_ATTEMPT_SHARE:
        status["attempt"] = chance.randint(0, 2)
    failure = status.get("lastFailure")
    if failure and chance.random() < KNOWN_ATTEMPT_SHARE:
        failure["attempt"] = status.get("attempt", 0)
    for condition in status.get("conditions", []):
        if condition["type"] in REASONS and chance.random() < KNOWN_REASON_SHARE:
            condition["reason"] = chance.choice(REASONS[condition["type"]])
    if chance.random() < ACTIVE_SHARE:
        kept = [c for c in status.get("conditions", []) if c["type"] != ConditionType.SUCCEEDED]
        status["conditions"] = kept
    return status


def report(chance: random.Random, uid: str, attempt: int) -> TrainerReport | None:
    """A report that names the job; None where nothing that can be read was drawn."""
    said = good_value(chance, REPORT) | {"jobUid": uid, "attempt": attempt}
    if "lastExit" in said:
        said["lastExit"] |= {"jobUid": uid, "attempt": attempt}
    return _read(TrainerReport, said)


def exit_record(chance: random.Random, uid: str, attempt: int) -> ExitRecord | None:
    said = good_value(chance, EXIT) | {"jobUid": uid, "attempt": attempt, "replica": 0}
    return _read(ExitRecord, said)


def _read(model: type[Record], said: Any) -> Record | None:
    try:
        return model.model_validate(said)
    except ValidationError:
        return None
