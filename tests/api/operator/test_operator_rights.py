"""The operator has exactly the rights that it uses: the API server's own log against the chart.

What the operator asks is taken from the audit log, with reads; what it may is what the chart
renders, bound to the account that it runs as. A right that no life of a job needs is refused here
as much as a call that is not granted.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import binaries, pki
from devcluster.apiserver import ApiServer
from devcluster.paths import Layout
from lmtraining_api.exits import FailureClass
from lmtraining_api.status import ConditionType
from tests.api.conftest import _kubectl
from tests.api.definition import define_jobs
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage
from tests.api.operator.trainer import Trainer, exit_record, failure

pytestmark = pytest.mark.api

CHART = Path(__file__).resolve().parents[3] / "charts" / "lm-training-operator"
RELEASE, SYSTEM, TEAM = "lm", "system", "team"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{RELEASE}-lm-training-operator"
LEASE = f"--lease={SYSTEM}/{RELEASE}-lm-training-operator"
HELM_SECONDS_MAX = 60
FORBIDDEN = 403
EVERYTHING_READ_TOO = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [ACCOUNT]}, {"level": "None"}],
}

#: API group, resource with its subresource, verb.
Right = tuple[str, str, str]
OF_A_QUEUE: set[Right] = {("kueue.x-k8s.io", "workloads", "delete")}
"""Used where there is a Kueue: tests/queues runs the operator with the chart's rights."""


@pytest.fixture(scope="module", params=[[], [TEAM]], ids=["cluster", "namespaced"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """With the chart's roles for the operator's account, in either mode."""
    directory = tmp_path_factory.mktemp("api-server")
    policy = directory / "reads-too.yaml"
    policy.write_text(yaml.safe_dump(EVERYTHING_READ_TOO))
    account = pki.Identity(ACCOUNT, ("system:serviceaccounts", "system:authenticated"))
    with ApiServer(
        directory / "server",
        identities=[account],
        extra_arguments=[f"--audit-policy-file={policy}"],
    ) as made:
        kubectl = _kubectl(made)
        kubectl.run("create", "namespace", TEAM)
        kubectl.run("create", "namespace", SYSTEM)
        define_jobs(kubectl)
        kubectl.apply(*roles({"watchNamespaces": request.param}))
        yield made


def roles(values: Object) -> list[Object]:
    """Roles and bindings of the operator, as the chart renders them."""
    helm = binaries.ensure(["helm"], Layout.from_environment())["helm"]
    done = subprocess.run(
        [str(helm), "template", RELEASE, str(CHART), "--namespace", SYSTEM, "--values", "-"],
        input=json.dumps(values), capture_output=True, text=True, check=True,
        timeout=HELM_SECONDS_MAX,
    )  # fmt: skip
    made = [m for m in yaml.safe_load_all(done.stdout) if m]
    ours = [m for m in made if "aggregate-to" not in json.dumps(m["metadata"])]
    return [m for m in ours if m["apiVersion"].startswith("rbac.authorization.k8s.io")]


def granted(server: ApiServer) -> set[Right]:
    """What the API server's roles give; an object's name is not looked at."""
    found: list[Object] = []
    for kind in ("clusterroles", "roles"):
        listed = _kubectl(server).run("get", kind, "--all-namespaces", "--output=json")
        found += json.loads(listed)["items"]
    rules = [
        rule
        for role in found
        if role["metadata"]["name"].startswith(RELEASE + "-")
        for rule in role["rules"]
    ]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(server: ApiServer) -> dict[Right, set[int]]:
    """What the operator asked for, with the answers' codes."""
    rights: dict[Right, set[int]] = {}
    for line in server.audit_log.read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        reference = entry.get("objectRef")
        if reference is None or "resource" not in reference:
            continue  # discovery
        parts = [reference["resource"], reference.get("subresource", "")]
        right = (reference.get("apiGroup", ""), "/".join(filter(None, parts)), entry["verb"])
        rights.setdefault(right, set()).add(entry["responseStatus"]["code"])
    return rights


@pytest.fixture
def stage(server: ApiServer) -> Iterator[Stage]:
    made = Stage(server, TEAM, 9)
    yield made
    made.close()


@pytest.fixture
def start(
    server: ApiServer, stage: Stage, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], OperatorProcess]]:
    """The operator as the chart runs it; for all namespaces where it may see them."""
    is_namespaced = "namespaced" in request.node.callspec.id
    started: list[OperatorProcess] = []

    def start() -> OperatorProcess:
        process = OperatorProcess(
            server,
            TEAM if is_namespaced else "",
            tmp_path / "operator.log",
            kubeconfig=server.kubeconfig_of(ACCOUNT),
            arguments=[LEASE, *([] if is_namespaced else ["--read-nodes"])],
        )
        started.append(process)
        process.wait_ready()
        return process

    yield start
    for process in started:
        process.kill()


def test_the_rights_are_those_that_are_used(
    server: ApiServer,
    stage: Stage,
    start: Callable[[], OperatorProcess],
    start_trainer: Callable[..., Trainer],
) -> None:
    """Least privilege, both ways: nothing granted is unused, nothing asked is refused."""
    operator = start()
    stage.wait("it leads", lambda: operator.leads() or None)
    live_well_and_ill(stage, start_trainer)
    operator.terminate()
    start()  # takes a Lease that exists
    stage.create_job("second")
    stage.wait_for_pods("second", attempt=1, count=2)

    asked = used(server)
    refused = {right for right, codes in asked.items() if FORBIDDEN in codes}
    assert refused == set(), "asked, and not granted"
    assert granted(server) - asked.keys() == OF_A_QUEUE, "granted, and not used"
    assert asked.keys() - granted(server) == set(), "allowed from elsewhere"
    assert not any("secrets" in resource for _, resource, _ in granted(server))


def live_well_and_ill(stage: Stage, start_trainer: Callable[..., Trainer]) -> None:
    """All that can happen to a job that makes the operator ask for something."""
    stage.do("POST", "pods", body=foreign_pod("taken-1-0-0"))
    stage.create_job("taken", workers__replicas=1)
    stage.wait_for_message("taken", "it has no owner", ConditionType.SCHEDULED)

    stage.create_job("queued", queue={"name": "team"})
    stage.wait_for_pods("queued", attempt=1, count=2)

    stage.create_job("tiny", keepPodsSeconds=1)
    gang = stage.run_pods("tiny", attempt=1, count=2)
    trainer = start_trainer("tiny")
    trainer.train(step=100)
    stage.wait_for("tiny", "Training")
    stage.end_pod(gang[1], *failure(gang[1], FailureClass.CRASH))
    stage.wait_for_event("tiny", "AttemptFailed")
    stage.bury(gang[0])
    again = stage.run_pods("tiny", attempt=2, count=2)
    for pod in again:
        stage.end_pod(pod, 0, exit_record(pod, 0, step=400))
    stage.wait_for("tiny", "Completed")
    stage.wait(
        "what the job made is gone",
        lambda: stage.request("GET", "configmaps", "/tiny-job-file")[0] == 404 or None,
    )


def foreign_pod(name: str) -> Object:
    container = {"name": "other", "image": "registry.example/other:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    }
