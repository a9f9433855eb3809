"""What the chart installs, for which values, and how it refuses a wrong value."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import binaries
from devcluster.paths import Layout
from lmtraining_api import names
from lmtraining_api.job import LMTrainingJob
from lmtraining_operator import main
from lmtraining_operator.election import LeaseName
from lmtraining_operator.plan.model import HARDWARE_FAULTS
from tests.unit.operator_world import World, job_body

pytestmark = pytest.mark.unit

CHART = Path(__file__).resolve().parents[2] / "charts" / "lm-training-operator"
HELM_SECONDS_MAX = 60
RULE = "PrometheusRule"
Manifest = dict[str, Any]

EVERYTHING: dict[str, Any] = {
    "image": {"repository": "mirror.example/operator", "digest": "sha256:" + "0" * 64},
    "trainerImage": {"repository": "mirror.example/trainer", "tag": "123456789012"},
    "imagePullSecrets": [{"name": "mirror"}],
    "commonLabels": {"team": "research", "app.kubernetes.io/name": "not this one"},
    "commonAnnotations": {"contact": "research@example"},
    "watchNamespaces": ["team-a", "team-b"],
    "crds": {"keep": False},
    "allowed": {"images": ["mirror.example/"], "uris": ["s3://a/"], "serviceAccounts": ["b"]},
    "nodes": {"hardwareFaults": ["FanStopped", "team.example/broken"]},
    "serviceAccount": {"name": "trainer-operator", "annotations": {"a": "b"}},
    "extraArgs": ["--health-address=0.0.0.0:8080"],
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "metrics": {
        "readers": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
        "service": {"enabled": True},
        "serviceMonitor": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "interval": "7s", "additionalLabels": {"release": "p"}},
        "prometheusRule": {
            "enabled": True,
            "additionalLabels": {"release": "prometheus", "app.kubernetes.io/name": "not this one"},
            "excludeRules": ["LMTrainingGoodputLow"],
            "runbookBaseUrl": "https://docs.example/lmtraining/",
        },
        "kubeStateMetrics": {"enabled": True},
        "dashboards": {
            "enabled": True,
            "namespace": "monitoring",
            "labels": {"find_me": "yes"},
            "annotations": {"grafana_folder": "Training"},
        },
    },
    "podSecurityContext": {"runAsUser": 1234},
    "containerSecurityContext": {"runAsNonRoot": True},
    "installCheck": {"enabled": True, "limitSeconds": 33},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "as-yaml"}},
        "apiVersion: v1\nkind: Secret\nmetadata: {name: '{{ .Release.Name }}-as-text'}",
    ],
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    },
}


@pytest.fixture(scope="session")
def helm() -> Path:
    return binaries.ensure(["helm"], Layout.from_environment())["helm"]


def run_helm(
    helm: Path, *arguments: str, values: object = None
) -> subprocess.CompletedProcess[str]:
    """Helm with values on standard input."""
    return subprocess.run(
        [str(helm), *arguments, "--values", "-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        timeout=HELM_SECONDS_MAX,
        check=False,
    )


def rendered(helm: Path, values: object = None) -> list[Manifest]:
    """The objects of a release with these values."""
    made: list[Manifest] = json.loads(template(helm, json.dumps(values)))
    return made


@cache
def template(helm: Path, values: str) -> str:
    """The same as text, so that no test sees what another did to it: many look at one release."""
    result = run_helm(
        helm, "template", "lm", str(CHART), "--namespace", "system", values=json.loads(values)
    )
    assert result.returncode == 0, result.stderr
    return json.dumps([one for one in yaml.load_all(result.stdout, yaml.CSafeLoader) if one])


def refusal(helm: Path, values: object) -> str:
    result = run_helm(helm, "template", "lm", str(CHART), values=values)
    assert result.returncode != 0, result.stdout
    return result.stderr


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def container(manifests: Iterable[Manifest]) -> Manifest:
    (deployment,) = of_kind(manifests, "Deployment")
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_has_no_complaint(helm: Path, values: Manifest) -> None:
    result = run_helm(helm, "lint", "--strict", str(CHART), values=values)
    assert result.returncode == 0, result.stdout + result.stderr


def test_defaults_install_little(helm: Path) -> None:
    kinds = sorted(manifest["kind"] for manifest in rendered(helm))
    assert kinds == [
        "ClusterRole",
        "ClusterRole",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Job",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "ServiceAccount",
    ]


def test_watching_named_namespaces_needs_no_right_outside_them(helm: Path) -> None:
    manifests = rendered(helm, EVERYTHING)
    assert of_kind(manifests, "ClusterRoleBinding") == []
    for kind in ("Role", "RoleBinding"):
        found = [manifest["metadata"] for manifest in of_kind(manifests, kind)]
        spaces = [one["namespace"] for one in found if not one["name"].endswith("-lease")]
        assert spaces == ["team-a", "team-b"]
    arguments = container(manifests)["args"]
    assert arguments == [
        "run",
        "--trainer-image=mirror.example/trainer:123456789012",
        "--watch-namespace=team-a",
        "--watch-namespace=team-b",
        "--allow-image=mirror.example/",
        "--allow-uri=s3://a/",
        "--allow-service-account=b",
        '--metrics-readers=[{"ipBlock":{"cidr":"10.1.0.0/16"}}]',
        "--hardware-fault=FanStopped",
        "--hardware-fault=team.example/broken",
        "--lease=system/lm-lm-training-operator",
        "--log-format=json",
        "--health-address=0.0.0.0:8080",
    ]
    options = main.parse(arguments)
    assert options.namespaces == ("team-a", "team-b"), "the operator takes them"
    assert options.hardware_faults == {"FanStopped", "team.example/broken"}
    assert options.metrics_readers == ({"ipBlock": {"cidr": "10.1.0.0/16"}},)


@pytest.mark.parametrize("values", [{}, {"nameOverride": "x"}, EVERYTHING])
def test_the_jobs_let_the_operator_in_under_any_name(helm: Path, values: Manifest) -> None:
    (deployment,) = of_kind(rendered(helm, values), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels[names.LABEL_COMPONENT] == names.COMPONENT_OPERATOR


#: All that the operator may do. A new line here needs a reason next to the rule in the chart.
OPERATOR_RIGHTS = {
    ("lmtraining.dev", "lmtrainingjobs"): "get list watch",
    ("lmtraining.dev", "lmtrainingjobs/status"): "patch",
    ("", "pods"): "get list watch create delete patch",
    ("", "configmaps"): "get create delete",
    ("", "persistentvolumeclaims"): "get create",
    ("networking.k8s.io", "networkpolicies"): "get create delete",
    ("", "events"): "list create",
    ("kueue.x-k8s.io", "workloads"): "get delete",
}


#: Beside them, where it has a ClusterRole and nodes.read is true.
NODE_RIGHTS = {("", "nodes"): "get"}


def rights(role: Manifest) -> dict[tuple[str, str], str]:
    return {
        (group, resource): " ".join(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_operators_rights_are_these_in_both_modes(helm: Path) -> None:
    everywhere = of_kind(rendered(helm), "ClusterRole")[0]
    named = [role for role in of_kind(rendered(helm, EVERYTHING), "Role") if not of_lease(role)]
    assert rights(everywhere) == OPERATOR_RIGHTS | NODE_RIGHTS
    assert [rights(role) for role in named] == [OPERATOR_RIGHTS, OPERATOR_RIGHTS]


@pytest.mark.parametrize("readers", [None, []])
def test_scrapers_are_prometheus_unless_the_values_name_others(
    helm: Path, readers: list[Manifest] | None
) -> None:
    values = {} if readers is None else {"metrics": {"readers": readers}}
    options = main.parse(container(rendered(helm, values))["args"])
    assert options.metrics_readers == (main.Options.metrics_readers if readers is None else ())


@pytest.mark.parametrize("is_read", [True, False])
def test_nodes_are_read_only_with_the_right_to(helm: Path, is_read: bool) -> None:
    manifests = rendered(helm, {"nodes": {"read": is_read}})
    options = main.parse(container(manifests)["args"])
    assert options.reads_nodes is is_read
    assert options.hardware_faults == HARDWARE_FAULTS
    assert (NODE_RIGHTS.keys() <= rights(of_kind(manifests, "ClusterRole")[0]).keys()) is is_read
    assert not main.parse(container(rendered(helm, EVERYTHING))["args"]).reads_nodes


def of_lease(role: Manifest) -> bool:
    return str(role["metadata"]["name"]).endswith("-lease")


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["everywhere", "named namespaces"])
def test_the_lease_is_one_object_in_the_releases_namespace(helm: Path, values: Manifest) -> None:
    manifests = rendered(helm, values)
    (role,) = [role for role in of_kind(manifests, "Role") if of_lease(role)]
    assert role["metadata"]["namespace"] == "system"
    written = [(rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"]]
    assert written == [(["lm-lm-training-operator"], ["get", "update"]), (None, ["create"])]
    lease = main.parse(container(manifests)["args"]).lease
    assert lease == LeaseName("system", "lm-lm-training-operator")


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1), (3, 1)])
def test_a_drain_leaves_an_operator_where_there_are_several(
    helm: Path, replicas: int, budgets: int
) -> None:
    manifests = rendered(helm, {"replicas": replicas})
    (deployment,) = of_kind(manifests, "Deployment")
    assert deployment["spec"]["replicas"] == replicas
    found = of_kind(manifests, "PodDisruptionBudget")
    assert [budget["spec"]["maxUnavailable"] for budget in found] == [1] * budgets
    for budget in found:
        assert budget["spec"]["selector"] == deployment["spec"]["selector"]


def test_nobody_gets_secrets_or_a_wildcard(helm: Path) -> None:
    roles = [*of_kind(rendered(helm), "ClusterRole"), *of_kind(rendered(helm, EVERYTHING), "Role")]
    for (group, resource), verbs in (item for role in roles for item in rights(role).items()):
        assert "secrets" not in resource
        assert "*" not in f"{group}{resource}{verbs}"


def test_the_users_roles_reach_the_clusters_own(helm: Path) -> None:
    editor, viewer = of_kind(rendered(helm), "ClusterRole")[1:]
    job = (names.GROUP, names.PLURAL)
    assert "create" in rights(editor)[job]
    assert "create" not in rights(viewer)[job]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert editor["metadata"]["labels"][f"{prefix}edit"] == "true"
    assert viewer["metadata"]["labels"][f"{prefix}view"] == "true"


def test_the_pod_can_do_nothing_to_its_node(helm: Path) -> None:
    manifests = rendered(helm)
    (deployment,) = of_kind(manifests, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    rolling = {"maxSurge": 0, "maxUnavailable": 1}
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert container(manifests)["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(manifests)["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_selector_meets_the_pod_whatever_the_common_labels_say(helm: Path) -> None:
    manifests = rendered(helm, EVERYTHING)
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert labels["team"] == "research"
    for manifest in (*of_kind(manifests, "Service"), *of_kind(manifests, "NetworkPolicy")):
        spec = manifest["spec"]
        wanted = spec["podSelector"]["matchLabels"] if "podSelector" in spec else spec["selector"]
        assert wanted == selector


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "lmtraining-operator:0.1.0"),
        ({"tag": "1e5"}, "lmtraining-operator:1e5"),
        ({"tag": "x", "digest": "sha256:" + "a" * 64}, "lmtraining-operator@sha256:" + "a" * 64),
    ],
)
def test_a_digest_wins_over_a_tag_over_the_version(
    helm: Path, image: Manifest, expected: str
) -> None:
    assert container(rendered(helm, {"image": image}))["image"] == expected


def test_the_crd_is_installed_unchanged_and_kept(helm: Path) -> None:
    (installed,) = of_kind(rendered(helm), "CustomResourceDefinition")
    (source,) = (CHART / "files" / "crds").glob("*.yaml")
    generated = yaml.safe_load(source.read_text())
    assert installed["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert without_numbers_as_text(installed["spec"]) == without_numbers_as_text(generated["spec"])


def without_numbers_as_text(value: object) -> object:
    """1e-08, which Go writes without a point, is text to PyYAML and a number to Kubernetes."""
    if isinstance(value, dict):
        return {key: without_numbers_as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_numbers_as_text(item) for item in value]
    if isinstance(value, str) and value[:1].isdigit() and "e-" in value:
        return float(value)
    return value


def test_the_crd_may_go_with_the_chart_or_stay_out_of_it(helm: Path) -> None:
    (installed,) = of_kind(rendered(helm, {"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "helm.sh/resource-policy" not in installed["metadata"].get("annotations", {})
    left_out = rendered(helm, {"crds": {"create": False}})
    assert of_kind(left_out, "CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"imag": {"tag": "x"}}, "additional properties 'imag' not allowed"),
        ({"image": {"tga": "x"}}, "at '/image': additional properties 'tga' not allowed"),
        ({"image": {"tga": "x"}}, "must be one of 'digest', 'pullPolicy', 'repository', 'tag'"),
        ({"crds": {"keep": "maybe"}}, "at '/crds/keep': got string, want boolean"),
        ({"watchNamespaces": "team-a"}, "at '/watchNamespaces': got string, want array"),
        ({"replicas": 0}, "at '/replicas': minimum: got 0, want 1"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of"),
        ({"image": {"tag": 123}}, "at '/image/tag': got number, want string"),
        (
            {"metrics": {"serviceMonitor": {"enabled": True}}},
            "set metrics.service.enabled to true",
        ),
        (
            {"metrics": {"prometheusRule": {"enabled": True, "excludeRules": ["LMTrainingGpu"]}}},
            "metrics.prometheusRule.excludeRules: there is no alert LMTrainingGpu; there are LMTra",
        ),
        ({"serviceAccount": {"create": False}}, "name an existing one in serviceAccount.name"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence(
    helm: Path, values: Manifest, sentence: str
) -> None:
    assert sentence in refusal(helm, values)


@pytest.mark.parametrize(
    ("peer", "sentence"),
    [
        ({"ipBlock": {}}, "/ipBlock': missing property 'cidr'"),
        ({"ipBlock": {"cidr": "10.1.0.0"}}, "'10.1.0.0' does not match pattern"),
        ({"ipBlock": {"cidr": "10.1.0.0/33"}}, "'10.1.0.0/33' does not match pattern"),
        ({"ipBlock": {"cidr": "10.1.0.0/16", "not": []}}, "additional properties 'not' not all"),
        ({"ipBlock": {"cidr": "::/0"}, "podSelector": {}}, "maxProperties: got 2, want 1"),
        ({"podSelector": {"app": "prometheus"}}, "additional properties 'app' not allowed"),
        ({"podSelector": {"matchLabels": {"a": 1}}}, "matchLabels/a': got number, want string"),
        (
            {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "is"}]}},
            "operator': value must be one of",
        ),
    ],
)
def test_a_reader_that_would_make_every_network_policy_invalid_is_refused(
    helm: Path, peer: Manifest, sentence: str
) -> None:
    """P12: without its policy no job makes a pod."""
    said = refusal(helm, {"metrics": {"readers": [peer]}})
    assert "at '/metrics/readers/0" in said
    assert sentence in said


def test_every_form_of_a_reader_is_taken(helm: Path) -> None:
    team = {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}
    readers = [
        {"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.2.0/24"]}},
        {"ipBlock": {"cidr": "fd00:1::/64"}},
        {"namespaceSelector": team, "podSelector": {"matchLabels": {"app": "prometheus"}}},
    ]
    options = main.parse(container(rendered(helm, {"metrics": {"readers": readers}}))["args"])
    assert list(options.metrics_readers) == readers


def test_the_alerts_are_installed_as_they_are_but_for_what_the_values_ask(helm: Path) -> None:
    file = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    plain = of_kind(rendered(helm, {"metrics": {"prometheusRule": {"enabled": True}}}), RULE)
    assert [rule["spec"] for rule in plain] == [file]
    (asked,) = of_kind(rendered(helm, EVERYTHING), RULE)
    assert asked["metadata"]["labels"]["release"] == "prometheus"
    assert asked["metadata"]["labels"]["app.kubernetes.io/name"] == "lm-training-operator"
    rules = {rule["alert"]: rule for group in asked["spec"]["groups"] for rule in group["rules"]}
    everything = {rule["alert"] for group in file["groups"] for rule in group["rules"]}
    assert everything - set(rules) == {"LMTrainingGoodputLow"}
    url = rules["LMTrainingJobFailed"]["annotations"]["runbook_url"]
    assert url == "https://docs.example/lmtraining/docs/runbooks/LMTrainingJobFailed.md"


def test_the_boards_are_installed_as_they_are_where_grafana_finds_them(helm: Path) -> None:
    files = {file.name: file.read_text() for file in (CHART / "files/dashboards").glob("*.json")}
    plain = of_kind(rendered(helm, {"metrics": {"dashboards": {"enabled": True}}}), "ConfigMap")
    installed = {name: text for board in plain for name, text in board["data"].items()}
    assert {name: json.loads(text) for name, text in installed.items()} == {
        name: json.loads(text) for name, text in files.items()
    }
    assert all(board["metadata"]["labels"]["grafana_dashboard"] == "1" for board in plain)
    assert {board["metadata"]["namespace"] for board in plain} == {"system"}
    maps = [one["metadata"] for one in of_kind(rendered(helm, EVERYTHING), "ConfigMap")]
    asked = [board for board in maps if board["name"].endswith("-board")]
    assert len({board["name"] for board in asked}) == len(files)
    for board in asked:
        assert board["namespace"] == "monitoring"
        assert board["labels"]["find_me"] == "yes"
        assert board["annotations"]["grafana_folder"] == "Training"


def test_every_object_carries_the_common_annotations_and_keeps_its_own(helm: Path) -> None:
    own = [m for m in rendered(helm, EVERYTHING) if m["kind"] != "Secret"]
    assert len({manifest["kind"] for manifest in own}) > 10
    for manifest in own:
        annotations = manifest["metadata"]["annotations"]
        assert annotations["contact"] == "research@example", manifest["metadata"]["name"]
    (account,) = of_kind(own, "ServiceAccount")
    assert account["metadata"]["annotations"]["a"] == "b"
    (deployment,) = of_kind(own, "Deployment")
    pod = deployment["spec"]["template"]["metadata"]["annotations"]
    assert pod == {"contact": "research@example", "a": "b"}
    bare = [manifest["metadata"].get("annotations") for manifest in rendered(helm)]
    assert bare.count(None) == len(bare) - 2, "but for what Helm reads"


def test_security_contexts_and_extra_objects_are_the_users(helm: Path) -> None:
    manifests = rendered(helm, EVERYTHING)
    for kind in ("Deployment", "Job"):
        (one,) = of_kind(manifests, kind)
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == 1234
        assert pod["containers"][0]["securityContext"]["runAsNonRoot"] is True
    names_of_secrets = [one["metadata"]["name"] for one in of_kind(manifests, "Secret")]
    assert names_of_secrets == ["as-yaml", "lm-as-text"]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["everywhere", "named namespaces"])
def test_a_release_ends_with_a_check_by_the_operators_own_account(
    helm: Path, values: Manifest
) -> None:
    manifests = rendered(helm, values)
    (job,) = of_kind(manifests, "Job")
    (deployment,) = of_kind(manifests, "Deployment")
    pod, operator = job["spec"]["template"], deployment["spec"]["template"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    for same in ("serviceAccountName", "securityContext"):
        assert pod["spec"][same] == operator["spec"][same]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= pod["metadata"]["labels"].items(), "no operator to a Service"
    (only,) = pod["spec"]["containers"]
    assert only["image"] == container(manifests)["image"]
    options = main.parse(only["args"])
    assert options.check_seconds == 60
    assert options.namespaces == main.parse(container(manifests)["args"]).namespaces
    assert of_kind(rendered(helm, {"installCheck": {"enabled": False}}), "Job") == []


def test_the_trainers_are_scraped_where_jobs_run(helm: Path) -> None:
    everywhere = {"metrics": {"podMonitor": {"enabled": True}}}
    (monitor,) = of_kind(rendered(helm, everywhere), "PodMonitor")
    (named,) = of_kind(rendered(helm, EVERYTHING), "PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == {"any": True}
    assert named["spec"]["namespaceSelector"] == {"matchNames": ["team-a", "team-b"]}
    assert named["metadata"]["labels"]["release"] == "p"
    (endpoint,) = named["spec"]["podMetricsEndpoints"]
    assert endpoint["interval"] == "7s"
    pod = trainer_pod()
    wanted = named["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= pod["metadata"]["labels"].items(), "the operator's pods are found"
    ports = [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
    assert endpoint["port"] in ports
    asked = {rule["sourceLabels"][0] for rule in endpoint["relabelings"]}
    for label in (names.LABEL_ATTEMPT, names.LABEL_REPLICA):
        known = "__meta_kubernetes_pod_label_" + re.sub(r"[^a-z0-9]", "_", label)
        assert known in asked


def trainer_pod() -> Manifest:
    """As the operator makes it."""
    world = World()
    world.add(job_body())
    asyncio.run(world.operator().look())
    return dict(world.pods[0])


def test_kube_state_metrics_is_told_of_jobs(helm: Path) -> None:
    file = (CHART / "files" / "kube-state-metrics.yaml").read_text()
    asked = rendered(helm, {"metrics": {"kubeStateMetrics": {"enabled": True}}})
    (installed,) = of_kind(asked, "ConfigMap")
    assert yaml.safe_load(installed["data"]["config.yaml"]) == yaml.safe_load(file)


def test_every_value_is_in_the_schema_with_a_description_and_in_a_comment(helm: Path) -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    missing = [path for path in described(schema, values, ()) if path]
    assert missing == []
    lines = (CHART / "values.yaml").read_text().splitlines()
    uncommented = [
        line
        for previous, line in zip(["", *lines], lines, strict=False)
        if line.strip().endswith(("{}", "[]", '""', "true", "false"))
        and not previous.strip().startswith("#")
    ]
    assert uncommented == []


def closed(schema: object) -> Iterator[Manifest]:
    """Every part of a schema that refuses other names."""
    if isinstance(schema, dict):
        if schema.get("additionalProperties") is False:
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from closed(part)


def test_a_name_that_is_refused_is_answered_with_those_that_are_not() -> None:
    """Helm prints an enumeration, and neither title nor description."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    parts = list(closed(schema))
    assert len(parts) > 10
    for part in parts:
        assert part["propertyNames"] == {"enum": sorted(part["properties"])}


def described(schema: Manifest, values: Manifest, path: tuple[str, ...]) -> Iterable[str]:
    """Paths that the schema leaves open, does not know, or does not describe."""
    if schema.get("additionalProperties") is not False:
        yield f"{'.'.join(path)}: other names are let through"
    for key, value in values.items():
        known = schema["properties"].get(key)
        if known is None or not known.get("description"):
            yield ".".join((*path, key))
        elif "properties" in known and isinstance(value, dict) and value:
            yield from described(known, value, (*path, key))


def test_the_notes_hold_a_job_of_15_lines_that_is_valid(helm: Path) -> None:
    result = run_helm(helm, "install", "lm", str(CHART), "--dry-run=client", values={})
    assert result.returncode == 0, result.stderr
    notes = result.stdout.partition("NOTES:")[2]
    job = "apiVersion:" + notes.partition("apiVersion:")[2].partition("\n\n")[0]
    assert len(job.splitlines()) == 15
    LMTrainingJob.model_validate(yaml.safe_load(job))
    assert notes.count("\n  kubectl ") == 3


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, []),
        ({"prometheusRule": {"enabled": True}}, ["serviceMonitor is off", "podMonitor is off"]),
        ({"dashboards": {"enabled": True}}, ["podMonitor is off"]),
        ({"dashboards": {"enabled": True}, "podMonitor": {"enabled": True}}, []),
    ],
)
def test_the_notes_warn_of_alerts_that_see_nothing(
    helm: Path, metrics: Manifest, words: list[str]
) -> None:
    command = ("install", "lm", str(CHART), "--dry-run=client")
    result = run_helm(helm, *command, values={"metrics": metrics})
    assert result.returncode == 0, result.stderr
    notes = result.stdout.partition("NOTES:")[2]
    assert notes.count("WARNING") == len(words)
    for word in words:
        assert word in notes
