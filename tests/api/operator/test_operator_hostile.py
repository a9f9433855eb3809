"""What others do in a job's namespace, by hand or by accident: each ends in a true condition with
a sentence, or in nothing at all, and other jobs do not notice."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from devcluster.apiserver import ApiServer
from lmtraining_api import names as api
from lmtraining_api.records import TrainerReport
from lmtraining_api.status import ConditionType
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage
from tests.api.operator.trainer import Trainer

pytestmark = pytest.mark.api

SCHEDULED, PROGRESSING = ConditionType.SCHEDULED, ConditionType.PROGRESSING
ONE = {"workers__replicas": 1}


@pytest.mark.usefixtures("operator")
def test_what_admission_refuses_is_said_in_its_own_words(stage: Stage) -> None:
    limits = {"limits": [{"type": "Container", "max": {"memory": "3Gi"}}]}
    body = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}}
    stage.do("POST", "limitranges", body=body | {"spec": limits})
    stage.create_job("large", **ONE, workers__resources={"memory": "4Gi"})
    stage.create_job("classless", **ONE, podTemplate={"priorityClassName": "no-such-class"})
    stage.create_job("good", **ONE)
    for name, words in (("large", "maximum memory usage"), ("classless", "no-such-class")):
        assert words in stage.wait_for(name, "CreateRefused", SCHEDULED).message
        assert stage.pods(name) == []
    stage.wait_for_pods("good", attempt=1, count=1)


def test_what_pod_security_refuses_is_said_in_its_own_words(
    api_server: ApiServer, stage: Stage, tmp_path: Path
) -> None:
    """An administrator who lets jobs use the nodes' network, in a namespace that does not."""
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    stage.label_namespace(level)
    operator = OperatorProcess(
        api_server, stage.namespace, tmp_path / "log", arguments=["--allow-host-network"]
    )
    try:
        stage.create_job("tiny", **ONE, podTemplate={"hostNetwork": True})
        said = stage.wait_for("tiny", "CreateRefused", SCHEDULED).message
    finally:
        operator.kill()
    assert 'violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)' in said
    assert stage.pods("tiny") == []


@pytest.mark.usefixtures("operator")
def test_objects_of_others_are_neither_taken_nor_touched(stage: Stage) -> None:
    """P1: labels do not make a pod ours; a name that is taken is said."""
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "second"}, "spec": {"podSelector": {}},
    }  # fmt: skip
    stage.do("POST", "networkpolicies", body=policy)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "first"}}
    ports = {"spec": {"ports": [{"port": 80}], "selector": {"app": "other"}}}
    theirs = stage.do("POST", "services", body=service | ports)
    uid = stage.create_job("first", **ONE)["metadata"]["uid"]
    stage.do("POST", "pods", body=impostor("first", uid))
    stage.create_job("second", **ONE)
    assert "NetworkPolicy second" in stage.wait_for("second", "NameTaken", SCHEDULED).message
    stage.run_pods("first", attempt=1, count=2)  # ours, and the impostor
    stage.wait_for("first", "Scheduled", SCHEDULED)
    stage.patch_job("first", suspend=True)
    (ours,) = [pod for pod in stage.pods("first") if "ownerReferences" in pod["metadata"]]
    stage.bury(ours)
    stage.wait_for("first", "Suspended")
    assert [pod["metadata"]["name"] for pod in stage.pods("first")] == ["impostor"]
    assert "deletionTimestamp" not in stage.pods("first")[0]["metadata"]
    assert stage.do("GET", "services", "/first") == theirs, "a Service is in nobody's way"


def impostor(job: str, uid: str) -> Object:
    """A pod with all the labels of ours, and another owner: nobody."""
    labels = {
        api.LABEL_JOB_NAME: job, api.LABEL_JOB_UID: uid,
        api.LABEL_ATTEMPT: "1", api.LABEL_REPLICA: "0",
    }  # fmt: skip
    container = {"name": "trainer", "image": "registry.example/other:1"}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "impostor", "labels": labels},
        "spec": {"containers": [container]},
    }  # fmt: skip


def test_what_a_hand_changes_is_put_right(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """P12: the intent of a pod, and the job's status."""
    stage.create_job("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    start_trainer("tiny").train(step=100)
    stage.wait_for("tiny", "Training")
    told = stage.intent(gang[1])
    name = gang[1]["metadata"]["name"]
    emptied: Object = {"metadata": {"annotations": {api.ANNOTATION_INTENT: "{}"}}}
    stage.do("PATCH", "pods", f"/{name}", emptied)
    stage.wait("the intent is back", lambda: stage.has_intent(gang[1], told) or None)
    wrong: Object = {"status": {"progress": {"step": 7, "totalSteps": 8}, "conditions": []}}
    stage.do("PATCH", api.PLURAL, "/tiny/status", wrong)
    stage.wait("the step is back", lambda: stage.status("tiny").progress.step == 100 or None)
    stage.wait_for("tiny", "Training")
    assert stage.status("tiny").attempt == 1
    assert len(stage.pods("tiny")) == 2


@pytest.mark.usefixtures("operator")
def test_a_namespace_that_is_being_deleted(stage: Stage) -> None:
    """Nothing can be made there any more, which is said, and not tried for ever in haste."""
    stage.create_job("early", **ONE)
    stage.wait_for_pods("early", attempt=1, count=1)
    stage.delete_namespace()
    (pod,) = stage.pods("early")
    stage.vanish(pod)
    said = stage.wait_for("early", "CreateRefused", SCHEDULED)
    assert "being terminated" in said.message


def answer_of(content: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


FOREIGN = TrainerReport.model_validate(
    {
        "job_uid": "another", "attempt": 1, "round": 1, "state": "Training",
        "report_time": "2026-01-01T00:00:00Z", "step": 7,
    }
)  # fmt: skip
SLOW = b""
"""The server takes the request and never answers."""
HUGE = b'HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n"' + b"x" * 400_000
ANSWERS = {
    "not JSON": answer_of(b"hello"),
    "of another job": answer_of(FOREIGN.model_dump_json(by_alias=True).encode()),
    "no answer within": SLOW,
    "HTTP 302": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
    "more than": HUGE,
}


@pytest.mark.usefixtures("operator")
def test_a_trainer_that_answers_nonsense_is_said_to_be_out_of_reach(
    stage: Stage, start_trainer: Callable[..., Trainer], answering: Callable[[bytes], None]
) -> None:
    """P4, P11: with what is wrong with the answer and nothing of it; the pods are left alone."""
    stage.create_job("tiny", **ONE)
    stage.run_pods("tiny", attempt=1, count=1)
    trainer = start_trainer("tiny")
    trainer.train(step=100)
    stage.wait_for("tiny", "Training")
    trainer.close()
    for words, answer in ANSWERS.items():
        answering(answer)
        stage.wait(words, lambda words=words: words in _reason_of_silence(stage) or None)
    status = stage.status("tiny")
    assert (status.attempt, status.progress.step, status.restarts.total) == (1, 100, 0)


def _reason_of_silence(stage: Stage) -> str:
    condition = stage.status("tiny").condition(PROGRESSING)
    return condition.message if condition and condition.reason == "Unreachable" else ""


@pytest.fixture
def answering(stage: Stage) -> Iterator[Callable[[bytes], None]]:
    """From the first call on, a server at the lead's address that says the same to everybody."""
    answer = [b""]
    listeners: list[socket.socket] = []
    waiting: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if answer[0] == SLOW:
                    waiting.append(client)
                    continue
                with client, suppress(OSError):
                    client.recv(4096)
                    client.sendall(answer[0])

    def say(content: bytes) -> None:
        answer[0] = content
        if not listeners:
            listeners.append(socket.create_server((stage.address(0), api.REPORT_PORT)))
            threading.Thread(target=serve, args=listeners, daemon=True).start()

    yield say
    for one in (*listeners, *waiting):
        one.close()
