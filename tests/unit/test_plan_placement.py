"""What a person may say of the pods, and who lets them go."""

from dataclasses import replace
from typing import Any

import pytest

from lmtraining_api import names as api
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.status import Scheduled
from lmtraining_operator.observe import pod_view, queue_message
from lmtraining_operator.plan import Allowed, manifests
from lmtraining_operator.plan.acceptance import reason_not_to_start
from lmtraining_operator.plan.model import Object
from lmtraining_operator.plan.scheduling import scheduled
from tests.unit.operator_situations import UID, job_object, running_gang, situation
from tests.unit.operator_world import SETTINGS

pytestmark = pytest.mark.unit

QUEUE = {"queue": {"name": "team", "priorityClass": "high"}}


def pod(avoided: tuple[str, ...] = (), **changes: Any) -> Object:
    job = LMTrainingJob.model_validate(job_object(**changes))
    return manifests.pod(
        job, "tiny-2-1-0", attempt=2, replica=1, intent="{}", image="x:1", avoided_nodes=avoided
    )


def template(**fields: Any) -> dict[str, Any]:
    return {"podTemplate": fields}


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"nodeSelector": {"pool": "a"}}, "nodeSelector", {"pool": "a"}),
        (
            {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]},
            "tolerations",
            [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        ),
        ({"priorityClassName": "high"}, "priorityClassName", "high"),
        ({"schedulerName": "volcano"}, "schedulerName", "volcano"),
        ({"runtimeClassName": "nvidia"}, "runtimeClassName", "nvidia"),
        ({"imagePullSecrets": ["mirror"]}, "imagePullSecrets", [{"name": "mirror"}]),
        ({"hostNetwork": True}, "dnsPolicy", "ClusterFirstWithHostNet"),
        ({"hostNetwork": True}, "hostNetwork", True),
    ],
)
def test_a_field_of_the_template_is_in_the_pod(given: Any, field: str, expected: object) -> None:
    assert pod(**template(**given))["spec"][field] == expected
    assert field not in pod()["spec"]


def test_labels_and_variables_lie_beside_our_own() -> None:
    made = pod(**template(labels={"team": "a"}, annotations={"b": "c"},
                          env=[{"name": "NCCL_DEBUG", "value": "INFO"}]))  # fmt: skip
    plain = pod()
    assert made["metadata"]["labels"] == plain["metadata"]["labels"] | {"team": "a"}
    assert made["metadata"]["annotations"] == {"b": "c", api.ANNOTATION_INTENT: "{}"}
    (container,), (before,) = made["spec"]["containers"], plain["spec"]["containers"]
    assert container.pop("env") == [{"name": "NCCL_DEBUG", "value": "INFO"}, *before.pop("env")]
    assert container == before, "nothing else of the container is the template's"


def test_a_key_that_kubernetes_would_refuse_is_refused_here() -> None:
    with pytest.raises(ValueError, match=r"-team.*letters, digits"):
        pod(**template(labels={"-team": "a"}))


def test_the_taint_of_the_devices_is_borne_too() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    made = pod(workers__accelerator={"count": 1}, **template(tolerations=[{"key": "spot"}]))
    assert made["spec"]["tolerations"] == [own, {"key": "spot"}]


@pytest.mark.parametrize("policy", ["Pack", "Spread"])
def test_the_pods_lie_together_or_apart(policy: str) -> None:
    made = pod(("bad",), **template(topology={"policy": policy, "key": "zone"}))["spec"]
    together = made["affinity"].get("podAffinity", {})
    apart = made.get("topologySpreadConstraints", [])
    assert (bool(together), bool(apart)) == (policy == "Pack", policy == "Spread")
    assert "nodeAffinity" in made["affinity"], "the bad node is avoided all the same"
    (term,) = apart or together["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "zone"
    labels = term["labelSelector"]["matchLabels"]
    assert labels.items() <= pod()["metadata"]["labels"].items()


def test_the_pods_of_an_attempt_are_one_group_of_the_queue() -> None:
    """Kueue's contract for plain pods: labels, the count, and a group that ends with its pods."""
    metadata = pod(**QUEUE)["metadata"]
    labels, annotations = metadata["labels"], metadata["annotations"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team"
    assert labels["kueue.x-k8s.io/priority-class"] == "high"
    assert labels["kueue.x-k8s.io/pod-group-name"] == f"tiny-{UID[:8]}-2"
    assert annotations["kueue.x-k8s.io/pod-group-total-count"] == "2"
    assert annotations["kueue.x-k8s.io/retriable-in-group"] == "false"
    alike = pod(("bad",), **QUEUE)["metadata"]["annotations"]["kueue.x-k8s.io/role-hash"]
    assert annotations["kueue.x-k8s.io/role-hash"] == alike == "main"
    assert not any("kueue" in key for key in pod()["metadata"]["labels"])


def test_pods_that_nobody_has_let_go_are_queued() -> None:
    gated = tuple(
        replace(one, phase="Pending", address="", node="", gates=("kueue.x-k8s.io/admission",))
        for one in running_gang(2)
    )
    waiting = situation(pods=gated, complete=False, spec=QUEUE)
    verdict = scheduled(waiting)
    assert verdict.reason is Scheduled.QUEUED
    for words in ("queue team", "kueue.x-k8s.io/admission", "tiny-1-0-0"):
        assert words in verdict.message
    said = replace(waiting, observed=replace(waiting.observed, queue_message="no room in team"))
    assert scheduled(said).message.endswith(": no room in team")


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([], ""),
        ([("QuotaReserved", "False", "no room")], "no room"),
        ([("Admitted", "False", "not yet"), ("QuotaReserved", "True", "has room")], "not yet"),
        ([("QuotaReserved", "True", "has room"), ("Admitted", "True", "go")], ""),
    ],
)
def test_what_a_queue_says_of_a_group(conditions: list[tuple[str, str, str]], message: str) -> None:
    said = [{"type": kind, "status": value, "message": m} for kind, value, m in conditions]
    assert queue_message({"status": {"conditions": said}}) == message
    assert queue_message({}) == ""


def test_a_gate_and_the_queues_eviction_are_seen() -> None:
    body: Object = {
        "metadata": {"name": "a", "uid": "b"},
        "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]},
        "status": {
            "conditions": [{"type": "TerminationTarget", "status": "True", "reason": "Preempted"}]
        },
    }
    seen = pod_view(body)
    assert seen.gates == ("kueue.x-k8s.io/admission",)
    assert seen.disruption is not None
    assert (seen.disruption.reason, seen.disruption.takes_all) == ("Preempted", True)


def test_the_hosts_network_is_the_administrators_to_give() -> None:
    asked = situation(spec=template(hostNetwork=True))
    refused = reason_not_to_start(asked)
    assert refused is not None
    assert "podTemplate.hostNetwork" in refused.message
    allowing = replace(SETTINGS, allowed=Allowed(host_network=True))
    assert reason_not_to_start(replace(asked, settings=allowing)) is None
