"""Where a pod goes and who lets it: the job's pod template and queue, as parts of a pod.

Promise: what a person writes is laid beside what the operator says and never over it. All pods of
an attempt are alike but for their names, so a queue takes them for one group of one kind.
Trap avoided: a group of a queue that waits for ever for the pods of an attempt that is over. Each
attempt is a group of its own, which is over once all of its pods have ended, however they did.
"""

from typing import Any

from lmtraining_api import names as api
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.placement import Queue, Topology
from lmtraining_operator.plan import nodes
from lmtraining_operator.plan.model import Object

QUEUE_NAME = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
GROUP_NAME = "kueue.x-k8s.io/pod-group-name"
GROUP_TOTAL = "kueue.x-k8s.io/pod-group-total-count"
ROLE = "kueue.x-k8s.io/role-hash"
"""Which pods of a group are alike. Where it is not given, Kueue takes a digest of the pod's spec,
and a pod that keeps away from one node more is no member of the group."""
ROLE_NAME = "main"
"""As Kueue itself calls the only role of the groups that it makes."""
RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
"""\"false\": the group is over when its pods are, and holds no quota for a pod that may come."""


def labels(job: LMTrainingJob, attempt: int) -> dict[str, str]:
    """Those beside the operator's own."""
    queue = job.spec.queue
    return dict(job.spec.pod_template.labels) | (
        _queue_labels(job, queue, attempt) if queue else {}
    )


def annotations(job: LMTrainingJob) -> dict[str, str]:
    """Those beside the operator's own."""
    group = {
        GROUP_TOTAL: str(job.spec.workers.replicas),
        RETRIABLE: "false",
        ROLE: ROLE_NAME,
    }
    return dict(job.spec.pod_template.annotations) | (group if job.spec.queue else {})


def group_name(job_name: str, uid: str, attempt: int) -> str:
    """The pods of one attempt, as the queue knows them; Kueue's Workload has the same name. With
    the UID: the group of an earlier job of this name may still be there."""
    return f"{job_name}-{uid[:8]}-{attempt}"


def _queue_labels(job: LMTrainingJob, queue: Queue, attempt: int) -> dict[str, str]:
    priority = {QUEUE_PRIORITY: queue.priority_class} if queue.priority_class else {}
    group = group_name(job.metadata.name, job.metadata.uid, attempt)
    return {QUEUE_NAME: queue.name, GROUP_NAME: group} | priority


def spec(job: LMTrainingJob, avoided_nodes: tuple[str, ...]) -> Object:
    """Fields of the pod's spec that say where it goes and in whose name."""
    template = job.spec.pod_template
    found: dict[str, Any] = {
        "nodeSelector": dict(template.node_selector),
        "tolerations": _tolerations(job),
        "affinity": _affinity(job, avoided_nodes),
        "topologySpreadConstraints": _spread(job, template.topology),
        "priorityClassName": template.priority_class_name,
        "schedulerName": template.scheduler_name,
        "runtimeClassName": template.runtime_class_name,
        "imagePullSecrets": [{"name": name} for name in template.image_pull_secrets],
    }
    if template.host_network:
        found |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return {field: value for field, value in found.items() if value}


def _tolerations(job: LMTrainingJob) -> list[Object]:
    asked = job.spec.pod_template.tolerations
    written = [one.model_dump(by_alias=True, exclude_none=True) for one in asked]
    accelerator = job.spec.workers.accelerator
    if accelerator is None:
        return written
    # Nodes with accelerators usually carry the resource's name as a taint.
    own: Object = {"key": accelerator.resource, "operator": "Exists", "effect": "NoSchedule"}
    return [own, *written]


def _affinity(job: LMTrainingJob, avoided_nodes: tuple[str, ...]) -> Object:
    found: Object = nodes.affinity(avoided_nodes) if avoided_nodes else {}
    topology = job.spec.pod_template.topology
    if topology is not None and topology.policy == "Pack":
        # The first pod of a gang meets the demand for a pod like itself alone.
        term = {"labelSelector": _of_job(job), "topologyKey": topology.key}
        found |= {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return found


def _spread(job: LMTrainingJob, topology: Topology | None) -> list[Object]:
    if topology is None or topology.policy != "Spread":
        return []
    return [
        {
            "maxSkew": 1,
            "topologyKey": topology.key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": _of_job(job),
        }
    ]


def _of_job(job: LMTrainingJob) -> Object:
    return {"matchLabels": {api.LABEL_JOB_UID: job.metadata.uid}}
