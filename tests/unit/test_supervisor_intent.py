"""P1: which intents start a gang, and what is said about the others."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import JobFile
from lmtraining_api.records import gang_digest
from lmtraining_trainer.supervisor.identity import Identity
from lmtraining_trainer.supervisor.intent import Gang, Waiting, gang_of, read_intent_file

pytestmark = pytest.mark.unit

ME = Identity(pod_uid="pod-b", pod_name="job-3-1-0", attempt=3, replica=1)
JOB = JobFile.model_validate(
    {
        "jobName": "job",
        "namespace": "n",
        "jobUid": "uid",
        "runDirectory": "/r",
        "dataCacheDirectory": "/d",
        "spec": {
            "model": {"config": {"layers": 1, "hiddenSize": 8, "heads": 1}},
            "data": {"train": [{"uri": "file:///x"}], "sequenceLength": 8},
            "training": {"budget": {"steps": 1}, "batchTokens": 16},
            "workers": {"replicas": 2},
        },
    }
)
LEAD = {"replica": 0, "podUid": "pod-a", "address": "10.0.0.1"}
SELF = {"replica": 1, "podUid": "pod-b", "address": "10.0.0.2"}
GOOD: dict[str, Any] = {"jobUid": "uid", "attempt": 3, "generation": 5, "peers": [LEAD, SELF]}

WAITS = [
    ("absent", "", "waiting for the operator's intent"),
    ("blank", " \n", "waiting for the operator's intent"),
    ("half", json.dumps(GOOD)[:40], "cannot"),
    ("garbage", "\x00\ufffd{", "cannot"),
    ("not an object", "[1]", "cannot"),
    ("another job", GOOD | {"jobUid": "other"}, "the present one is for other"),
    ("an older attempt", GOOD | {"attempt": 2}, "attempt 2"),
    ("a newer attempt", GOOD | {"attempt": 4}, "attempt 4"),
    ("no peers", GOOD | {"peers": []}, "2 of 2 pods: replica 0, 1"),
    ("a peer too few", GOOD | {"peers": [SELF]}, "1 of 2 pods: replica 0"),
    ("a peer without address", GOOD | {"peers": [LEAD | {"address": ""}, SELF]}, "replica 0"),
    ("a peer too many", GOOD | {"peers": [LEAD, SELF, SELF | {"replica": 2}]}, "2 pods"),
    ("a peer twice", GOOD | {"peers": [LEAD, LEAD, SELF]}, "2 pods"),
    ("my replaced pod", GOOD | {"peers": [LEAD, SELF | {"podUid": "pod-old"}]}, "another pod"),
]


@pytest.mark.parametrize(
    ("intent", "words"), [case[1:] for case in WAITS], ids=[case[0] for case in WAITS]
)
def test_any_other_intent_is_waited_out(intent: str | dict[str, Any], words: str) -> None:
    text = intent if isinstance(intent, str) else json.dumps(intent)
    verdict = gang_of(text, identity=ME, job=JOB)
    assert isinstance(verdict, Waiting)
    assert words in verdict.message


def test_a_complete_intent_for_this_pod_starts_the_gang() -> None:
    verdict = gang_of(json.dumps(GOOD), identity=ME, job=JOB)
    assert verdict == Gang(
        lead_address="10.0.0.1",
        other_addresses=("10.0.0.2",),
        digest=gang_digest(["pod-b", "pod-a"]),
        generation=5,
    )


def test_fields_of_a_newer_operator_are_ignored() -> None:
    newer = GOOD | {"schemaVersion": 2, "rollback": 7, "peers": [LEAD | {"zone": "a"}, SELF]}
    assert isinstance(gang_of(json.dumps(newer), identity=ME, job=JOB), Gang)


def test_a_file_that_cannot_be_read_is_an_absent_intent(tmp_path: Path) -> None:
    assert read_intent_file(tmp_path / "absent") == ""
    assert read_intent_file(tmp_path) == ""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{")
    assert "{" in read_intent_file(tmp_path / "bytes")
