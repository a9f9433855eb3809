"""What a real API server makes of our CRD: defaults, pruning, status, tables, selectors."""

import json
from pathlib import Path
from typing import Any

import pytest

from devcluster.kubectl import Kubectl
from lmtraining_api import LMTrainingJob, LMTrainingJobStatus
from lmtraining_crdgen.manifest import SELECTABLE
from tests.api.conftest import APPLY, Jobs
from tests.contract_cases import MINIMAL, merged, minimal
from tests.contract_status import FULL_STATUS, condition

pytestmark = pytest.mark.api

OK, CREATED, BAD_REQUEST, INVALID = 200, 201, 400, 422
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
READABLE_TIMES = (
    "2026-11-27T20:00:00Z",
    "2026-11-27T20:00:00.123456789+14:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.9-19:59",
)
UNREADABLE_TIMES = (
    "0000-01-01T00:00:00Z",
    "2026-11-27",
    "2026-02-30T20:00:00Z",
    "2026-11-27T20:00:00",
    "2026-11-27T20:00:00x5Z",
    "2026-11-27T20:00:00+99:99",
    "2026-11-27t20:00:00z",
)
MISSPELT = minimal(trainng={"seed": 3})


def test_the_server_stores_the_defaults_of_the_models(jobs: Jobs) -> None:
    stored = jobs.create(MINIMAL).body
    expected = LMTrainingJob.from_document(MINIMAL).model_dump(by_alias=True, exclude_none=True)
    expected["spec"]["data"]["train"] = MINIMAL["spec"]["data"]["train"]  # entries stay as written
    assert stored["spec"] == expected["spec"]
    assert "status" not in stored, "the server must not speak for the operator (P4)"


def test_what_the_server_stores_is_read_back(jobs: Jobs) -> None:
    stored = jobs.create(MINIMAL).body
    assert LMTrainingJob.model_validate(stored).spec == LMTrainingJob.from_document(MINIMAL).spec


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_accepted(kubectl: Kubectl, example: Path) -> None:
    kubectl.run("apply", "--filename", str(example))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_applied_again_is_unchanged(kubectl: Kubectl, example: Path) -> None:
    """P12: the same wish is no new wish; a file that is applied every minute writes nothing."""
    kubectl.run("apply", "--filename", str(example))
    again = kubectl.run("apply", "--filename", str(example)).splitlines()
    assert [line.split()[-1] for line in again if line] == ["unchanged"]


class TestAMisspeltField:
    def test_is_named_to_a_strict_client(self, jobs: Jobs) -> None:
        answer = jobs.create(MISSPELT, "?fieldValidation=Strict")
        assert answer.code == BAD_REQUEST
        assert 'unknown field "spec.trainng"' in answer.message

    def test_is_named_by_kubectl(self, kubectl: Kubectl) -> None:
        result = kubectl.try_run("apply", "--filename", "-", stdin=json.dumps(MISSPELT))
        assert result.returncode != 0
        assert 'unknown field "spec.trainng"' in result.stderr

    def test_is_named_by_server_side_apply(self, jobs: Jobs) -> None:
        answer = jobs.request("PATCH", "/tiny?fieldManager=me", MISSPELT, content_type=APPLY)
        assert answer.code >= BAD_REQUEST
        assert ".spec.trainng: field not declared in schema" in answer.message

    def test_is_a_warning_to_a_client_that_asks_for_nothing(self, jobs: Jobs) -> None:
        answer = jobs.create(MISSPELT)
        assert answer.code == CREATED
        assert 'unknown field \\"spec.trainng\\"' in "".join(answer.warnings)
        assert "trainng" not in answer.body["spec"]


class TestStatus:
    def test_survives_the_round_trip(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        answer = jobs.apply_status("tiny", FULL_STATUS)
        assert answer.code == OK, answer.message
        assert jobs.get("tiny")["status"] == FULL_STATUS

    def test_as_the_model_writes_it_comes_back_the_same(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        written = LMTrainingJobStatus.model_validate(FULL_STATUS)
        jobs.apply_status("tiny", written.model_dump(mode="json", exclude_none=True))
        assert LMTrainingJobStatus.model_validate(jobs.get("tiny")["status"]) == written

    def test_holds_nothing_that_the_operator_did_not_say(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        jobs.apply_status("tiny", {"attempt": 1})
        assert jobs.get("tiny")["status"] == {"attempt": 1}

    def test_with_an_unknown_field_is_pruned_from_a_merge_patch(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        status = FULL_STATUS | {"fromTheFuture": {"a": 1}}
        answer = jobs.merge("tiny", {"status": status}, "status")
        assert answer.code == OK, answer.message
        assert jobs.get("tiny")["status"] == FULL_STATUS

    def test_with_an_unknown_field_is_refused_as_a_whole_by_apply(self, jobs: Jobs) -> None:
        """So the CRD is upgraded before the operator: an older CRD takes no newer status."""
        jobs.create(MINIMAL)
        answer = jobs.apply_status("tiny", FULL_STATUS | {"fromTheFuture": {"a": 1}})
        assert answer.code >= BAD_REQUEST
        assert ".status.fromTheFuture: field not declared in schema" in answer.message
        assert "status" not in jobs.get("tiny")

    def test_conditions_are_merged_by_type(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        accepted = condition("Accepted", "True", "Valid")
        jobs.apply_status("tiny", {"conditions": [accepted]}, "one")
        healthy = condition("Healthy", "True", "Stable")
        jobs.apply_status("tiny", {"conditions": [healthy]}, "two")
        healthy["reason"] = "Skipping"
        jobs.apply_status("tiny", {"conditions": [healthy]}, "two")
        assert jobs.get("tiny")["status"]["conditions"] == [accepted, healthy]

    def test_is_not_written_through_the_object_nor_the_spec_through_status(
        self, jobs: Jobs
    ) -> None:
        created = jobs.create(merged(MINIMAL, {"status": {"attempt": 9}}))
        assert "status" not in created.body
        jobs.apply_status("tiny", {"attempt": 1})
        jobs.merge("tiny", {"status": {"attempt": 9}, "spec": {"suspend": True}})
        job = jobs.get("tiny")
        assert (job["status"]["attempt"], job["spec"]["suspend"]) == (1, True)

    @pytest.mark.parametrize("time", READABLE_TIMES)
    def test_a_time_that_is_taken_can_be_read_again(self, jobs: Jobs, time: str) -> None:
        jobs.create(MINIMAL)
        assert jobs.merge("tiny", {"status": {"startTime": time}}, "status").code == OK
        assert LMTrainingJobStatus.model_validate(jobs.get("tiny")["status"]).start_time

    @pytest.mark.parametrize("time", UNREADABLE_TIMES)
    def test_a_time_that_cannot_be_read_again_is_refused(self, jobs: Jobs, time: str) -> None:
        """Else one status edited by hand, and the operator can look at that job no more (P12)."""
        jobs.create(MINIMAL)
        answer = jobs.merge("tiny", {"status": {"startTime": time}}, "status")
        assert answer.code == INVALID
        assert {field for field, _ in answer.causes if field != "<nil>"} == {"status.startTime"}

    def test_out_of_bounds_is_refused(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        assert jobs.apply_status("tiny", {"metrics": {"loss": "9" * 33}}).code == INVALID


def cells(jobs: Jobs) -> dict[str, Any]:
    """The one row of the table, by the headers that kubectl prints."""
    table = jobs.request("GET", "", accept=TABLE).body
    names = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(names, table["rows"][0]["cells"], strict=True))


def words(line: str) -> str:
    return " ".join(line.split())


class TestTable:
    def test_every_column_has_its_figure(self, jobs: Jobs) -> None:
        """P4."""
        jobs.create(MINIMAL)
        jobs.apply_status("tiny", FULL_STATUS)
        row = cells(jobs)
        row.pop("Age")
        assert row == {
            "Name": "tiny",
            "State": "Training",
            "Step": 42,
            "Progress": "42%",
            "ETA": "1h20m",
            "Loss": "3.21",
            "Tok/s": "12.3k",
            "Restarts": 3,
            "Reason": "Stepping",
            "Attempt": 2,
            "LastCkpt": 40,
            "Message": "step 42 of 100",
        }

    def test_kubectl_prints_the_narrow_one(self, jobs: Jobs, kubectl: Kubectl) -> None:
        jobs.create(MINIMAL)
        jobs.apply_status("tiny", FULL_STATUS)
        head, row = kubectl.run("get", "lmtj").splitlines()
        assert words(head) == "NAME STATE STEP PROGRESS ETA LOSS TOK/S RESTARTS AGE"
        assert words(row).startswith("tiny Training 42 42% 1h20m 3.21 12.3k 3 ")

    def test_kubectl_prints_the_wide_one(self, jobs: Jobs, kubectl: Kubectl) -> None:
        jobs.create(MINIMAL)
        jobs.apply_status("tiny", FULL_STATUS)
        head, row = kubectl.run("get", "lmtrain", "--output", "wide").splitlines()
        assert words(head).endswith(" RESTARTS AGE REASON ATTEMPT LASTCKPT MESSAGE")
        assert words(row).endswith(" Stepping 2 40 step 42 of 100")

    def test_a_job_without_status_has_empty_cells(self, jobs: Jobs) -> None:
        jobs.create(MINIMAL)
        row = cells(jobs)
        assert {row[name] for name in row if name not in ("Name", "Age")} == {None}


def test_explain_tells_meaning_default_and_bounds(kubectl: Kubectl) -> None:
    text = words(kubectl.run("explain", "lmtj.spec.training"))
    assert "batchTokens <integer> -required- Tokens in one optimizer step" in text
    assert "(default 1; ≥ 1, ≤ 65536)" in text


SELECTED: dict[str, tuple[dict[str, Any], str]] = {
    "spec.suspend": ({"suspend": True}, "true"),
    "spec.model.config.architecture": ({"model": {"config": {"architecture": "llama"}}}, "llama"),
    "spec.workers.replicas": ({"workers": {"replicas": 2}}, "2"),
    "spec.workers.image": ({"workers": {"image": "trainer:2"}}, "trainer:2"),
    "spec.checkpoint.path": ({"checkpoint": {"path": "mine"}}, "mine"),
    "spec.checkpoint.storage.existingClaim": (
        {"checkpoint": {"storage": {"existingClaim": "shelf"}}},
        "shelf",
    ),
}


@pytest.mark.parametrize("path", [path for path in SELECTABLE if path.startswith("spec.")])
def test_a_field_selector_picks_by(jobs: Jobs, path: str) -> None:
    changes, value = SELECTED[path]
    jobs.create(MINIMAL)
    jobs.create(merged(minimal(**changes), {"metadata": {"name": "picked"}}))
    assert jobs.list(f"?fieldSelector={path}={value}") == ["picked"]


def test_a_field_selector_picks_by_attempt(jobs: Jobs) -> None:
    for name in ("tiny", "picked"):
        jobs.create(merged(MINIMAL, {"metadata": {"name": name}}))
    jobs.apply_status("picked", {"attempt": 2})
    assert jobs.list("?fieldSelector=status.attempt=2") == ["picked"]
