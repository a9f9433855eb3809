"""What an administrator lets jobs use."""

from dataclasses import replace
from typing import Any

import pytest

from lmtraining_api.status import Accepted, ConditionType, LMTrainingJobStatus
from lmtraining_operator import main
from lmtraining_operator.plan import Allowed, Observed, plan
from lmtraining_operator.plan.acceptance import reason_not_to_start
from lmtraining_operator.plan.situation import Situation
from tests.unit.operator_situations import NOW, job_object, made, reason, situation
from tests.unit.operator_world import SETTINGS

pytestmark = pytest.mark.unit

TEAM = Allowed(
    images=("registry.example/team", "registry.example/base:"),
    uris=("s3://team/", "gs://shared/text"),
    service_accounts=("trainer",),
)
KEY = {"secretRef": {"name": "key"}}
HERE = replace(SETTINGS, allowed=TEAM)


def image(name: str) -> dict[str, Any]:
    return {"workers__image": name}


def data(uri: str) -> dict[str, Any]:
    return {"data__train": [{"uri": uri}]}


def pretrained(uri: str) -> dict[str, Any]:
    return {"model__config": None, "model__pretrained": {"uri": uri}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        (image("registry.example/team"), None),
        (image("registry.example/team/gpt:1"), None),
        (image("registry.example/team:1"), None),
        (image("registry.example/team@sha256:" + "0" * 64), None),
        (image("registry.example/base:2"), None),
        (image("registry.example/team-b/gpt:1"), "workers.image registry.example/team-b/gpt:1"),
        (image("registry.example/base2:1"), "registry.example/team, registry.example/base:"),
        (data("s3://team/a/*.txt"), None),
        (data("gs://shared/text/a.txt"), None),
        (data("file:///data/a.txt"), None),
        (data("gs://shared/texts/a.txt"), "data.train[0].uri"),
        (data("https://example.org/a.txt"), "s3://team/, gs://shared/text"),
        (data("s3://team/a::https://example.org/b"), "data.train[0].uri"),
        (
            {"data__validation": [{"uri": "s3://other/a.txt"}]},
            "data.validation[0].uri is not allowed",
        ),
        ({"checkpoint__storage": {"uri": "s3://team/runs"}}, None),
        ({"checkpoint__storage": {"uri": "s3://teams/runs"}}, "checkpoint.storage.uri"),
        ({"tracking__mlflow": {"uri": "http://mlflow:5000"}}, "tracking.mlflow.uri is not allowed"),
        ({"tracking__wandb": {}}, None),
        (
            {"tracking__wandb": {"credentials": {"secretRef": {"name": "key"}}}},
            "tracking.wandb.uri is not allowed",
        ),
        (pretrained("s3://team/gpt2"), None),
        (pretrained("s3://other/gpt2"), "model.pretrained.uri is not allowed"),
        ({"workers__serviceAccountName": "trainer"}, None),
        ({"workers__serviceAccountName": "admin"}, "workers.serviceAccountName admin"),
    ],
)
def test_a_job_outside_the_limits_is_told_what_would_do(
    changes: dict[str, Any], words: str | None
) -> None:
    found = reason_not_to_start(here(**changes))
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert found.reason is Accepted.NOT_ALLOWED
        assert words in found.message


def here(**changes: Any) -> Situation:
    return replace(situation(spec=changes), settings=HERE)


def test_a_place_may_hold_a_secret_and_is_not_named() -> None:
    """P11."""
    found = reason_not_to_start(here(**data("https://example.org/a.txt?signature=hunter2")))
    assert found is not None
    assert "hunter2" not in found.message
    assert "example.org" not in found.message


def test_nothing_is_made_until_it_is_allowed() -> None:
    """P4, P12."""
    job = job_object(**image("elsewhere.example/x"))
    refused = plan(job, LMTrainingJobStatus(), Observed(), NOW, HERE)
    assert made(refused) == []
    assert reason(refused, ConditionType.ACCEPTED) == Accepted.NOT_ALLOWED
    taken_up = plan(job, refused.status, Observed(), NOW, SETTINGS)
    assert reason(taken_up, ConditionType.ACCEPTED) == Accepted.VALID
    assert taken_up.status.attempt == 1


def test_the_flags_of_the_chart_are_read() -> None:
    options = main.parse(
        ["run", "--trainer-image=x", "--allow-image=a", "--allow-image=b", "--allow-uri=s3://c/",
         "--allow-service-account=d"]
    )  # fmt: skip
    assert options.allowed == Allowed(images=("a", "b"), uris=("s3://c/",), service_accounts=("d",))
    assert main.parse(["run", "--trainer-image=x"]).allowed == Allowed()
