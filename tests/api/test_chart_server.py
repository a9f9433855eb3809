"""A real API server takes all that the chart renders, in the restricted level, and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import binaries, prometheus
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.waiting import wait_until
from tests.api import schemas

pytestmark = pytest.mark.api

CHART = Path(__file__).resolve().parents[2] / "charts" / "lm-training-operator"
NAMESPACE = "system"
DEFINITION = "CustomResourceDefinition"
HELM_SECONDS_MAX = 60
CHECK_SECONDS_MAX = 90
SERVED_SECONDS_MAX = 30
LEVEL = "pod-security.kubernetes.io/enforce"
EVERYTHING: dict[str, Any] = {
    "watchNamespaces": ["team-a"],
    "commonLabels": {"team": "research"},
    "priorityClassName": "system-cluster-critical",
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "commonAnnotations": {"contact": "research@example"},
    "extraObjects": ["apiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra, namespace: system}"],
    "metrics": {
        "service": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "excludeRules": ["LMTrainingGpuIdle"]},
        "dashboards": {"enabled": True},
    },
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}]},
}


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    return binaries.ensure(["helm", "kubectl", "kubeconform"], Layout.from_environment())


@pytest.fixture(scope="module")
def kubectl(
    programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kubectl]:
    with ApiServer(tmp_path_factory.mktemp("api")) as server:
        client = Kubectl(programs["kubectl"], server.kubeconfig)
        crds = prometheus.operator_crds(Layout.from_environment())
        for kind in ("servicemonitors", "podmonitors", "prometheusrules"):
            client.run(
                *("apply", "--server-side", "--filename"),
                str(crds / f"monitoring.coreos.com_{kind}.yaml"),
            )
            wait_until(
                f"the API server serves {kind}",
                lambda kind=kind: client.try_run("get", kind).returncode == 0,
                limit_seconds=SERVED_SECONDS_MAX,
            )
        for name in (NAMESPACE, "team-a"):
            metadata = {"name": name, "labels": {LEVEL: "restricted"}}
            client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        yield client


def render(programs: dict[str, Path], values: object) -> list[dict[str, Any]]:
    command = ["template", "lm", str(CHART), "--namespace", NAMESPACE, "--values", "-"]
    done = subprocess.run(
        [str(programs["helm"]), *command],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=HELM_SECONDS_MAX,
        check=True,
    )
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


SERVED = {"metrics": {"service": {"enabled": True}, "serviceMonitor": {"enabled": True}}}


#: By what is peculiar about them.
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "one operator": {**SERVED, "replicas": 1, "installCheck": {"enabled": False}},
    "no rights made": {
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "mine"},
    },
    "named namespaces": {
        "watchNamespaces": ["team-a", "system"],
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "no definitions": {
        "crds": {"create": False},
        "metrics": {"kubeStateMetrics": {"enabled": True}},
    },
    "by digest": {"image": {"digest": "sha256:" + "0" * 64}, "imagePullSecrets": [{"name": "a"}]},
}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_server_takes_every_object_with_no_unknown_field(
    programs: dict[str, Path], kubectl: Kubectl, values: dict[str, Any]
) -> None:
    items = [
        manifest
        for manifest in render(programs, values)
        if manifest["kind"] != DEFINITION  # the CRDs have tests of their own
    ]
    everything = {"apiVersion": "v1", "kind": "List", "items": items}
    result = kubectl.try_run(
        "apply", "--dry-run=server", "--validate=strict", "--filename", "-",
        stdin=json.dumps(everything),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert len(result.stdout.splitlines()) == len(items)


@pytest.fixture(scope="module")
def schema_folder(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    schemas.write(json.loads(kubectl.run("get", "--raw", "/openapi/v2")), folder)
    return folder


def conforms(
    programs: dict[str, Path], folder: Path, manifests: list[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(programs["kubeconform"]), "-strict", "-output", "json", "-skip", DEFINITION),
            *("-schema-location", f"{folder}/{schemas.LOCATION}", "-"),
        ],
        input=yaml.safe_dump_all(manifests),
        capture_output=True, text=True, timeout=HELM_SECONDS_MAX, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_kubeconform_has_no_complaint(
    programs: dict[str, Path], schema_folder: Path, values: dict[str, Any]
) -> None:
    done = conforms(programs, schema_folder, render(programs, values))
    assert done.returncode == 0, done.stdout


def test_kubeconform_would_complain(programs: dict[str, Path], schema_folder: Path) -> None:
    manifests = render(programs, {})
    (deployment,) = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containres"] = []
    done = conforms(programs, schema_folder, manifests)
    assert done.returncode == 1
    assert "containres" in done.stdout


def test_the_operators_pod_is_admitted_at_the_restricted_level(
    programs: dict[str, Path], kubectl: Kubectl
) -> None:
    (deployment,) = [m for m in render(programs, {}) if m["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": NAMESPACE, **template["metadata"]},
        "spec": template["spec"],
    }
    kubectl.run("create", "--dry-run=server", "--filename", "-", stdin=json.dumps(pod))
    (job,) = [m for m in render(programs, {}) if m["kind"] == "Job"]
    kubectl.run(
        "create", "--dry-run=server", "--filename", "-",
        stdin=json.dumps(pod | {"spec": job["spec"]["template"]["spec"]}),
    )  # fmt: skip
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = kubectl.try_run(
        "create", "--dry-run=server", "--filename", "-", stdin=json.dumps(pod)
    )
    assert "violates PodSecurity" in refused.stderr, "the level must be enforced here"


def test_the_check_fails_with_a_sentence_until_the_definition_is_served(
    kubectl: Kubectl,
) -> None:
    def check(limit_seconds: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "lmtraining_operator", "check"),
                *("--watch-namespace", "team-a", "--limit-seconds", str(limit_seconds)),
            ],
            env=os.environ | {"KUBECONFIG": str(kubectl.kubeconfig)},
            capture_output=True, text=True, timeout=CHECK_SECONDS_MAX, check=False,
        )  # fmt: skip

    refused = check(0)
    assert refused.returncode == 1
    assert "serves no lmtrainingjobs.lmtraining.dev: install the definition" in refused.stderr
    (definition,) = (CHART / "files" / "crds").glob("*.yaml")
    kubectl.run("apply", "--server-side", "--filename", str(definition))
    answered = check(30)
    assert answered.returncode == 0, answered.stderr
    assert "answers for lmtrainingjobs.lmtraining.dev in team-a" in answered.stdout
