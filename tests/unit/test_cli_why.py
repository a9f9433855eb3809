"""`kubectl lmtrain why` names the true cause: a table of staged failures.

The words of scheduler, kubelet and provisioner are those of Kubernetes 1.35; tests/api stages a
part of them with a real operator and a real API server.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import FailureClass, TrainerReport, names
from lmtraining_cli.snapshot import Pod, Snapshot, event_of
from lmtraining_cli.why import why

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
UID = "0f5c"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "plugin.md"
Object = dict[str, Any]


def before(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def condition(kind: str, status: str, reason: str, message: str = "") -> Object:
    return {
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": before(60), "observedGeneration": 1,
    }  # fmt: skip


def conditions(**reasons: tuple[str, str, str] | tuple[str, str]) -> list[Object]:
    return [condition(kind, *values) for kind, values in reasons.items()]


def job(status: Object | None = None, **spec: Any) -> Object:
    metadata = {
        "name": "tiny", "namespace": "team", "uid": UID, "generation": 1,
        "creationTimestamp": before(300),
    }  # fmt: skip
    return {
        "metadata": metadata,
        "spec": {"workers": {"replicas": 2}} | spec,
        "status": {"observedGeneration": 1} | (status or {}),
    }


def pod(replica: int = 0, *, node: str = "", age: float = 120, **status: Any) -> Pod:
    labels = {
        names.LABEL_JOB_UID: UID, names.LABEL_ATTEMPT: "1", names.LABEL_REPLICA: str(replica),
    }  # fmt: skip
    requests = {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8"}
    container = {"image": "registry.example/trainer:1", "resources": {"requests": requests}}
    gates = status.pop("gates", [])
    return Pod(
        body={
            "metadata": {
                "name": f"tiny-1-{replica}-0", "uid": f"pod-{replica}", "labels": labels,
                "creationTimestamp": before(age),
            },
            "spec": {"nodeName": node, "containers": [container], "schedulingGates": gates},
            "status": {"phase": "Pending"} | status,
        }
    )  # fmt: skip


def waiting(reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "trainer", "state": state}]}


def running(replica: int = 0) -> Pod:
    state = {"running": {"startedAt": before(100)}}
    containers = [{"name": "trainer", "state": state}]
    return pod(replica, node="node-1", phase="Running", containerStatuses=containers)


def unplaced(message: str, replica: int = 0) -> Pod:
    said = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
    }  # fmt: skip
    return pod(replica, conditions=[said])


def event(about: str, reason: str, message: str) -> Object:
    kind, _, name = about.partition("/")
    return {
        "involvedObject": {"kind": kind, "name": name}, "type": "Warning", "reason": reason,
        "message": message, "lastTimestamp": before(10), "count": 3,
    }  # fmt: skip


def node(
    name: str = "node-1",
    *,
    gpus: str = "8",
    ready: str = "True",
    cpu: str = "64",
    memory: str = "512Gi",
) -> Object:
    return {
        "metadata": {"name": name},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "nvidia.com/gpu": gpus},
            "conditions": [
                {
                    "type": "Ready",
                    "status": ready,
                    "message": "Kubelet stopped posting node status.",
                }
            ],
        },
    }


def at(job_: Object | None = None, *, events: tuple[Object, ...] = (), **values: Any) -> Snapshot:
    return Snapshot(
        job=job_ or job({"conditions": conditions(Succeeded=("Unknown", "Pending"))}),
        now=NOW,
        events=[event_of(one) for one in events],
        **values,
    )


def state(reason: str, message: str = "", status: str = "Unknown", **more: Any) -> Object:
    return {"conditions": conditions(Succeeded=(status, reason, message))} | more


def held_up(reason: str, message: str) -> Object:
    said = conditions(Succeeded=("Unknown", "Pending"), Scheduled=("False", reason, message))
    return job({"conditions": said})


def failed(failure_class: str, message: str, **more: Any) -> Object:
    failure = {
        "failureClass": failure_class, "reason": failure_class, "message": message, "attempt": 1,
        "pod": "tiny-1-0-0", "node": "node-1", "time": before(20), "exitCode": 84,
        "frames": ["train.py:10 step"],
    } | more  # fmt: skip
    return job(state("Failed", message, "False", lastFailure=failure))


def training(**more: Any) -> Object:
    progress = {"step": 100, "totalSteps": 400, "reportTime": before(2)}
    said = conditions(
        Succeeded=("Unknown", "Training"),
        Progressing=("True", "Stepping"),
        Healthy=more.pop("healthy", ("True", "Stable")),
        Checkpointed=more.pop("checkpointed", ("True", "Fresh")),
    )
    return job({"conditions": said, "progress": progress} | more)


GATE = [{"name": "kueue.x-k8s.io/admission"}]
NODES = "0/5 nodes are available: "
LATE = (pod(0, node="node-1", **waiting("ContainerCreating")),)
CLAIM: Object = {
    "metadata": {"name": "tiny-checkpoints"}, "spec": {"storageClassName": "fast"},
    "status": {"phase": "Pending"},
}  # fmt: skip
UNCLASSED: Object = CLAIM | {"spec": {}}
OWN = "PersistentVolumeClaim/tiny-checkpoints"
EXISTING = job(
    {"conditions": conditions(Succeeded=("Unknown", "Pending"))},
    checkpoint={"storage": {"existingClaim": "shelf"}},
)
EDITED = training()
EDITED["metadata"]["generation"] = 2
EDITED["metadata"]["managedFields"] = [
    {"manager": "kubectl", "time": before(90), "fieldsV1": {"f:spec": {"f:suspend": {}}}}
]
DELETED = training()
DELETED["metadata"]["deletionTimestamp"] = before(5)
DELETED["metadata"]["finalizers"] = ["team.example/archive"]
STALLED = TrainerReport.model_validate(
    {
        "job_uid": UID, "attempt": 1, "round": 1, "state": "Training", "report_time": NOW,
        "ranks": [{"rank": 0, "heartbeat_age_seconds": 41.0, "phase": "data"}],
    }
)  # fmt: skip

CASES: dict[str, tuple[Snapshot, str, str]] = {
    # what is staged: (snapshot, cause, words of sentence, evidence or fix)
    "operator is not there": (at(job() | {"status": {}}), "NoOperator", "5m"),
    "operator missed an edit": (at(EDITED), "OperatorBehind", "observedGeneration 1"),
    "spec contradicts the cluster": (
        at(job({"conditions": conditions(Accepted=("False", "Invalid", "path is taken"))})),
        "Invalid", "path is taken",
    ),
    "spec of a newer version": (
        at(job({"conditions": conditions(Accepted=("False", "Unsupported", "layout tp"))})),
        "Unsupported", "upgrade the operator",
    ),
    "paused": (
        at(job({"conditions": conditions(Accepted=("False", "Paused", "left alone"))})),
        "Paused", "kubectl annotate lmtj tiny lmtraining.dev/paused-",
    ),
    "suspended": (at(job(state("Suspended"), suspend=True)), "Suspended", "lmtrain resume tiny"),
    "held by a finalizer": (at(DELETED), "BeingDeleted", "team.example/archive"),
    "quota is full": (
        at(
            held_up("QuotaExceeded", "Pod tiny-1-0-0: exceeded quota: gpus, requested: ..."),
            quotas=[{
                "metadata": {"name": "gpus"},
                "status": {
                    "hard": {"requests.nvidia.com/gpu": "8", "pods": "50"},
                    "used": {"requests.nvidia.com/gpu": "8", "pods": "3"},
                },
            }],
        ),
        "QuotaExceeded", "8 of 8 requests.nvidia.com/gpu used",
    ),
    "pod security": (
        at(held_up("CreateRefused", 'pods "x" is forbidden: violates PodSecurity "restricted"')),
        "PodSecurity", "restricted",
    ),
    "limit range": (
        at(held_up("CreateRefused", "maximum memory usage per Container is 1Gi, but 2Gi")),
        "LimitRange", "workers.resources",
    ),
    "webhook": (
        at(held_up("CreateRefused", 'admission webhook "policy.example" denied the request: no')),
        "Webhook", "policy.example",
    ),
    "operator has no right": (
        at(held_up("CreateRefused", 'pods is forbidden: User "system:serviceaccount:a:b" cannot')),
        "OperatorForbidden", "rbac.create",
    ),
    "name is taken": (
        at(held_up("NameTaken", "Pod tiny-1-0-0 exists and does not belong to this job")),
        "NameTaken", "tiny-1-0-0",
    ),
    "waits in a queue": (at(pods=[pod(0, gates=GATE), pod(1, gates=GATE)]), "Queued", "kueue"),
    "image needs a password": (
        at(pods=[pod(node="n", **waiting("ErrImagePull", "401 Unauthorized"))]),
        "ImageForbidden", "imagePullSecret",
    ),
    "image does not exist": (
        at(
            pods=[pod(node="n", **waiting("ImagePullBackOff", "Back-off pulling image"))],
            events=(event("Pod/tiny-1-0-0", "Failed", "trainer:1: manifest unknown"),),
        ),
        "ImageNotFound", "registry.example/trainer:1",
    ),
    "registry is away": (
        at(pods=[pod(node="n", **waiting("ErrImagePull", "dial tcp: lookup r: no such host"))]),
        "RegistryUnreachable", "no such host",
    ),
    "image name is none": (
        at(pods=[pod(node="n", **waiting("InvalidImageName", "couldn't parse image name"))]),
        "ImageNameInvalid", "workers.image",
    ),
    "image is being pulled": (
        at(
            pods=LATE,
            events=(event("Pod/tiny-1-0-0", "Pulling", 'Pulling image "trainer:1"'),),
        ),
        "ImagePulling", "2m",
    ),
    "not a trainer image": (
        at(pods=[pod(node="n", **waiting("RunContainerError", "executable file not found"))]),
        "NotATrainerImage", "no trainer image",
    ),
    "config map is gone": (
        at(pods=[pod(**waiting("CreateContainerConfigError", 'configmap "c" not found'))]),
        "MissingObject", "create the configmap c",
    ),
    "secret is missing": (
        at(
            pods=LATE,
            events=(event(
                "Pod/tiny-1-0-0", "FailedMount",
                'MountVolume.SetUp failed for volume "credentials-0": secret "s3" not found',
            ),),
        ),
        "SecretMissing", "secret s3 does not exist",
    ),
    "disk of another node": (
        at(
            pods=LATE,
            events=(event("Pod/tiny-1-0-0", "FailedAttachVolume", "Multi-Attach error"),),
        ),
        "MultiAttach", "ReadWriteMany",
    ),
    "storage cannot be mounted": (
        at(
            pods=LATE,
            events=(event("Pod/tiny-1-0-0", "FailedMount", "mount.nfs: Connection timed out"),),
        ),
        "MountFailed", "timed out",
    ),
    "claim does not exist": (
        at(EXISTING, claim_is_known=True), "ClaimMissing", "PersistentVolumeClaim shelf",
    ),
    "no storage class": (
        at(
            claim=UNCLASSED, claim_is_known=True,
            events=(event(OWN, "FailedBinding", "no persistent volumes available"),),
        ),
        "NoStorageClass", "storageClassName",
    ),
    "claim waits in silence": (at(claim=CLAIM, claim_is_known=True), "ClaimPending", "fast"),
    "storage class is misspelt": (
        at(
            claim=CLAIM, claim_is_known=True,
            events=(event(
                OWN, "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found'
            ),),
        ),
        "StorageClassMissing", "storage class fast does not exist",
    ),
    "provisioner fails": (
        at(
            claim=CLAIM, claim_is_known=True,
            events=(event(OWN, "ProvisioningFailed", "zone has no capacity left"),),
        ),
        "ProvisioningFailed", "no capacity",
    ),
    "no node has such devices": (
        at(pods=[unplaced(f"{NODES}5 Insufficient nvidia.com/gpu.")], nodes=[node(gpus="0")]),
        "TooLarge", "no node has any",
    ),
    "pod is larger than any node": (
        at(pods=[unplaced(f"{NODES}5 Insufficient nvidia.com/gpu.")], nodes=[node(gpus="4")]),
        "TooLarge", "workers.accelerator.count",
    ),
    "pod has more memory than any node": (
        at(pods=[unplaced(f"{NODES}5 Insufficient memory.")], nodes=[node(memory="8063912Ki")]),
        "TooLarge", "a pod asks for 8.0Gi memory, and the largest node has 7.7Gi",
    ),
    "pod has more cores than any node": (
        at(pods=[unplaced(f"{NODES}5 Insufficient cpu.")], nodes=[node(cpu="3920m")]),
        "TooLarge", "a pod asks for 4 cpu, and the largest node has 3.92",
    ),
    "busy nodes that are too small besides": (
        at(
            pods=[unplaced(f"{NODES}5 Insufficient cpu, 5 Insufficient nvidia.com/gpu.")],
            nodes=[node(gpus="4")],
        ),
        "TooLarge", "the largest node has 4",
    ),
    "devices are in use": (
        at(pods=[unplaced(f"{NODES}5 Insufficient nvidia.com/gpu.")], nodes=[node()]),
        "NoRoom", "5 nodes have too little nvidia.com/gpu free",
    ),
    "half of the gang has a place": (
        at(
            pods=[running(), unplaced(f"{NODES}4 Insufficient nvidia.com/gpu", 1)]
        ),
        "GangNoRoom", "1 of 2 pods have a place and hold it",
    ),
    "taint": (
        at(pods=[unplaced(f"{NODES}4 node(s) had untolerated taint {{team: vision}}, "
                          "1 Insufficient cpu. preemption: 0/5 nodes are available")]),
        "Taint", "team: vision",
    ),
    "nodes are cordoned": (
        at(pods=[unplaced(f"{NODES}5 node(s) were unschedulable.")]), "Cordoned", "uncordon",
    ),
    "nodes are not ready": (
        at(pods=[unplaced(
            f"{NODES}5 node(s) had untolerated taint {{node.kubernetes.io/not-ready: }}."
        )]),
        "NodesNotReady", "5 nodes",
    ),
    "volume is in another zone": (
        at(pods=[unplaced(f"{NODES}5 node(s) had volume node affinity conflict.")]),
        "VolumeElsewhere", "zone",
    ),
    "labels fit no node": (
        at(pods=[unplaced(f"{NODES}5 node(s) didn't match Pod's node affinity/selector.")]),
        "NodeSelector", "labels",
    ),
    "no nodes": (at(pods=[unplaced("no nodes available to schedule pods")]), "NoNodes", "add"),
    "node died": (
        at(training(), pods=[running()], nodes=[node(ready="Unknown")]),
        "NodeNotReady", "Kubelet stopped posting",
    ),
    "waits after a failure": (
        at(
            job(state(
                "Recovering", nextAttemptTime=before(-45), restarts={"total": 2},
                lastFailure={
                    "failureClass": "Crash", "reason": "Crash", "message": "rank 1 raised",
                    "attempt": 1, "time": before(15),
                },
            ))
        ),
        "Backoff", "45s",
    ),
    "lead does not answer": (
        at(
            job({
                "conditions": conditions(
                    Succeeded=("Unknown", "Unreachable"),
                    Progressing=("Unknown", "Unreachable", "no answer within 2 s"),
                ),
            }),
            pods=[running()],
        ),
        "Unreachable", "no answer within 2 s",
    ),
    "step does not advance": (
        at(
            job({
                "conditions": conditions(
                    Succeeded=("Unknown", "Stalled"),
                    Progressing=("False", "Stalled", "no step for 40 s"),
                ),
            }),
            pods=[running()], reports=[STALLED],
        ),
        "Stalled", "rank 0: data for 41s",
    ),
    "bad batches": (
        at(training(healthy=("False", "Skipping", "loss 9.1 is 8 deviations up"))),
        "Skipping", "8 deviations",
    ),
    "slow rank": (
        at(training(healthy=("False", "Straggler", "rank 3 in pod tiny-1-1-0"))),
        "Straggler", "rank 3",
    ),
    "disk is full": (
        at(training(checkpointed=("False", "StorageFull", "no space left"))),
        "StorageFull", "free space",
    ),
    "waits for data": (
        at(training(goodput={"share": "60%", "wallTime": "10m", "productive": "6m",
                             "dataWait": "4m"})),
        "SlowDataWait", "40% of the time waits for data",
    ),
    "saves too often": (
        at(training(goodput={"share": "70%", "wallTime": "10m", "productive": "7m",
                             "checkpoint": "3m"})),
        "SlowCheckpoint", "checkpoint.everySteps",
    ),
    "loss does not fall": (
        at(training(stability={"notice": "the loss has not fallen for 400 steps"})),
        "Notice", "has not fallen",
    ),
    "bad configuration": (
        at(failed("Configuration", "vocabSize 200000 is too large")), "Configuration", "vocabSize",
    ),
    "data cannot be read": (at(failed("Data", "file:///x matches no file")), "Data", "no file"),
    "out of memory": (
        at(failed("OutOfMemory", "its container was killed")), "OutOfMemory",
        "workers.resources.memory",
    ),
    "a rank crashed": (at(failed("Crash", "rank 1 raised")), "Crash", "train.py:10 step"),
    "a device broke": (at(failed("Hardware", "Xid 79")), "Hardware", "on node node-1"),
    "storage broke": (at(failed("Storage", "run directory is read-only")), "Storage", "volume"),
    "hang": (at(failed("Hang", "rank 0 said nothing")), "Hang", "rank 0"),
    "diverged": (
        at(job(state("Diverged", "9 skipped", "False", stability={"skippedSteps": 9}))),
        "Diverged", "learning rate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("staged", CASES)
def test_the_true_cause_is_named(staged: str) -> None:
    snapshot, cause, words = CASES[staged]
    found = why(snapshot)
    assert found.cause == cause, found
    assert words in " ".join([found.sentence, *found.evidence, found.fix])
    assert found.fix
    assert found.is_trouble


def test_the_docs_name_every_cause() -> None:
    text = DOCS.read_text()
    classes = {kind.value for kind in FailureClass}
    causes = {cause.removeprefix("Gang") for _, cause, _ in CASES.values()} - classes
    assert [cause for cause in sorted(causes) if f"`{cause}`" not in text] == []


@pytest.mark.parametrize(
    ("snapshot", "cause"),
    [
        (at(training(), pods=[running(0), running(1)]), "Well"),
        (at(job(state("Completed", "done", "True"))), "Completed"),
        (at(job(state("Preparing", "tokenised 3 of 9 MB"))), "Preparing"),
    ],
)
def test_nothing_is_wrong(snapshot: Snapshot, cause: str) -> None:
    found = why(snapshot)
    assert (found.cause, found.is_trouble) == (cause, False)


RUNS_SINCE = condition("Scheduled", "True", "Scheduled") | {"lastTransitionTime": before(7)}


@pytest.mark.parametrize(
    ("wall", "cause"), [("5m", "Well"), ("29m", "Well"), ("1h", "SlowStartup")]
)
def test_that_a_run_had_to_start_is_no_alarm_while_it_is_young(wall: str, cause: str) -> None:
    spent = {"share": "50%", "wallTime": wall, "startup": "12m"}
    assert why(at(training(goodput=spent), pods=[running(0), running(1)])).cause == cause


def early(reason: str, *more: Object, **status: Any) -> Object:
    found = state(reason, "importing torch", **status)
    return job(found | {"conditions": [*found["conditions"], *more]})


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (at(early("Starting", RUNS_SINCE), pods=[running(0)]), "torch (Starting, pods run for 7s)"),
        (at(early("Pending"), pods=[pod(age=12)]), "torch (Pending, pods exist for 12s)"),
        (at(early("Pending")), "torch (Pending for 5m)"),
        (at(early("Pending", firstRunTime=before(200))), "torch (Pending)"),
        (at(early("Suspending", RUNS_SINCE)), "torch (Suspending, pods run for 7s)"),
    ],
)
def test_a_start_is_counted_from_when_it_began(snapshot: Snapshot, words: str) -> None:
    """P4: the job of five minutes may have waited for room for four of them."""
    assert why(snapshot).sentence == f"importing {words}"


def test_no_cause_hides_behind_what_preemption_found() -> None:
    """The scheduler's sentence goes on for every node."""
    tail = "preemption: 0/5 nodes are available: 5 No preemption victims found for incoming pod."
    found = why(at(pods=[unplaced(f"{NODES}5 Insufficient cpu. {tail}")]))
    assert found.cause == "NoRoom"
    assert "victims" not in " ".join(found.evidence)
