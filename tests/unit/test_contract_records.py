"""Records between versions: what a newer half adds is ignored, what must be exact is refused.

Versions N-1, N and N+1 are played by documents: a field missing, as it is, a field or word more.
"""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from lmtraining_api import (
    CLASS_OF_CODE,
    CODE_OF_CLASS,
    ConditionType,
    ExitCode,
    ExitRecord,
    FailureClass,
    Intent,
    JobFile,
    JournalEntry,
    LMTrainingJob,
    LMTrainingJobStatus,
    Record,
    TrainerReport,
    explain_validation_error,
)
from lmtraining_api.job import TrainingSpec
from lmtraining_api.names import REPORT_BYTES_MAX
from lmtraining_api.reasons import FAILURE_HELP
from lmtraining_api.records import (
    HUNG_RANKS_MAX,
    RANKS_REPORTED_MAX,
    REPLICAS_MAX,
    ROBUSTNESS_MAX,
    SLOWEST_RANKS_MAX,
    FaultReport,
)
from lmtraining_api.status import Succeeded
from lmtraining_trainer.report import report_json
from tests.contract_cases import MINIMAL
from tests.contract_records import EXIT, FAULT, REPORT, report_at_its_bounds
from tests.contract_status import FULL_STATUS, TIME, condition

pytestmark = pytest.mark.unit

#: The API server refuses more in one annotation set.
ANNOTATIONS_BYTES_MAX = 256 * 1024

ENTRY: dict[str, Any] = {
    "sequence": 0,
    "time": TIME,
    "attempt": 1,
    "round": 0,
    "kind": "Saved",
    "step": 5,
    "detail": {"path": "checkpoints/step-5", "bytes": 10, "seconds": 0.5, "healthy": None},
}
INTENT: dict[str, Any] = {
    "jobUid": "u",
    "attempt": 1,
    "generation": 1,
    "peers": [{"replica": 0, "podUid": "p", "address": "10.0.0.1"}],
}
JOB_FILE: dict[str, Any] = {
    "jobName": "tiny",
    "namespace": "default",
    "jobUid": "u",
    "runDirectory": "/storage/runs/tiny",
    "dataCacheDirectory": "/storage/data-cache",
    "spec": MINIMAL["spec"],
}
RECORDS: list[tuple[type[Record], dict[str, Any]]] = [
    (ExitRecord, EXIT),
    (TrainerReport, REPORT),
    (JournalEntry, ENTRY),
    (Intent, INTENT),
    (JobFile, JOB_FILE),
]


@pytest.mark.parametrize(("model", "document"), RECORDS, ids=lambda value: str(value)[:40])
class TestVersions:
    def test_an_older_record_is_read(self, model: type[Record], document: dict[str, Any]) -> None:
        assert "schemaVersion" not in document
        assert model.model_validate(document).schema_version == 1

    def test_a_record_is_read_as_it_was_written(
        self, model: type[Record], document: dict[str, Any]
    ) -> None:
        record = model.model_validate(document)
        assert model.model_validate_json(record.model_dump_json()) == record

    def test_a_record_is_written_in_camel_case(
        self, model: type[Record], document: dict[str, Any]
    ) -> None:
        written = json.loads(model.model_validate(document).model_dump_json())
        assert set(document) <= set(written)
        assert not any("_" in key for key in written)

    def test_a_newer_record_is_read_as_far_as_it_is_understood(
        self, model: type[Record], document: dict[str, Any]
    ) -> None:
        newer = document | {"schemaVersion": 2, "fromTheFuture": {"a": 1}}
        older = model.model_validate(document)
        assert model.model_validate(newer) == older.model_copy(update={"schema_version": 2})


class TestAWordThatOnlyANewerHalfKnows:
    def test_a_state_is_unknown(self) -> None:
        assert TrainerReport.model_validate(REPORT | {"state": "Dreaming"}).state == "Unknown"

    def test_a_precision_is_not_given(self) -> None:
        assert TrainerReport.model_validate(REPORT | {"precision": "fp4"}).precision is None

    def test_an_exit_is_unknown(self) -> None:
        record = ExitRecord.model_validate(EXIT | {"exitCode": 99, "failureClass": "Melted"})
        assert (record.exit_code, record.failure_class) == (ExitCode.UNKNOWN, FailureClass.UNKNOWN)

    def test_a_class_of_failure_in_status_is_unknown(self) -> None:
        failure = FULL_STATUS["lastFailure"] | {"failureClass": "Melted"}
        restarts = {"total": 2, "byReason": {"Melted": 2}}
        status = LMTrainingJobStatus.model_validate({"lastFailure": failure, "restarts": restarts})
        assert status.last_failure is not None
        assert status.last_failure.failure_class is FailureClass.UNKNOWN
        assert status.restarts.by_reason == {FailureClass.UNKNOWN: 2}

    def test_a_condition_is_left_out(self) -> None:
        known = condition("Accepted", "True", "Valid")
        newer = condition("Funded", "True", "Paid")
        status = LMTrainingJobStatus.model_validate({"conditions": [known, newer]})
        assert [one.type for one in status.conditions] == [ConditionType.ACCEPTED]

    def test_an_entry_of_the_journal_is_refused_since_its_effect_would_be_lost(self) -> None:
        with pytest.raises(ValidationError) as refused:
            JournalEntry.model_validate(ENTRY | {"kind": "Transmuted"})
        (sentence,) = explain_validation_error(refused.value)
        assert sentence.startswith('kind is "Transmuted": choose ')


class TestMoreThanAReaderHasRoomFor:
    """A newer trainer's report is cut where it is longer: refused, it would say nothing at all."""

    @pytest.mark.parametrize(
        ("key", "entry", "length_max"),
        [
            ("ranks", {"rank": 1, "heartbeatAgeSeconds": 1.0}, RANKS_REPORTED_MAX),
            ("slowestRanks", {"rank": 1, "score": 0.5, "seconds": 1.0}, SLOWEST_RANKS_MAX),
            ("robustness", {"noise": "tokens", "level": 0.1}, ROBUSTNESS_MAX),
        ],
    )
    def test_of_a_list_the_first_are_read(
        self, key: str, entry: dict[str, Any], length_max: int
    ) -> None:
        longer = TrainerReport.model_validate(REPORT | {key: [entry] * (length_max + 1)})
        assert longer == TrainerReport.model_validate(REPORT | {key: [entry] * length_max})

    def test_of_the_ranks_of_a_hang_those_are_read_that_were_silent_the_longest(self) -> None:
        stacks = [
            {"rank": n, "phase": "save", "silentSeconds": 99.0 - n} for n in range(HUNG_RANKS_MAX)
        ]
        one_more = [*stacks, {"rank": 99, "phase": "save", "silentSeconds": 1.0}]
        report = TrainerReport.model_validate(REPORT | {"lastFault": FAULT | {"ranks": one_more}})
        assert report.last_fault == FaultReport.model_validate(FAULT | {"ranks": stacks})

    @pytest.mark.parametrize(
        ("phase", "read"),
        [("gradient-all-reduce", "gradient-all-red"), ("größer", "gr??er"), ("save\n", "save?")],
    )
    def test_of_a_phase_the_start_is_read(self, phase: str, read: str) -> None:
        rank = {"rank": 1, "heartbeatAgeSeconds": 1.0, "phase": phase}
        report = TrainerReport.model_validate(REPORT | {"ranks": [rank]})
        assert report.ranks[0].phase == read

    def test_of_a_word_the_start_is_read(self) -> None:
        remedy = {"remedy": "R" * 40, "fault": "Übel", "step": 1, "time": TIME}
        report = TrainerReport.model_validate(
            REPORT | {"lastRemedy": remedy, "timeSeconds": {"t" * 40: 1.0}}
        )
        assert report.last_remedy is not None
        assert (report.last_remedy.remedy, report.last_remedy.fault) == ("R" * 32, "?bel")
        assert report.time_seconds == {"t" * 32: 1.0}


class TestASpecInAJobFile:
    def test_with_an_unknown_field_is_refused_by_name(self) -> None:
        """A hyper-parameter that the trainer does not know must not be ignored in silence."""
        spec = MINIMAL["spec"] | {"distillation": {"teacher": "large"}}
        with pytest.raises(ValidationError) as refused:
            JobFile.model_validate(JOB_FILE | {"spec": spec})
        (sentence,) = explain_validation_error(refused.value)
        assert sentence.startswith("spec.distillation is not a field of spec: ")

    def test_is_the_training_part_of_the_job(self) -> None:
        job = LMTrainingJob.from_document(MINIMAL)
        written = JobFile.model_validate(JOB_FILE).spec.model_dump()
        assert written == job.spec.model_dump(include=set(TrainingSpec.model_fields))


class TestExitCodes:
    def test_a_code_and_a_class_belong_to_each_other(self) -> None:
        assert set(CLASS_OF_CODE) == set(ExitCode) - {ExitCode.FINISHED}
        assert all(CODE_OF_CLASS[CLASS_OF_CODE[code]] is code for code in CLASS_OF_CODE)

    def test_only_a_lost_pod_has_no_code_since_nobody_is_left_to_say_it(self) -> None:
        assert set(FailureClass) - set(CODE_OF_CLASS) == {FailureClass.POD_LOST}

    def test_no_code_means_something_else_already(self) -> None:
        taken = {1, 2, *range(126, 166)}
        assert not taken & set(ExitCode)
        assert all(0 <= code <= 255 for code in ExitCode)

    def test_what_must_fail_again_is_not_tried_again(self) -> None:
        final = {kind for kind in FailureClass if not kind.may_retry}
        assert final == {FailureClass.CONFIGURATION, FailureClass.DATA, FailureClass.DIVERGED}

    def test_every_class_is_explained(self) -> None:
        """P4."""
        assert set(FAILURE_HELP) == set(FailureClass)


class TestSizes:
    def test_the_largest_report_fits_without_its_ranks(self) -> None:
        report = report_at_its_bounds()
        assert unset_below(report) == []
        body = report_json(report)
        assert len(body) <= REPORT_BYTES_MAX
        assert TrainerReport.model_validate_json(body) == report.model_copy(
            update={"ranks": [], "labels": []}
        )

    def test_the_intent_of_the_largest_gang_fits_an_annotation(self) -> None:
        address = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255"
        peer = {"replica": 511, "podUid": "u" * 36, "address": address}
        intent = Intent.model_validate(INTENT | {"peers": [peer] * REPLICAS_MAX})
        assert len(intent.model_dump_json().encode()) < ANNOTATIONS_BYTES_MAX / 2


class TestStatus:
    def test_the_full_status_sets_every_field(self) -> None:
        """So that the tests with an API server prove all of them."""
        assert unset_below(LMTrainingJobStatus.model_validate(FULL_STATUS)) == []

    @pytest.mark.parametrize("reason", Succeeded)
    def test_a_job_is_finished_by_its_status_not_by_a_word(self, reason: Succeeded) -> None:
        """P2, also when a newer operator wrote a reason that this one does not know."""
        verdict = "Unknown" if not reason.is_terminal else "False"
        summary = condition(ConditionType.SUCCEEDED, verdict, reason)
        status = LMTrainingJobStatus.model_validate({"conditions": [summary]})
        assert status.is_terminal is reason.is_terminal
        newer = summary | {"reason": "DeadlineExceeded"}
        again = LMTrainingJobStatus.model_validate({"conditions": [newer]})
        assert again.is_terminal is reason.is_terminal

    def test_a_job_without_conditions_is_not_finished(self) -> None:
        assert not LMTrainingJobStatus().is_terminal


def unset_below(model: BaseModel, path: str = "") -> list[str]:
    """Fields that were not given, by path."""
    missing = [f"{path}{name}" for name in set(type(model).model_fields) - model.model_fields_set]
    for name, value in model:
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                missing += unset_below(inner, f"{path}{name}.")
    return missing
