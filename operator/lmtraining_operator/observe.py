"""What is there, as the plan wants to see it.

Promise: everything is read from the API server now; a child counts as the job's only by the owner's
UID. Trap avoided: names outlive objects, so a name proves nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from lmtraining_api import names as api
from lmtraining_api.status import LMTrainingJobStatus
from lmtraining_operator.gateway import FORBIDDEN, ApiError, Gateway, Object
from lmtraining_operator.plan import (
    ContainerExit,
    Disruption,
    Leftover,
    NodeCondition,
    Observed,
    ObservedClaim,
    ObservedNode,
    ObservedPod,
    ObservedReport,
    PodWarning,
    Refusal,
    groups,
    placement,
)
from lmtraining_operator.plan import names as children
from lmtraining_operator.plan.acceptance import may_have_rivals
from lmtraining_operator.plan.attempts import has_all_pods, is_kept, may_make
from lmtraining_operator.plan.ending import has_kept_long_enough
from lmtraining_operator.plan.evidence import is_out_of_service
from lmtraining_operator.plan.manifests import CONTAINER

OF_QUEUE = "TerminationTarget"
DISRUPTIONS = ("DisruptionTarget", OF_QUEUE)
"""Conditions of a pod that somebody other than the job wants gone: Kubernetes', and Kueue's."""
NODES_MAX = 8
"""Nodes that are read in one pass."""
NODE_MESSAGE_LENGTH_MAX = 1024
ADMISSION = ("QuotaReserved", "Admitted")
"""Conditions of Kueue's Workload, in the order in which they become true."""
WARNINGS_PODS_MAX = 3
"""Pods whose events are read: the others wait for the same."""
WARNINGS_AFTER_SECONDS = 3.0
"""A pod that starts normally is not asked for its events."""
WARNINGS_PER_OBJECT_MAX = 10
WARNING_AGE_SECONDS_MAX = 150.0
"""An older one has passed: kubelet and provisioner repeat theirs every two minutes or sooner."""


async def observe(
    gateway: Gateway,
    job: Object,
    status: LMTrainingJobStatus,
    *,
    report: ObservedReport,
    refusals: Mapping[str, Refusal],
    now: datetime,
    reads_nodes: bool,
) -> Observed:
    """The world as far as this job is concerned."""
    metadata = job["metadata"]
    found = await _pods(gateway, metadata["namespace"], metadata["name"])
    pods = tuple(pod_view(pod) for pod in found if owned_by(pod, metadata["uid"]))
    nodes = await _nodes(gateway, status, pods) if reads_nodes else {}
    pods = tuple(replace(p, is_on_dead_node=is_out_of_service(nodes.get(p.node))) for p in pods)
    earlier = [pod_view(pod) for pod in found if _is_of_a_job(pod, other_than=metadata["uid"])]
    past = (*groups.of_the_past(job, status, pods), *earlier)
    common: dict[str, Any] = {
        "pods": pods,
        "nodes": nodes,
        "report": report,
        "refusals": dict(refusals),
        "abandoned": await _workloads_of_abandoned(gateway, metadata["namespace"], past),
    }
    if has_kept_long_enough(job, status, now):
        return Observed(**common, leftovers=await _leftovers(gateway, job))
    if not may_make(job, status, pods):
        return Observed(**common)
    namespace = metadata["namespace"]
    claim_name, *_ = children.storage_of(job)
    is_made = has_all_pods(job, status, pods)  # after all that they need
    claim, config_map, policy, warnings, queue_message, others = await asyncio.gather(
        _claim(gateway, namespace, claim_name, now),
        _own(gateway, job, "ConfigMap", children.config_map_name(metadata["name"]), is_made),
        _own(gateway, job, "NetworkPolicy", metadata["name"], is_made),
        _warnings(gateway, namespace, pods, now),
        _queue_message(gateway, job, pods),
        _other_jobs(gateway, job, status),
    )
    return Observed(
        **common,
        claim=claim,
        config_map=config_map,
        network_policy=policy,
        warnings=warnings,
        queue_message=queue_message,
        other_jobs=others,
    )


async def _own(gateway: Gateway, job: Object, kind: str, name: str, is_made: bool) -> bool:
    """Whether the job has that child; asked only where nothing tells."""
    if is_made:
        return True
    metadata = job["metadata"]
    return owned_by(await gateway.get(kind, metadata["namespace"], name), metadata["uid"])


def owned_by(found: Object | None, uid: str) -> bool:
    """Whether the object names that UID as its owner."""
    references = (found or {}).get("metadata", {}).get("ownerReferences") or []
    return any(reference.get("uid") == uid for reference in references)


async def left_in_queues(gateway: Gateway, namespace: str, name: str) -> tuple[Leftover, ...]:
    """What jobs of that name have left in queues, where there is none any more."""
    found = await _pods(gateway, namespace, name)
    pods = [pod_view(pod) for pod in found if _is_of_a_job(pod, other_than="")]
    return await _workloads_of_abandoned(gateway, namespace, pods)


async def _workloads_of_abandoned(
    gateway: Gateway, namespace: str, pods: Iterable[ObservedPod]
) -> tuple[Leftover, ...]:
    names = groups.abandoned(pods)
    found = await asyncio.gather(*(_workload(gateway, namespace, name) for name in names))
    return tuple(
        Leftover(kind="Workload", name=name, uid=one["metadata"]["uid"])
        for name, one in zip(names, found, strict=True)
        if one is not None
    )


async def _pods(gateway: Gateway, namespace: str, name: str) -> list[Object]:
    """All that carry the name of the job as their label, whoever owns them."""
    return await gateway.list_objects("Pod", namespace, labels=f"{api.LABEL_JOB_NAME}={name}")


def _is_of_a_job(pod: Object, *, other_than: str) -> bool:
    owners = pod["metadata"].get("ownerReferences") or []
    return any(one.get("kind") == api.KIND and one.get("uid") != other_than for one in owners)


async def _nodes(
    gateway: Gateway, status: LMTrainingJobStatus, pods: tuple[ObservedPod, ...]
) -> dict[str, ObservedNode]:
    """The nodes of pods that have failed or are to go, by name, and where one has ended by itself
    those of the others, of which one may be the cause; none where nobody may read them."""
    names = nodes_asked_for(status, pods)
    found = await asyncio.gather(*(_node(gateway, name) for name in names))
    return {node.name: node for node in found if node is not None}


def nodes_asked_for(status: LMTrainingJobStatus, pods: tuple[ObservedPod, ...]) -> list[str]:
    """Names of the nodes that may tell why a pod has failed."""
    if status.is_terminal:
        return []
    placed = [pod for pod in pods if pod.node and not is_kept(pod, status)]
    ill = [pod for pod in placed if pod.is_deleting or has_failed(pod)]
    others = placed if any(not pod.is_deleting for pod in ill) else []
    return list(dict.fromkeys(pod.node for pod in (*ill, *others)))[:NODES_MAX]


def has_failed(pod: ObservedPod) -> bool:
    return pod.phase == "Failed" or (pod.exit is not None and pod.exit.code != 0)


async def _node(gateway: Gateway, name: str) -> ObservedNode | None:
    try:
        found = await gateway.get("Node", "", name)
    except ApiError as error:
        if error.code == FORBIDDEN:
            return None
        raise
    return node_view(found) if found is not None else None


def node_view(found: Object) -> ObservedNode:
    """One node; what is absent is empty."""
    conditions = found.get("status", {}).get("conditions") or []
    taints = found.get("spec", {}).get("taints") or []
    taints = sorted(taints, key=lambda taint: taint.get("effect") == "NoExecute")
    return ObservedNode(
        name=found["metadata"]["name"],
        conditions=tuple(
            NodeCondition(type=c["type"], status=c["status"], message=_short(c.get("message")))
            for c in conditions
        ),
        taints={taint["key"]: taint.get("effect", "") for taint in taints},
    )


def _short(message: str | None) -> str:
    return (message or "")[:NODE_MESSAGE_LENGTH_MAX]


async def _leftovers(gateway: Gateway, job: Object) -> tuple[Leftover, ...]:
    """The job's own ConfigMap and NetworkPolicy, where they are still there."""
    metadata = job["metadata"]
    names = {
        "ConfigMap": children.config_map_name(metadata["name"]),
        "NetworkPolicy": metadata["name"],
    }
    found = await asyncio.gather(
        *(gateway.get(kind, metadata["namespace"], name) for kind, name in names.items())
    )
    return tuple(
        Leftover(kind=kind, name=name, uid=one["metadata"]["uid"])
        for (kind, name), one in zip(names.items(), found, strict=True)
        if one is not None and owned_by(one, metadata["uid"])
    )


async def _warnings(
    gateway: Gateway, namespace: str, pods: tuple[ObservedPod, ...], now: datetime
) -> tuple[PodWarning, ...]:
    late = [pod for pod in pods if _is_late(pod, now)][:WARNINGS_PODS_MAX]
    lists = await asyncio.gather(
        *(warning_events(gateway, namespace, pod.uid, now) for pod in late)
    )
    return tuple(
        PodWarning(
            pod=pod.name,
            reason=str(event.get("reason", "")),
            message=str(event.get("message", "")),
        )
        for pod, events in zip(late, lists, strict=True)
        for event in events
    )


async def _queue_message(gateway: Gateway, job: Object, pods: tuple[ObservedPod, ...]) -> str:
    """What Kueue says of the group that it holds; empty where it says nothing."""
    held = next((pod for pod in pods if not pod.node), None)
    if held is None or not job["spec"].get("queue"):
        return ""
    metadata = job["metadata"]
    group = placement.group_name(metadata["name"], metadata["uid"], held.attempt)
    return queue_message(await _workload(gateway, metadata["namespace"], group) or {})


async def _workload(gateway: Gateway, namespace: str, group: str) -> Object | None:
    """What Kueue has of a group; None where there is no Kueue, or we may not ask it: roles that
    somebody wrote for an older operator do not say so."""
    try:
        return await gateway.get("Workload", namespace, group)
    except ApiError as error:
        if error.code != FORBIDDEN:
            raise
        return None


def queue_message(workload: Object) -> str:
    """Why it has no quota yet, or why it may not use it yet."""
    conditions = (_condition(workload.get("status", {}), kind, "False") for kind in ADMISSION)
    return next((str(one.get("message", "")) for one in conditions if one is not None), "")


async def _claim(
    gateway: Gateway, namespace: str, name: str, now: datetime
) -> ObservedClaim | None:
    """The claim and, while it is not bound, why not; none for a run in an object store."""
    if not name:
        return None
    found = await gateway.get("PersistentVolumeClaim", namespace, name)
    if found is None:
        return None
    view = claim_view(found)
    if view.phase != "Pending":
        return view
    events = await warning_events(gateway, namespace, found["metadata"]["uid"], now)
    return replace(view, warning=str(events[0].get("message", "")) if events else "")


async def warning_events(gateway: Gateway, namespace: str, uid: str, now: datetime) -> list[Object]:
    """The Warning events about an object that may still hold, newest first."""
    found = await gateway.list_objects(
        "Event", namespace, fields=f"involvedObject.uid={uid},type=Warning"
    )
    oldest = now - timedelta(seconds=WARNING_AGE_SECONDS_MAX)
    recent = [event for event in found if event_time(event, now) >= oldest]
    recent.sort(key=lambda event: event_time(event, now), reverse=True)
    return recent[:WARNINGS_PER_OBJECT_MAX]


def event_time(event: Object, now: datetime) -> datetime:
    """When it happened last; an event that does not say is taken for new."""
    series = event.get("series") or {}
    text = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return moment(text) or now


def _is_late(pod: ObservedPod, now: datetime) -> bool:
    """Placed some time ago, and still without a container."""
    if pod.phase != "Pending" or not pod.node or pod.created_at is None:
        return False
    return now - pod.created_at > timedelta(seconds=WARNINGS_AFTER_SECONDS)


async def _other_jobs(
    gateway: Gateway, job: Object, status: LMTrainingJobStatus
) -> tuple[Object, ...]:
    if not may_have_rivals(job, status):
        return ()
    metadata = job["metadata"]
    jobs = await gateway.list_objects(api.KIND, metadata["namespace"])
    return tuple(other for other in jobs if other["metadata"]["uid"] != metadata["uid"])


def claim_view(found: Object) -> ObservedClaim:
    metadata, spec, status = found["metadata"], found.get("spec", {}), found.get("status", {})
    requests = (spec.get("resources") or {}).get("requests") or {}
    return ObservedClaim(
        name=metadata["name"],
        phase=status.get("phase", "Pending"),
        access_modes=tuple(spec.get("accessModes") or ()),
        size=str((status.get("capacity") or requests).get("storage", "")),
        is_deleting="deletionTimestamp" in metadata,
        made_for_job=(metadata.get("labels") or {}).get(api.LABEL_JOB_NAME, ""),
    )


def pod_view(found: Object) -> ObservedPod:
    """One pod; what is absent is empty."""
    metadata, status = found["metadata"], found.get("status", {})
    labels = metadata.get("labels") or {}
    annotations = metadata.get("annotations") or {}
    waiting = _container_state(status).get("waiting") or {}
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=_number(labels.get(api.LABEL_ATTEMPT)),
        replica=_number(labels.get(api.LABEL_REPLICA)),
        phase=status.get("phase", "Pending"),
        address=status.get("podIP", ""),
        node=found.get("spec", {}).get("nodeName", ""),
        is_deleting="deletionTimestamp" in metadata,
        is_held=bool(metadata.get("finalizers")),
        grace_seconds=int(metadata.get("deletionGracePeriodSeconds") or 0),
        group=labels.get(placement.GROUP_NAME, ""),
        role=annotations.get(placement.ROLE, ""),
        intent=annotations.get(api.ANNOTATION_INTENT, ""),
        gates=tuple(one["name"] for one in found.get("spec", {}).get("schedulingGates") or ()),
        unschedulable_message=_unschedulable(status),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit=_exit(_container_state(status).get("terminated")),
        disruption=_disruption(status),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        created_at=moment(metadata.get("creationTimestamp")),
    )


def _container_state(status: Object) -> Object:
    """State of our container; a sidecar that somebody injects has another name."""
    containers: list[Object] = status.get("containerStatuses") or []
    ours = next((one for one in containers if one.get("name") == CONTAINER), {})
    return ours.get("state") or {}


def _exit(terminated: Object | None) -> ContainerExit | None:
    if not terminated:
        return None
    return ContainerExit(
        code=int(terminated.get("exitCode", 0)),
        reason=terminated.get("reason", ""),
        termination_message=terminated.get("message", ""),
        finished_at=moment(terminated.get("finishedAt")),
    )


def _condition(status: Object, kind: str, value: str) -> Object | None:
    conditions: list[Object] = status.get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == value), None)


def _disruption(status: Object) -> Disruption | None:
    """By Kubernetes itself (preempted, drained, evicted), or by a queue that wants its quota."""
    conditions = (_condition(status, kind, "True") for kind in DISRUPTIONS)
    condition = next((one for one in conditions if one is not None), None)
    if condition is None:
        return None
    return Disruption(
        reason=condition.get("reason", "Disrupted"),
        message=condition.get("message", ""),
        since=moment(condition.get("lastTransitionTime")),
        takes_all=condition["type"] == OF_QUEUE,
    )


def _unschedulable(status: Object) -> str:
    condition = _condition(status, "PodScheduled", "False")
    if condition is None or condition.get("reason") != "Unschedulable":
        return ""
    return str(condition.get("message") or "unschedulable")


def _number(label: str | None) -> int:
    return int(label) if label is not None and label.isdigit() else -1


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
