"""The plan has an answer to whatever stands in status, in pods and in what a container left behind,
and what it says the API server takes."""

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lmtraining_api.records import Intent, Peer
from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator.plan import (
    ContainerExit,
    Disruption,
    Observed,
    ObservedClaim,
    ObservedPod,
    ObservedReport,
    Settings,
    plan,
)
from lmtraining_operator.plan.model import Object
from lmtraining_operator.plan.writes import Pace, write_time
from tests.fuzz.specs import good_job
from tests.fuzz.told import exit_record, report, status_by_hand
from tests.fuzz.words import TEXTS

pytestmark = pytest.mark.unit

DRAWS = 400
UID = "12345678-1234-1234-1234-123456789012"
SETTINGS = Settings(trainer_image="registry.example/trainer:1")
NOW = datetime(2026, 11, 27, 20, 5, tzinfo=UTC)
CREATED = datetime(2026, 11, 27, 20, tzinfo=UTC)
MOMENTS = (None, CREATED, datetime(1970, 1, 1, tzinfo=UTC))
PHASES = ("Pending", "Running", "Running", "Failed", "Succeeded", "Unknown")
PODS_MAX = 4
WELL_SHARE = 0.6


def job(chance: random.Random) -> Object:
    made = good_job(chance, "tiny")
    made["metadata"] |= {
        "namespace": "default",
        "uid": UID,
        "generation": chance.randint(1, 2),
        "creationTimestamp": "2026-11-27T20:00:00Z",
    }
    return made


def well(chance: random.Random, attempt: int, count: int) -> tuple[ObservedPod, ...]:
    """The whole gang runs and has been told so: now it is for the report to mislead."""
    names = [f"tiny-{attempt}-{replica}-0" for replica in range(count)]
    peers = [Peer(replica=r, pod_uid=name, address="127.0.0.2") for r, name in enumerate(names)]
    told = Intent(job_uid=UID, attempt=max(attempt, 1), generation=1, peers=peers)
    return tuple(
        ObservedPod(
            name=name,
            uid=name,
            attempt=attempt,
            replica=replica,
            phase="Running",
            address="127.0.0.2",
            node="node-1",
            intent=told.model_dump_json(by_alias=True),
            created_at=chance.choice(MOMENTS),
        )
        for replica, name in enumerate(names)
    )


def pod(chance: random.Random, attempt: int, replica: int) -> ObservedPod:
    """One that the operator may have made, in a state that it may never have seen."""
    return ObservedPod(
        name=f"tiny-{attempt}-{replica}-{chance.randint(0, 1)}",
        uid=f"{attempt}-{replica}",
        attempt=attempt,
        replica=replica,
        phase=chance.choice(PHASES),
        address=chance.choice(("", "127.0.0.2")),
        node=chance.choice(("", "node-1")),
        is_deleting=chance.random() < 0.1,
        intent=chance.choice(("", "{}", *TEXTS)),
        created_at=chance.choice(MOMENTS),
        exit=chance.choice((None, None, container_exit(chance, attempt))),
        disruption=chance.choice(
            (None, None, Disruption(reason="Evicted", message="", since=None))
        ),
    )


def container_exit(chance: random.Random, attempt: int) -> ContainerExit:
    record = exit_record(chance, UID, attempt)
    said = record.model_dump_json(by_alias=True) if record else "{}"
    return ContainerExit(
        code=chance.choice((0, 1, 80, 137, 255, -1, 2**31)),
        reason=chance.choice(("Error", "OOMKilled", *TEXTS)),
        termination_message=chance.choice((said, said, "", '{"schemaVersion": 99}', *TEXTS)),
        finished_at=chance.choice(MOMENTS),
    )


def observed(chance: random.Random, attempt: int, replicas: int) -> Observed:
    said = report(chance, UID, attempt)
    claim = ObservedClaim(name="tiny-checkpoints", phase="Bound", made_for_job="tiny")
    attempts = (attempt, attempt, max(attempt - 1, 0), -1)
    drawn = tuple(
        pod(chance, chance.choice(attempts), replica)
        for replica in range(chance.randint(0, PODS_MAX))
    )
    is_well = replicas <= PODS_MAX and chance.random() < WELL_SHARE
    return Observed(
        pods=well(chance, attempt, replicas) if is_well else drawn,
        report=ObservedReport(report=said, address="127.0.0.2", error="" if said else "no"),
        claim=chance.choice((None, claim, replace(claim, is_deleting=True))),
    )


@pytest.mark.parametrize("seed", range(3))
def test_any_status_has_a_plan(seed: int) -> None:
    """A status edited by hand stalls no job, and the next write is one that the server takes."""
    for number in range(seed * DRAWS, (seed + 1) * DRAWS):
        chance = random.Random(number)
        document, given = job(chance), status_by_hand(chance)
        status = LMTrainingJobStatus.model_validate(given)
        replicas = document["spec"].get("workers", {}).get("replicas", 1)
        seen = observed(chance, status.attempt, replicas)
        try:
            decided = plan(document, status, seen, NOW, SETTINGS)
            said = decided.status.model_dump(mode="json", by_alias=True, exclude_none=True)
            assert LMTrainingJobStatus.model_validate(said) == decided.status
            write_time(status, decided.status, last_write=None, now=NOW, pace=Pace())
        except Exception as error:
            raise AssertionError(f"seed {number}, status {given}") from error
