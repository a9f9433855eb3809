"""The real operator against a real API server: the life of a job, well and ill."""

import json
import re
import time
from collections.abc import Callable

import pytest

from lmtraining_api import names as api
from lmtraining_api.exits import FailureClass
from lmtraining_api.records import Peer, gang_digest
from lmtraining_api.status import ConditionType
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Object, Stage
from tests.api.operator.trainer import Trainer, exit_record, failure

pytestmark = pytest.mark.api

#: Keeps a measured figure in the test report.
Figures = Callable[[str, object], None]

APPLY_TO_PODS_SECONDS_MAX = 3.0
STEP_TO_STATUS_SECONDS_MAX = 6.0
RESIDENT_BYTES_MAX = 120 * 2**20
STOP_SECONDS_MAX = 20.0
"""Within the 30 s that a pod is given."""
NOT_FOUND = 404


def status_writes(stage: Stage, name: str) -> int:
    """Writes of the job's status so far, by the API server's own log."""
    lines = stage.server.audit_log.read_text().splitlines()
    found = 0
    for line in lines:
        reference = json.loads(line).get("objectRef", {})
        found += (
            reference.get("namespace") == stage.namespace
            and reference.get("name") == name
            and reference.get("subresource") == "status"
        )
    return found


def digest(gang: list[Object]) -> str:
    return gang_digest(pod["metadata"]["uid"] for pod in gang)


def one(peers: list[Peer]) -> Peer | None:
    """The only one."""
    return peers[0] if len(peers) == 1 else None


def test_children_of_a_job(stage: Stage, operator: OperatorProcess, figures: Figures) -> None:
    """What a job makes, and how fast."""
    uid = stage.create_job("tiny")["metadata"]["uid"]
    applied = time.monotonic()
    pods = stage.wait_for_pods("tiny", attempt=1, count=2)
    figures("apply_to_pods_seconds", time.monotonic() - applied)
    assert time.monotonic() - applied < APPLY_TO_PODS_SECONDS_MAX

    assert [pod["metadata"]["name"] for pod in pods] == ["tiny-1-0-0", "tiny-1-1-0"]
    assert all(pod["metadata"]["ownerReferences"][0]["uid"] == uid for pod in pods)
    assert all("finalizers" not in pod["metadata"] for pod in pods)
    assert stage.intent(pods[0]).peers == [], "a pod waits for its peers"
    job_file = json.loads(stage.do("GET", "configmaps", "/tiny-job-file")["data"]["job.json"])
    assert job_file["runDirectory"] == f"/storage/runs/tiny-{uid[:8]}"
    claim = stage.do("GET", "persistentvolumeclaims", "/tiny-checkpoints")
    assert "ownerReferences" not in claim["metadata"], "the volume outlives the job"
    assert stage.do("GET", "networkpolicies", "/tiny")["spec"]["policyTypes"] == ["Ingress"]
    job = stage.job("tiny")["metadata"]
    assert "finalizers" not in job, "a delete never waits for the operator"
    assert "annotations" not in job, "kopf keeps nothing on the job"

    stage.run_pods("tiny", attempt=1, count=2)
    stage.wait("the starting gun", lambda: stage.intent(pods[1]).peers or None)
    peers = [(peer.replica, peer.address) for peer in stage.intent(pods[0]).peers]
    assert peers == [(0, stage.address(0)), (1, stage.address(1))]


def test_life_to_completed(
    stage: Stage,
    operator: OperatorProcess,
    start_trainer: Callable[..., Trainer],
    figures: Figures,
) -> None:
    """P2, P4: start, steps, end; the end stays when the children and the operator are gone."""
    uid = stage.create_job("tiny")["metadata"]["uid"]
    trainer = start_trainer("tiny")
    pods = stage.run_pods("tiny", attempt=1, count=2)
    assert stage.wait_for("tiny", "Starting").status == "Unknown", "no step yet"
    trainer.train(1)
    stage.wait_for("tiny", "Training")
    for step in (50, 100):
        taken = trainer.train(step)
        trainer.save(step)
        stage.wait(f"step {step}", lambda step=step: stage.status("tiny").progress.step == step)
        figures("step_to_status_seconds", time.time() - taken.timestamp())
        assert time.time() - taken.timestamp() < STEP_TO_STATUS_SECONDS_MAX
    status = stage.status("tiny")
    assert (status.progress.percent, status.progress.eta) == ("25%", "1h20m")
    assert (status.metrics.loss, status.metrics.tokens_per_second) == ("3.25", "12346")
    assert status.checkpoint is not None
    assert status.checkpoint.last_step == 100

    record = exit_record(pods[0], 0, step=400, export_path="export", validation_loss=2.5)
    stage.end_pod(pods[1], 0, exit_record(pods[1], 0))
    stage.end_pod(pods[0], 0, record)
    assert stage.wait_for("tiny", "Completed").status == "True"
    ended = stage.status("tiny")
    assert (ended.progress.step, ended.metrics.validation_loss) == (400, "2.5")
    assert ended.artifacts.export == f"runs/tiny-{uid[:8]}/export"
    assert len(stage.pods("tiny")) == 2, "pods that have ended stay, for their logs"
    figures("status_writes", status_writes(stage, "tiny"))

    for pod in pods:
        stage.vanish(pod)
    stage.wait("the pods are gone", lambda: not stage.pods("tiny") or None)
    operator.terminate()
    assert stage.status("tiny") == ended
    assert stage.pods("tiny") == []
    assert sorted(stage.events("tiny")) == ["AttemptStarted", "Completed", "TrainingStarted"]


def test_operator_is_small_healthy_and_stops_fast(
    operator: OperatorProcess, figures: Figures
) -> None:
    """Idle memory, /healthz, /metrics, and SIGTERM."""
    assert operator.get("/healthz")[0] == 200
    code, text = operator.get("/metrics")
    assert code == 200
    assert re.search(r"^lmtraining_operator_build_info\{", text, re.MULTILINE)
    resident = operator.resident_bytes()
    figures("resident_mebibytes", resident / 2**20)
    assert resident < RESIDENT_BYTES_MAX
    assert operator.terminate() < STOP_SECONDS_MAX


def test_failed_pod_is_answered_by_a_new_attempt(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """P1, P3: the cause is named; of the failed gang only what has ended stays, for its logs."""
    stage.create_job("tiny", recovery__backoffSeconds=0)
    trainer = start_trainer("tiny")
    first, second = stage.run_pods("tiny", attempt=1, count=2)
    trainer.train(40)
    stage.wait_for("tiny", "Training")

    code, lost = failure(first, FailureClass.PEER_LOST)
    stage.end_pod(first, code, lost)
    code, crash = failure(second, FailureClass.HANG, rank=1, step=41, message="rank 1 hangs")
    stage.end_pod(second, code, crash)
    seen = stage.wait("lastFailure", lambda: stage.status("tiny").last_failure)
    assert (seen.failure_class, seen.pod, seen.rank, seen.exit_code) == (
        FailureClass.HANG,
        "tiny-1-1-0",
        1,
        85,
    )
    assert "rank 1 hangs" in seen.message
    assert f"kubectl logs -n {stage.namespace} tiny-1-1-0" in seen.message

    trainer = start_trainer("tiny", attempt=2)
    stage.run_pods("tiny", attempt=2, count=2)
    assert stage.status("tiny").progress.step == 40, "the step does not go back while it starts"
    trainer.say(resumed_from_step=30, load_seconds=0.25)
    trainer.train(31)
    stage.wait_for("tiny", "Training")
    status = stage.status("tiny")
    assert (status.attempt, status.restarts.total, status.restarts.counted) == (2, 1, 1)
    assert status.progress.step == 31
    assert status.last_recovery is not None
    assert status.last_recovery.resumed_from_step == 30
    assert [pod["metadata"]["name"] for pod in stage.pods("tiny")] == [
        "tiny-1-0-0", "tiny-1-1-0", "tiny-2-0-0", "tiny-2-1-0",
    ]  # fmt: skip


def test_deleted_pod_is_not_counted_and_answered_at_once(
    stage: Stage,
    operator: OperatorProcess,
    start_trainer: Callable[..., Trainer],
    figures: Figures,
) -> None:
    """A pod that somebody force-deletes spends no budget; the other one, whose trainer is older and
    cannot wait for another pod, is stopped quickly."""
    stage.create_job("tiny", recovery__restartsMax=0)
    trainer = start_trainer("tiny")
    first, second = stage.run_pods("tiny", attempt=1, count=2)
    trainer.train(10)
    stage.wait_for("tiny", "Training")
    started = time.monotonic()
    stage.vanish(second)
    stage.bury(first)
    stage.wait_for_pods("tiny", attempt=2, count=2)
    took = time.monotonic() - started
    figures("lost_pod_to_new_pods_seconds", took)
    assert took < APPLY_TO_PODS_SECONDS_MAX
    status = stage.status("tiny")
    assert status.restarts.by_reason == {FailureClass.POD_LOST: 1}
    assert status.restarts.counted == 0
    assert stage.wait_for("tiny", "Recovering").status == "Unknown"


@pytest.mark.parametrize("replica", [0, 1])
def test_lost_pod_is_replaced_alone(
    stage: Stage,
    operator: OperatorProcess,
    start_trainer: Callable[..., Trainer],
    figures: Figures,
    replica: int,
) -> None:
    """Level 3: the other pod stays, is told to wait, and then who the new one is."""
    stage.create_job("tiny", recovery__restartsMax=0)
    trainer = start_trainer("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    lost, survivor = gang[replica], gang[1 - replica]
    stage.wait("the starting gun", lambda: stage.intent(survivor).peers or None)
    trainer.say(gang=digest(gang))
    trainer.train(10)
    stage.wait_for("tiny", "Training")
    stage.wait("a report", lambda: stage.status("tiny").progress.step or None)
    started = time.monotonic()
    stage.vanish(lost)
    stage.wait("another pod", lambda: len(stage.pods("tiny")) == 2 or None)
    took = time.monotonic() - started
    figures("lost_pod_to_new_pod_seconds", took)
    assert took < APPLY_TO_PODS_SECONDS_MAX
    assert f"tiny-1-{replica}-1 takes the place" in stage.wait_for("tiny", "Recovering").message
    told = stage.wait("who is left", lambda: one(stage.intent(survivor).peers))
    assert told.pod_uid == survivor["metadata"]["uid"]

    gang = stage.run_pods("tiny", attempt=1, count=2)
    assert survivor["metadata"]["uid"] in {pod["metadata"]["uid"] for pod in gang}
    for pod in gang:
        stage.wait("both peers", lambda pod=pod: len(stage.intent(pod).peers) == 2 or None)
    assert {peer.pod_uid for peer in stage.intent(survivor).peers} == {
        pod["metadata"]["uid"] for pod in gang
    }
    trainer = start_trainer("tiny")
    trainer.say(gang=digest(gang), round=2)
    trainer.train(8, resumed_from_step=5)
    stage.wait_for("tiny", "Training")
    status = stage.wait("how", lambda: s if (s := stage.status("tiny")).last_recovery else None)
    assert (status.attempt, status.replaced_pods) == (1, {str(replica): 1})
    assert (status.restarts.total, status.restarts.counted) == (1, 0)
    assert status.last_recovery is not None
    assert status.last_recovery.fault.startswith("PodLost")
    assert (status.last_recovery.resumed_from_step, status.progress.step) == (5, 8)
    assert "PodReplaced" in stage.events("tiny")
    assert "AttemptFailed" not in stage.events("tiny")

    for pod in gang:
        stage.vanish(pod)
    stage.wait("another attempt", lambda: stage.status("tiny").attempt == 2 or None)
    assert stage.status("tiny").replaced_pods == {}


def test_spent_budget_ends_the_job(stage: Stage, operator: OperatorProcess) -> None:
    """Level 5: one reason, the evidence kept."""
    stage.create_job("tiny", recovery__restartsMax=0)
    first, second = stage.run_pods("tiny", attempt=1, count=2)
    stage.end_pod(second, 137, reason="OOMKilled")
    condition = stage.wait_for("tiny", "Failed")
    assert condition.status == "False"
    assert "recovery.restartsMax 0" in condition.message
    failed = stage.status("tiny").last_failure
    assert failed is not None
    assert failed.failure_class is FailureClass.OUT_OF_MEMORY
    stage.bury(first)
    assert [p["metadata"]["name"] for p in stage.pods("tiny")] == ["tiny-1-1-0"], "for its log"

    stage.patch_job("tiny", keepPodsSeconds=0)
    stage.wait("no pod is kept", lambda: not stage.pods("tiny") or None)
    for plural, path in (("configmaps", "/tiny-job-file"), ("networkpolicies", "/tiny")):

        def code(plural: str = plural, path: str = path) -> int:
            return stage.request("GET", plural, path)[0]

        stage.wait(f"no {path}", lambda code=code: code() == NOT_FOUND or None)
    assert stage.status("tiny").last_failure == failed, "P2: the record stays"


def test_what_cannot_succeed_is_not_tried_again(stage: Stage, operator: OperatorProcess) -> None:
    stage.create_job("tiny", workers__replicas=1)
    (pod,) = stage.run_pods("tiny", attempt=1, count=1)
    code, record = failure(pod, FailureClass.DIVERGED, message="11 of 10 steps were skipped")
    stage.end_pod(pod, code, record)
    assert "11 of 10 steps" in stage.wait_for("tiny", "Diverged").message


def test_suspend_and_resume(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """The pods get their full grace; the end of a suspended attempt is no failure."""
    stage.create_job("nap", recovery__graceSeconds=77)
    trainer = start_trainer("nap")
    pods = stage.run_pods("nap", attempt=1, count=2)
    trainer.train(20)
    trainer.save(20)
    stage.wait_for("nap", "Training")
    stage.patch_job("nap", suspend=True)
    stage.wait_for("nap", "Suspended", ConditionType.SCHEDULED)
    for pod in pods:
        found = stage.wait(
            "the pod is told to stop",
            lambda pod=pod: (
                f
                if "deletionTimestamp"
                in (f := stage.do("GET", "pods", f"/{pod['metadata']['name']}"))["metadata"]
                else None
            ),
        )
        assert found["metadata"]["deletionGracePeriodSeconds"] == 77
        stage.end_pod(pod, 80)
    stage.bury(*pods)
    stage.wait_for("nap", "Suspended")
    assert stage.status("nap").last_failure is None

    stage.patch_job("nap", suspend=False)
    stage.run_pods("nap", attempt=2, count=2)
    status = stage.status("nap")
    assert status.restarts.total == 0
    assert status.progress.step == 20


def test_deleted_job_is_not_made_again(stage: Stage, operator: OperatorProcess) -> None:
    """P5: there is no garbage collector here, so whatever is deleted stays deleted. A job of the
    same name waits for what is left of the deleted one."""
    stage.create_job("brief")
    pods = stage.run_pods("brief", attempt=1, count=2)
    stage.do("DELETE", api.PLURAL, "/brief")
    stage.create_job("brief", workers__replicas=1)
    stage.wait_for_message("brief", "is gone, which is being deleted", ConditionType.SCHEDULED)
    for pod in pods:
        stage.vanish(pod)
    stage.do("DELETE", "configmaps", "/brief-job-file")
    stage.do("DELETE", "networkpolicies", "/brief")
    (pod,) = stage.run_pods("brief", attempt=1, count=1)
    assert len(stage.pods("brief")) == 1
    stage.do("DELETE", api.PLURAL, "/brief")
    stage.wait(
        "the task has ended",
        lambda: "lmtraining_operator_jobs{" not in operator.get("/metrics")[1] or None,
    )
    # Not before: a pass under way may have seen the job and not its pod.
    stage.vanish(pod)
    stage.create_job("later", workers__replicas=1)
    stage.run_pods("later", attempt=1, count=1)
    assert stage.pods("brief") == []


def test_operator_killed_and_restarted_restarts_no_pod(
    stage: Stage,
    start_operator: Callable[[], OperatorProcess],
    start_trainer: Callable[..., Trainer],
) -> None:
    """P10: nothing is made, deleted or said anew by an operator that starts."""
    operator = start_operator()
    stage.create_job("steady")
    trainer = start_trainer("steady")
    stage.run_pods("steady", attempt=1, count=2)
    trainer.train(10)
    stage.wait_for("steady", "Training")
    before = [
        (p["metadata"]["uid"], p["metadata"]["resourceVersion"]) for p in stage.pods("steady")
    ]
    transitions = [c.last_transition_time for c in stage.status("steady").conditions]
    operator.kill()
    trainer.train(60)
    start_operator()
    stage.wait("step 60", lambda: stage.status("steady").progress.step == 60 or None)
    after = [(p["metadata"]["uid"], p["metadata"]["resourceVersion"]) for p in stage.pods("steady")]
    assert after == before
    status = stage.status("steady")
    assert status.attempt == 1
    assert [c.last_transition_time for c in status.conditions] == transitions


def test_edits_reach_the_pods_that_run(
    stage: Stage, operator: OperatorProcess, start_trainer: Callable[..., Trainer]
) -> None:
    """P10: by the intent, and no pod is made or deleted for them."""
    stage.create_job("tiny")
    trainer = start_trainer("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    trainer.train(5)
    stage.wait_for("tiny", "Training")
    stage.patch_job("tiny", training={"budget": {"steps": 500}}, requests={"checkpoint": "a"})

    def wanted(pod: Object) -> tuple[int, str]:
        wishes = stage.intent(pod).wishes
        return (wishes.budget_steps, wishes.checkpoint) if wishes else (0, "")

    for pod in gang:
        stage.wait("the wish", lambda pod=pod: wanted(pod) == (500, "a") or None)
    trainer.say(applied={"generation": 2, "checkpoint": "a", "checkpointStep": 6}, total_steps=500)
    stage.wait_for_event("tiny", "CheckpointSaved")
    status = stage.status("tiny")
    assert status.applied is not None
    assert (status.applied.generation, status.applied.checkpoint_step) == (2, 6)
    uids = [pod["metadata"]["uid"] for pod in gang]
    assert [pod["metadata"]["uid"] for pod in stage.pods("tiny")] == uids


def test_a_paused_job_is_left_alone_until_it_is_not(
    stage: Stage, operator: OperatorProcess
) -> None:
    """P4, P12: the annotation is seen at once, though it is no part of the spec."""

    def annotate(value: str | None) -> None:
        patch: Object = {"metadata": {"annotations": {api.ANNOTATION_PAUSED: value}}}
        stage.do("PATCH", api.PLURAL, "/tiny", patch)

    def accepted(reason: str) -> bool | None:
        condition = stage.status("tiny").condition(ConditionType.ACCEPTED)
        return (condition is not None and condition.reason == reason) or None

    stage.create_job("tiny")
    gang = stage.run_pods("tiny", attempt=1, count=2)
    annotate("true")
    stage.wait("paused", lambda: accepted("Paused"))
    stage.wait_for("tiny", "Paused")
    stage.vanish(gang[1])
    stage.patch_job("tiny", suspend=True)
    stage.wait("seen", lambda: stage.status("tiny").observed_generation == 2 or None)
    assert [pod["metadata"]["name"] for pod in stage.pods("tiny")] == ["tiny-1-0-0"]
    assert stage.status("tiny").last_failure is None
    annotate(None)
    stage.wait("taken up", lambda: accepted("Valid"))
    stage.bury(gang[0])
    stage.wait_for("tiny", "Suspended")
