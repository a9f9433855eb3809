"""Small pure pieces: figures, writes, events, manifests."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.job import LMTrainingJob, Training, TrainingSpec
from lmtraining_api.records import JobFile
from lmtraining_api.status import (
    ConditionType,
    LMTrainingJobStatus,
    Metrics,
    Progress,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_operator.apply import event_body
from lmtraining_operator.plan import Create, Observed, PublishEvent, figures, manifests, plan
from lmtraining_operator.plan.events import transitions
from lmtraining_operator.plan.model import PROMETHEUS
from lmtraining_operator.plan.verdicts import Verdict, with_conditions
from lmtraining_operator.plan.writes import PROGRESS_SECONDS, REPORT_TIME_SECONDS, Pace, write_time
from tests.unit.operator_situations import NOW, failure_status, job_object, status_of
from tests.unit.operator_world import SETTINGS

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3.25, "3.25"),
        (3.141592653589793, "3.1416"),
        (0.0006, "6.0e-04"),
        (0.0, "0"),
        (12_345_678.0, "1.2e+07"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert figures.number(value) == text


LONGEST = 32
ANY_NUMBER = (0.0, -0.0, -1.5, 999_999.99, 1e6, 1e9, 1e20, 1e308, -1e308, 5e-324)


@pytest.mark.parametrize("value", ANY_NUMBER)
def test_whatever_a_trainer_claims_is_a_short_string(value: float) -> None:
    """Status refuses a longer one, and with it all else that there is to say."""
    texts = [
        figures.number(value),
        figures.number(value, digits=0),
        figures.share(value),
        figures.duration(value),
        figures.seconds(value),
        figures.percent(int(value), 1),
        figures.percent(1, int(value)),
    ]
    assert max(map(len, texts)) <= LONGEST, texts


def test_a_whole_number_keeps_its_zeros() -> None:
    assert figures.number(12_300.0, digits=0) == "12300"
    assert figures.number(12_300.04, digits=1) == "12300"


def test_share() -> None:
    assert [figures.share(value) for value in (None, float("nan"), 0.031, 1.0)] == [
        "", "", "3%", "100%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (-1, ""),
        (0, "0s"),
        (8.4, "8s"),
        (185, "3m5s"),
        (4800, "1h20m"),
        (3600, "1h"),
        (3605, "1h"),
        (93_600, "1d2h"),
        (8_640_000, "100d"),
        (99_999 * 86_400, "99999d"),
        (1e300, ">99999d"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


def test_percent_is_whole_only_at_the_end() -> None:
    assert [figures.percent(step, 400) for step in (0, 168, 399, 400)] == [
        "0%", "42%", "99%", "100%",
    ]  # fmt: skip
    assert figures.percent(0, 0) == ""


def test_text_from_outside_is_one_bounded_line() -> None:
    assert figures.bounded("a\n  b\tc") == "a b c"
    assert len(figures.bounded("x" * 5000)) == figures.MESSAGE_LENGTH_MAX
    assert figures.count(-1) == 0
    assert figures.count(2**70) == figures.COUNT_MAX


def test_equal_status_is_not_written() -> None:
    status = status_of()
    assert write_time(status, status, last_write=None, now=NOW, pace=Pace()) is None


def test_progress_is_written_at_most_every_few_seconds() -> None:
    old = status_of()
    new = old.model_copy(update={"progress": Progress(step=7), "metrics": Metrics(loss="3")})
    due = write_time(old, new, last_write=NOW, now=NOW + timedelta(seconds=2), pace=Pace())
    assert due == NOW + timedelta(seconds=PROGRESS_SECONDS)
    later = NOW + timedelta(seconds=9)
    assert write_time(old, new, last_write=NOW, now=later, pace=Pace()) == later
    assert write_time(old, new, last_write=None, now=NOW, pace=Pace()) == NOW
    ahead = NOW + timedelta(hours=1)
    assert write_time(old, new, last_write=ahead, now=NOW, pace=Pace()) == NOW, (
        "the clock was set back"
    )


def test_report_without_news_waits_longer() -> None:
    """A job that waits for hours is not a write every few seconds."""
    old = status_of()
    new = old.model_copy(update={"progress": Progress(report_time=NOW)})
    assert write_time(old, new, last_write=NOW, now=NOW, pace=Pace()) == NOW + timedelta(
        seconds=REPORT_TIME_SECONDS
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": 2},
        {"round": 2},
        {"last_failure": failure_status()},
        {"conditions": status_of(state=Succeeded.TRAINING).conditions},
    ],
)
def test_what_changes_in_meaning_is_written_at_once(changes: dict[str, object]) -> None:
    old = status_of()
    new = old.model_copy(update=changes)
    assert write_time(old, new, last_write=NOW, now=NOW, pace=Pace()) == NOW


def test_new_wording_alone_can_wait() -> None:
    old = status_of()
    new = with_conditions(
        old, [Verdict("Unknown", Succeeded.STARTING, "40 of 41 MB")], generation=1, now=NOW
    )
    assert write_time(old, new, last_write=NOW, now=NOW, pace=Pace()) != NOW


def test_events_are_of_transitions_only() -> None:
    old = status_of(state=Succeeded.STARTING, complete=False)
    trains = status_of(state=Succeeded.TRAINING)
    assert [e.reason for e in transitions(old, trains)] == ["TrainingStarted"]
    assert transitions(trains, trains) == []
    failed = trains.model_copy(update={"last_failure": failure_status()})
    (event,) = transitions(trains, failed)
    assert (event.type, event.reason, event.attempt) == ("Warning", "AttemptFailed", 1)
    stalled = with_conditions(
        trains, [Verdict("False", Progressing.STALLED, "no step")], generation=1, now=NOW
    )
    assert [e.reason for e in transitions(trains, stalled)] == ["Stalled"]
    again = status_of(state=Succeeded.STALLED)
    assert transitions(again, trains) == [], "no first step of the attempt"
    waits = with_conditions(
        old, [Verdict("False", Scheduled.QUOTA_EXCEEDED, "full")], generation=1, now=NOW
    )
    assert [(e.type, e.reason) for e in transitions(old, waits)] == [("Warning", "QuotaExceeded")]
    assert waits.condition(ConditionType.SCHEDULED) is not None


SECRETS = [
    {"uri": "s3://a/1", "credentials": {"secretRef": {"name": "key"}}},
    {"uri": "s3://a/2", "credentials": {"secretRef": {"name": "key"}}},
]


def parsed(**changes: object) -> LMTrainingJob:
    return LMTrainingJob.model_validate(job_object(**changes))


def pod(**changes: object) -> dict[str, object]:
    made = manifests.pod(
        parsed(**changes), "tiny-3-1-0", attempt=3, replica=1, intent="{}", image="trainer:1"
    )
    spec: dict[str, object] = made["spec"]
    return spec


def test_pod_runs_under_the_restricted_level() -> None:
    spec = pod()
    (container,) = spec["containers"]  # type: ignore[misc]
    security = container["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsUser"] == 65532  # type: ignore[index]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "hostNetwork" not in spec
    assert "command" not in container, "the image's entry point is the supervisor"
    assert container["args"] == ["supervise"]


def test_pod_is_mounted_where_the_trainer_looks() -> None:
    spec = pod(data__train=SECRETS, workers__sharedMemory="1Gi")
    (container,) = spec["containers"]  # type: ignore[misc]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}  # type: ignore[attr-defined]
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/etc/lmtraining/job"]]["configMap"] == {"name": "tiny-job-file"}
    assert volumes[mounts[api.STORAGE_DIRECTORY]]["persistentVolumeClaim"] == {
        "claimName": "tiny-checkpoints"
    }
    secret = volumes[mounts[f"{api.CREDENTIALS_DIRECTORY}/key"]]["secret"]
    assert secret == {"secretName": "key", "defaultMode": 0o440}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    for path in ("/tmp", manifests.HOME_DIRECTORY):
        assert volumes[mounts[path]]["emptyDir"] == {"sizeLimit": manifests.SCRATCH_SIZE_MAX}
    (item,) = volumes[mounts["/etc/lmtraining/intent"]]["downwardAPI"]["items"]
    assert item["path"] == "intent.json"
    assert api.ANNOTATION_INTENT in item["fieldRef"]["fieldPath"]


def test_pod_asks_for_its_devices() -> None:
    spec = pod(
        workers__accelerator={"resource": "amd.com/gpu", "count": 2},
        workers__serviceAccountName="reader",
        training__batchTokens=64 * 4,
    )
    (container,) = spec["containers"]  # type: ignore[misc]
    assert container["resources"]["limits"]["amd.com/gpu"] == "2"
    assert container["image"] == "trainer:1"
    assert spec["serviceAccountName"] == "reader"
    assert spec["tolerations"][0]["key"] == "amd.com/gpu"  # type: ignore[index]


def test_job_file_is_the_training_part_of_the_spec() -> None:
    """What the trainer reads is what the user wrote, by the same model."""
    job = parsed(
        checkpoint__path="ours",
        checkpoint__storage={"claim": {}},
        data__train=SECRETS,
        training__seed=7,
        stability__skippedStepsMax=3,
    )
    made = manifests.config_map(job)
    assert made["immutable"] is True
    assert api.LABEL_ATTEMPT not in made["metadata"]["labels"], "one for all attempts"
    content = JobFile.model_validate_json(made["data"]["job.json"])
    assert content.run_directory == "/storage/runs/ours"
    assert "recovery" not in json.loads(made["data"]["job.json"])["spec"]
    spec = job.spec.model_dump(include=set(TrainingSpec.model_fields))
    assert content.spec == TrainingSpec.model_validate(spec)


class NewerTraining(Training):
    colour: str = "blue"


class NewerSpec(TrainingSpec):
    training: NewerTraining


class NewerFile(JobFile):
    spec: NewerSpec


def test_older_trainer_reads_the_job_file_of_a_newer_operator() -> None:
    """A field that came later, and that the job does not use."""
    spec = {k: v for k, v in job_object()["spec"].items() if k in TrainingSpec.model_fields}
    newer = NewerFile.model_validate(
        {
            "job_name": "tiny",
            "namespace": "team",
            "job_uid": "u",
            "run_directory": "/r",
            "data_cache_directory": "/c",
            "spec": spec,
        }
    )
    text = manifests.job_file_text(newer)
    assert JobFile.model_validate_json(text).spec.training.budget.steps == 20
    assert json.loads(text)["schemaVersion"] == 1


@pytest.mark.parametrize(
    ("written", "replicas", "mode"),
    [
        ({}, 1, "ReadWriteOnce"),
        ({}, 2, "ReadWriteMany"),
        ({"accessMode": "ReadWriteMany"}, 1, "ReadWriteMany"),
    ],
)
def test_access_mode_fits_the_replicas(written: dict[str, str], replicas: int, mode: str) -> None:
    """The default class of many clusters gives ReadWriteOnce and nothing else."""
    job = parsed(workers__replicas=replicas, checkpoint__storage={"claim": written})
    assert manifests.claim(job)["spec"]["accessModes"] == [mode]


def test_operator_is_let_in_by_its_own_label() -> None:
    """Its app.kubernetes.io/name is the installation's to choose."""
    policy = manifests.network_policy(parsed(), readers=())
    (peer,) = policy["spec"]["ingress"][1]["from"]
    assert peer["podSelector"] == {"matchLabels": {"lmtraining.dev/component": "operator"}}


def test_who_else_may_scrape_is_the_installations_to_say() -> None:
    for readers in ((PROMETHEUS,), (), ({"ipBlock": {"cidr": "10.1.0.0/16"}},)):
        settings = replace(SETTINGS, metrics_readers=readers)
        made = plan(job_object(), LMTrainingJobStatus(), Observed(), NOW, settings)
        (policy,) = (
            action.body
            for action in made.actions
            if isinstance(action, Create) and action.kind == "NetworkPolicy"
        )
        assert policy["spec"]["ingress"][1]["from"][1:] == list(readers)


def test_pod_knows_how_long_it_may_take_to_stop() -> None:
    spec: Any = pod(recovery__graceSeconds=90)
    environment = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert spec["terminationGracePeriodSeconds"] == 90
    assert environment[api.ENV_GRACE_SECONDS] == "90"


def test_claim_outlives_the_job_and_the_rest_does_not() -> None:
    """P5."""
    job = parsed()
    assert "ownerReferences" not in manifests.claim(job)["metadata"]
    children = [
        manifests.config_map(job),
        manifests.network_policy(job, readers=()),
        manifests.pod(job, "tiny-1-0-0", attempt=1, replica=0, intent="", image="trainer:1"),
    ]
    for child in children:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (job.metadata.uid, True)
        assert "blockOwnerDeletion" not in owner


@pytest.mark.parametrize(
    ("jobs", "write_seconds", "report_seconds", "look_seconds"),
    [(0, 5, 2, 30), (1, 5, 2, 30), (50, 5, 2, 30), (100, 5, 2, 30), (200, 10, 2, 30),
     (400, 20, 4, 40), (1000, 50, 5, 100), (1200, 60, 5, 120), (5000, 60, 5, 120)],
)  # fmt: skip
def test_jobs_share_a_budget_of_writes_and_questions(
    jobs: int, write_seconds: float, report_seconds: float, look_seconds: float
) -> None:
    pace = Pace(
        write_seconds=write_seconds, report_seconds=report_seconds, look_seconds=look_seconds
    )
    assert Pace.of(jobs) == pace
    crowded = Pace.of(jobs, is_crowded=True)
    assert crowded == replace(pace, write_seconds=60, report_seconds=5), "new jobs go first"


def test_only_progress_is_slowed_down_by_many_jobs() -> None:
    """P4: what changes in meaning is written at once, however many jobs there are."""
    slow = Pace.of(1000)
    old = status_of()
    further = old.model_copy(update={"progress": Progress(step=7)})
    due = write_time(old, further, last_write=NOW, now=NOW, pace=slow)
    assert due == NOW + timedelta(seconds=50)
    again = old.model_copy(update={"attempt": 2})
    assert write_time(old, again, last_write=NOW, now=NOW, pace=slow) == NOW


def test_each_subject_of_an_attempt_has_its_event() -> None:
    """A second checkpoint that is asked for is told too; the same one once."""
    job = job_object()
    names = [
        event_body(job, PublishEvent(
            type="Normal", reason="CheckpointSaved", message="", attempt=1, subject=subject
        ), NOW)["metadata"]["name"]
        for subject in ("a", "b", "a", "")
    ]  # fmt: skip
    assert len(set(names)) == 3
    assert names[0] == names[2]
    before = status_of(applied={"generation": 1, "checkpoint": "a", "checkpointStep": 1})
    after = status_of(applied={"generation": 2, "checkpoint": "b", "checkpointStep": 2})
    (said,) = transitions(before, after)
    assert (said.reason, said.subject) == ("CheckpointSaved", "b")
