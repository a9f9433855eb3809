"""`kubectl lmtrain` against a real API server and a real operator, by real kubectl."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster import binaries
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from lmtraining_api import names as api
from lmtraining_api.status import ConditionType
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage
from tests.api.operator.trainer import Trainer

pytestmark = pytest.mark.api

COMMAND_SECONDS_MAX = 60
DENIED = "nobody-special"
SIZE = {"storage": "1Gi"}
SCHEDULED, ACCEPTED = ConditionType.SCHEDULED, ConditionType.ACCEPTED


@dataclass(frozen=True)
class Plugin:
    """The program as kubectl calls it."""

    kubeconfig: Path
    namespace: str
    path: str

    def run(self, *arguments: str, namespace: str = "") -> subprocess.CompletedProcess[str]:
        place = [f"--kubeconfig={self.kubeconfig}", "-n", namespace or self.namespace]
        return subprocess.run(
            [sys.executable, "-m", "lmtraining_cli", *arguments, *place],
            capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX,
            stdin=subprocess.DEVNULL, env=os.environ | {"PATH": self.path, "COLUMNS": "120"},
        )  # fmt: skip

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that waits for something that the test does meanwhile."""
        place = [f"--kubeconfig={self.kubeconfig}", "-n", self.namespace]
        with subprocess.Popen(
            [sys.executable, "-m", "lmtraining_cli", *arguments, *place],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"PATH": self.path},
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def said(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.said(*arguments, "-o", "json"))

    def refused(self, *arguments: str, namespace: str = "") -> str:
        done = self.run(*arguments, namespace=namespace)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def plugin(api_server: ApiServer, namespace: str) -> Plugin:
    kubectl = binaries.ensure(["kubectl"], Layout.from_environment())["kubectl"]
    path = f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}"
    return Plugin(api_server.kubeconfig, namespace, path)


@pytest.mark.usefixtures("operator")
def test_why_names_the_true_cause_of_what_a_real_server_refuses(
    stage: Stage, plugin: Plugin, kubectl: Kubectl
) -> None:
    """Each fault is the real one as far as there is one without a kubelet and a scheduler, whose
    words the test says."""
    staged = _staged(stage, kubectl)
    for name, (cause, words) in staged.items():
        found = plugin.json("why", name)
        assert found["cause"] == cause, found
        told = " ".join([found["sentence"], *found["evidence"], found["fix"]])
        assert words in told, f"{name}: {told}"


def _staged(stage: Stage, kubectl: Kubectl) -> dict[str, tuple[str, str]]:
    """Jobs that are held up, each by something else."""
    one = {"workers__replicas": 1}
    stage.create_job("image", **one, workers__image="registry.example/none:1")
    stage.create_job("room", **one)
    stage.create_job("gang", workers__replicas=2)
    stage.create_job("secret", **one, data__train=[_secret_source()])
    stage.create_job("claim", **one, checkpoint__storage={"existingClaim": "shelf"})
    stage.create_job("asleep", **one, suspend=True)
    kubectl.apply(
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "lonely"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": SIZE}},
        }
    )  # fmt: skip
    stage.create_job("lonely", checkpoint__storage={"existingClaim": "lonely"})
    _say_what_the_cluster_says(stage)
    for name, kind, reason in (
        ("image", SCHEDULED, "ImagePullFailed"), ("room", SCHEDULED, "Unschedulable"),
        ("claim", SCHEDULED, "VolumeNotReady"), ("lonely", ACCEPTED, "Invalid"),
        ("asleep", ConditionType.SUCCEEDED, "Suspended"),
    ):  # fmt: skip
        stage.wait_for(name, reason, kind)
    return {
        "image": ("ImageNotFound", "registry.example/none:1"),
        "room": ("NoRoom", "3 nodes have too little memory free"),
        "gang": ("GangNoRoom", "1 of 2 pods have a place"),
        "secret": ("SecretMissing", "secret s3-key does not exist"),
        "claim": ("ClaimMissing", "shelf"),
        "lonely": ("Invalid", "ReadWriteMany"),
        "asleep": ("Suspended", "kubectl lmtrain resume asleep"),
    }


def _secret_source() -> Object:
    return {"uri": "s3://bucket/data.txt", "credentials": {"secretRef": {"name": "s3-key"}}}


def _say_what_the_cluster_says(stage: Stage) -> None:
    """As a kubelet and a scheduler say it."""
    (image,) = stage.wait_for_pods("image", attempt=1, count=1)
    stage.place(image)
    stage.wait_container(image, "ErrImagePull", "manifest unknown")
    (room,) = stage.wait_for_pods("room", attempt=1, count=1)
    _refuse_a_place(stage, room, "0/3 nodes are available: 3 Insufficient memory.")
    lucky, unlucky = stage.wait_for_pods("gang", attempt=1, count=2)
    stage.place(lucky)
    _refuse_a_place(stage, unlucky, "0/3 nodes are available: 3 Insufficient cpu.")
    (secret,) = stage.wait_for_pods("secret", attempt=1, count=1)
    stage.place(secret)
    about = {key: secret["metadata"][key] for key in ("name", "namespace", "uid")}
    event = {
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "FailedMount",
        "metadata": {"name": "secret.1", "namespace": stage.namespace},
        "involvedObject": {"kind": "Pod", **about},
        "message": 'MountVolume.SetUp failed for volume "credentials-0": secret "s3-key" not found',
    }  # fmt: skip
    stage.do("POST", "events", body=event)


def _refuse_a_place(stage: Stage, pod: Object, message: str) -> None:
    said = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
    }  # fmt: skip
    stage.patch_status(pod, {"conditions": [said]})


def test_a_full_quota_is_told_with_its_figures(
    operator: OperatorProcess, stage: Stage, plugin: Plugin
) -> None:
    body = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"},
        "spec": {"hard": {"pods": "1"}},
    }  # fmt: skip
    stage.do("POST", "resourcequotas", body=body)
    full = {"status": {"hard": {"pods": "1"}, "used": {"pods": "1"}}}
    stage.do("PATCH", "resourcequotas", "/team/status", full)
    stage.create_job("tiny", workers__replicas=1)
    stage.wait_for("tiny", "QuotaExceeded", SCHEDULED)
    found = plugin.json("why", "tiny")
    assert found["cause"] == "QuotaExceeded"
    assert "quota team: 1 of 1 pods used" in found["evidence"]


def test_a_training_job_is_shown_suspended_resumed_and_deleted(
    operator: OperatorProcess, stage: Stage, plugin: Plugin, start_trainer: Callable[..., Trainer]
) -> None:
    stage.create_job("tiny")
    stage.run_pods("tiny", attempt=1, count=2)
    trainer = start_trainer("tiny")
    trainer.train(step=100)
    trainer.save(step=80)
    stage.wait_for("tiny", "Training")
    stage.wait("the checkpoint", lambda: stage.status("tiny").checkpoint)
    shown = plugin.said("status", "tiny")
    for words in ("lmtj/tiny  Training", "100/400", "loss 3.25", "tiny-1-1-0", "step 80"):
        assert words in shown
    assert "the API server does not reach port 8080" in shown, "of addresses of this machine"
    listed = plugin.said("list").splitlines()
    assert listed[1].split()[:4] == ["tiny", "Training", "100", "25%"]
    assert plugin.json("list")["items"][0]["metadata"]["name"] == "tiny"
    assert plugin.json("status", "tiny")["state"] == "Training"

    assert "context devcluster" in plugin.refused("suspend", "tiny"), "nobody is there to ask"
    assert not stage.job("tiny")["spec"].get("suspend")
    plugin.said("suspend", "tiny", "--yes")
    assert stage.job("tiny")["spec"]["suspend"] is True
    assert "already" in plugin.said("suspend", "tiny", "--yes")
    plugin.said("resume", "tiny")
    assert stage.job("tiny")["spec"]["suspend"] is False

    question = plugin.refused("delete", "tiny")
    for words in (f"namespace {stage.namespace}", "context devcluster", "step 100 of 400", "--yes"):
        assert words in question
    assert "tiny-checkpoints" in plugin.said("delete", "tiny", "--yes")
    code, _ = stage.request("GET", api.PLURAL, "/tiny")
    assert code == 404


@pytest.mark.usefixtures("operator")
def test_ranks_are_asked_for_a_checkpoint_and_for_a_step_back(
    stage: Stage, plugin: Plugin, start_trainer: Callable[..., Trainer]
) -> None:
    stage.create_job("tiny")
    assert "does not train (Pending)" in plugin.said("checkpoint", "tiny")
    stage.run_pods("tiny", attempt=1, count=2)
    trainer = start_trainer("tiny")
    trainer.train(step=100)
    stage.wait_for("tiny", "Training")

    early = _requests(stage)["checkpoint"]
    with plugin.started("checkpoint", "tiny") as asked:
        name = stage.wait("the request", lambda: _another(stage, "checkpoint", early))
        trainer.say(applied={"generation": 3, "checkpoint": name, "checkpointStep": 101})
        assert asked.communicate(timeout=COMMAND_SECONDS_MAX)[0].endswith("of step 101\n")

    assert "no checkpoint to go back to (Training)" in plugin.refused(
        "rollback", "tiny", "--to-step=80", "--yes"
    )
    assert "rollback" not in _requests(stage), "nothing is asked that cannot be done"
    trainer.save(100)
    stage.wait("a checkpoint", lambda: stage.job("tiny")["status"].get("checkpoint"))
    assert "newest is of step 100" in plugin.refused("rollback", "tiny", "--to-step=101", "--yes")
    assert "step 100 of 400" in plugin.refused("rollback", "tiny", "--to-step=80")
    before = None
    for step, refusal in ((80, ""), (70, "there are 80 and 101")):
        with plugin.started("rollback", "tiny", f"--to-step={step}", "--yes") as asked:
            before = stage.wait(
                "the request", lambda last=before: _another(stage, "rollback", last)
            )
            assert before["toStep"] == step
            back = {} if refusal else {"rollbackStep": step}
            answer = {"generation": 4, "rollback": before["name"], "refusal": refusal} | back
            trainer.say(applied=answer)
            _, errors = asked.communicate(timeout=COMMAND_SECONDS_MAX)
            assert asked.returncode == (1 if refusal else 0)
            assert refusal in errors

    assert "is still asked for" in plugin.refused("checkpoint", "tiny", "--timeout=1")


def _requests(stage: Stage) -> Object:
    return dict(stage.job("tiny")["spec"].get("requests") or {})


def _another(stage: Stage, kind: str, before: Any) -> Any:
    """What is asked for now, if it is not what was asked for before."""
    found = _requests(stage).get(kind)
    return found if found != before else None


def test_a_job_that_does_not_exist(stage: Stage, plugin: Plugin) -> None:
    stage.create_job("tiny-gpt")
    for command in ("status", "logs", "delete"):
        said = plugin.refused(command, "tiny-gtp")
        assert f"no LMTrainingJob tiny-gtp in namespace {stage.namespace}" in said
        assert "did you mean tiny-gpt?" in said


@pytest.mark.usefixtures("operator")
def test_logs_that_are_not_there(stage: Stage, plugin: Plugin) -> None:
    stage.create_job("tiny")
    stage.wait_for_pods("tiny", attempt=1, count=2)
    assert "no pod of job tiny has started" in plugin.refused("logs", "tiny")
    assert "no rank 7: its last one is 1" in plugin.refused("logs", "tiny", "--rank=7")


ALLOWED: dict[str, list[dict[str, Any]]] = {
    "viewer": [
        {"apiGroups": [api.GROUP], "resources": [api.PLURAL], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
    ],
    DENIED: [],
}


def test_rights(stage: Stage, plugin: Plugin, kubectl: Kubectl) -> None:
    """What a user may not do is said with verb and resource; what they may see is shown."""
    stage.create_job("tiny")
    for user, rules in ALLOWED.items():
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": user}}
        subject = {"kind": "ServiceAccount", "name": user, "namespace": stage.namespace}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}
        kubectl.apply(
            role | {"kind": "Role", "rules": rules},
            role | {"kind": "RoleBinding", "subjects": [subject], "roleRef": reference},
        )
    account = f"system:serviceaccount:{stage.namespace}"
    shown = plugin.said("why", "tiny", f"--as={account}:viewer")
    assert f"not seen: {account}:viewer may not get persistentvolumeclaims in namespace" in shown
    assert "verbs: [get]" in shown
    assert plugin.said("status", "tiny", f"--as={account}:viewer")
    refused = plugin.refused("suspend", "tiny", "--yes", f"--as={account}:viewer")
    assert f"may not patch {api.PLURAL}" in refused
    assert "verbs: [patch]" in refused
    for command in ("status", "list", "delete"):
        name = [] if command == "list" else ["tiny"]
        said = plugin.refused(command, *name, f"--as={account}:{DENIED}")
        assert f"may not {'list' if command == 'list' else 'get'} {api.PLURAL}" in said


def test_wrong_context_and_a_cluster_that_does_not_answer(plugin: Plugin, tmp_path: Path) -> None:
    said = plugin.refused("list", "--context=devclutser")
    assert "no context devclutser: did you mean devcluster?" in said
    away = tmp_path / "away"
    lines = [
        "    server: https://127.0.0.1:1" if "server:" in line else line
        for line in plugin.kubeconfig.read_text().splitlines()
    ]
    away.write_text("\n".join(lines))
    nowhere = Plugin(tmp_path / "nowhere", plugin.namespace, plugin.path).refused("list")
    assert f"there is no kubeconfig {tmp_path / 'nowhere'}" in nowhere
    gone = Plugin(away, plugin.namespace, plugin.path)
    assert "does not answer" in gone.refused("status", "tiny")
    assert "choose another --context" in gone.refused("status", "tiny")


def test_a_cluster_without_our_crd(
    plugin: Plugin, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ApiServer(tmp_path_factory.mktemp("bare")) as bare:
        other = Plugin(bare.kubeconfig, "default", plugin.path)
        assert "install the chart lm-training-operator" in other.refused("status", "tiny")
        assert "has no LMTrainingJobs" in other.said("version")


def test_a_job_is_completed_by_tab(stage: Stage, plugin: Plugin) -> None:
    stage.create_job("tiny-gpt")
    place = [f"--kubeconfig={plugin.kubeconfig}", "-n", stage.namespace]
    done = subprocess.run(
        [sys.executable, "-c", "from lmtraining_cli.completion import main; main()", *place,
         "status", "ti"],
        capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS_MAX,
        env=os.environ | {"PATH": plugin.path},
    )  # fmt: skip
    assert done.stdout == "tiny-gpt\n:4\n"


def test_versions(kubectl: Kubectl, plugin: Plugin) -> None:
    found = plugin.json("version")
    assert found["client"]
    assert api.PLURAL in found["crd"]
    assert found["notes"] == ["no operator runs in this cluster"]
    assert found["fits"] is None, "an operator that does not run fits nothing"
    with _operator_pod(kubectl, found["client"]):
        assert plugin.said("version").splitlines()[-1] == "they fit together"
        assert plugin.json("version")["fits"] is True
    with _operator_pod(kubectl, "0.9.0"):
        assert "upgrade the client" in plugin.said("version")
        assert plugin.json("version")["fits"] is False


@contextmanager
def _operator_pod(kubectl: Kubectl, version: str) -> Iterator[None]:
    """As the chart makes it, as far as this is asked for."""
    labels = {api.LABEL_COMPONENT: api.COMPONENT_OPERATOR}
    container = {"name": "operator", "image": f"registry.example/operator:{version}"}
    kubectl.apply(
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "labels": labels},
            "spec": {"containers": [container]},
        }
    )  # fmt: skip
    try:
        yield
    finally:
        kubectl.run("delete", "pod", "operator", "--grace-period=0", "--force")
