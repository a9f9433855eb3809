"""What keeps the containers of the pods from running, apart from a place and a volume."""

import re

from lmtraining_api import ConditionType
from lmtraining_api.status import Scheduled
from lmtraining_cli.snapshot import Object, Pod, Snapshot
from lmtraining_cli.why.finding import Finding, lasting, shortened, words_of
from lmtraining_cli.wording import bytes_of

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
     "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"}
)  # fmt: skip
CONTAINER_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
)
START_SECONDS_MAX = 30.0
"""A placed pod whose containers have not started by then waits for something."""

_IMAGE_CAUSES = (
    (
        "ImageForbidden",
        re.compile(r"unauthorized|authentication required|denied|forbidden", re.I),
        "the registry lets nobody in without a password",
        "add an imagePullSecret for it to the service account of the pods "
        "(workers.serviceAccountName, else default)",
    ),
    (
        "ImageNotFound",
        re.compile(r"manifest unknown|name unknown|not found", re.I),
        "the registry has no such image",
        "push the image, or correct workers.image in a new job",
    ),
    (
        "RegistryUnreachable",
        re.compile(r"no such host|refused|timeout|no route to host|x509|lookup", re.I),
        "the node cannot reach the registry",
        "make the registry reachable from the node, or correct workers.image in a new job",
    ),
    (
        "NodeDiskFull",
        re.compile(r"no space left on device", re.I),
        "the node's disk is full",
        "free disk space on the node",
    ),
    (
        "ImageNameInvalid",
        re.compile(r"InvalidImageName|couldn't parse image|invalid reference", re.I),
        "this is not the name of an image",
        "correct workers.image in a new job",
    ),
)
_REFUSALS = (
    (
        "PodSecurity",
        re.compile(r"violates PodSecurity"),
        "the namespace's pod security level refuses them",
        "give the namespace the level restricted (our pods pass it) or a lower one, and remove "
        "what another webhook adds to the pods",
    ),
    (
        "LimitRange",
        re.compile(r"(maximum|minimum) \S+ usage per|must be less than or equal to \S+ limit"),
        "a LimitRange of the namespace refuses them",
        "ask for less in workers.resources of a new job, or change the LimitRange",
    ),
    (
        "Webhook",
        re.compile(r'admission webhook "[^"]+"|failed calling webhook'),
        "an admission webhook of the cluster refuses them",
        "meet the rule it states, or ask who runs the webhook for an exception",
    ),
    (
        "OperatorForbidden",
        re.compile(r"system:serviceaccount:\S+ cannot|is forbidden: User"),
        "the operator lacks the right to make them",
        "upgrade the chart (rbac.create), or give the operator's service account that right",
    ),
)


def refused(snapshot: Snapshot) -> Finding | None:
    """The API server lets an object of the job not be made."""
    if snapshot.reason(ConditionType.SCHEDULED) == Scheduled.QUOTA_EXCEEDED:
        return _over_quota(snapshot)
    message = snapshot.message(ConditionType.SCHEDULED)
    if snapshot.reason(ConditionType.SCHEDULED) == Scheduled.NAME_TAKEN:
        return Finding(
            cause="NameTaken",
            sentence=f"an object of that name is somebody else's: {message}",
            evidence=["condition Scheduled is False (NameTaken)"],
            fix="delete that object, or give the job another name",
        )
    if snapshot.reason(ConditionType.SCHEDULED) != Scheduled.CREATE_REFUSED:
        return None
    for cause, pattern, meaning, fix in _REFUSALS:
        if pattern.search(message):
            return Finding(cause=cause, sentence=meaning, evidence=[shortened(message)], fix=fix)
    return Finding(
        cause="CreateRefused",
        sentence=f"the API server refuses an object of the job: {shortened(message)}",
        evidence=["condition Scheduled is False (CreateRefused)"],
        fix="mend what the sentence names; the operator tries again by itself",
    )


def _over_quota(snapshot: Snapshot) -> Finding:
    message = snapshot.message(ConditionType.SCHEDULED)
    name = re.search(r"exceeded quota: ([\w.-]+)", message)
    which = f"ResourceQuota {name[1]}" if name else "a ResourceQuota"
    full = [line for quota in snapshot.quotas or () for line in _full(quota)]
    return Finding(
        cause="QuotaExceeded",
        sentence=f"{which} of namespace {snapshot.namespace} has no room for the pods",
        evidence=[shortened(message), *full],
        fix="raise the quota, end something that uses it, or ask for less in workers of a new job; "
        "the operator tries again by itself",
    )


def _full(quota: Object) -> list[str]:
    """What is used up to nine tenths or more."""
    name, status = quota["metadata"]["name"], quota.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    return [
        f"quota {name}: {used[resource]} of {limit} {resource} used"
        for resource, limit in sorted(hard.items())
        if resource in used and bytes_of(str(used[resource])) >= 0.9 * bytes_of(str(limit))
    ]


def gated(snapshot: Snapshot) -> Finding | None:
    """A queue holds the pods back."""
    held = [pod for pod in snapshot.pods if pod.gates]
    if not held:
        return None
    gate = held[0].gates[0]
    return Finding(
        cause="Queued",
        sentence=f"{len(held)} of {snapshot.replicas} pods wait for {gate} to let them go",
        evidence=[
            f"pod {held[0].name} has the scheduling gate {gate}",
            *filter(None, [shortened(snapshot.message(ConditionType.SCHEDULED))]),
        ],
        fix="wait for the queue, or look at its state (Kueue: kubectl get workloads)",
    )


def image(snapshot: Snapshot) -> Finding | None:
    """The trainer image cannot be pulled."""
    pod = next((pod for pod in snapshot.pods if pod.waiting[0] in IMAGE_REASONS), None)
    if pod is None:
        return None
    reason, message = pod.waiting
    failed = [
        event for event in snapshot.events_about(f"Pod/{pod.name}") if event.reason == "Failed"
    ]
    words = " ".join([reason, message, *(event.message for event in failed)])
    name = _image_of(pod)
    evidence = [f"pod {pod.name}: {reason}: {shortened(message)}", *map(words_of, failed[:2])]
    for cause, pattern, meaning, fix in _IMAGE_CAUSES:
        if pattern.search(words):
            said = f"image {name} cannot be pulled: {meaning}"
            return Finding(cause=cause, sentence=said, evidence=evidence, fix=fix)
    return Finding(
        cause="ImagePullFailed",
        sentence=f"image {name} cannot be pulled",
        evidence=evidence,
        fix="correct workers.image in a new job, or make the image available to the node",
    )


def container(snapshot: Snapshot) -> Finding | None:
    """The kubelet cannot start the container."""
    pod = next((pod for pod in snapshot.pods if pod.waiting[0] in CONTAINER_REASONS), None)
    if pod is None:
        return None
    reason, message = pod.waiting
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    evidence = [f"pod {pod.name}: {reason}: {shortened(message)}"]
    if missing:
        return Finding(
            cause="MissingObject",
            sentence=f"{missing[1]} {missing[2]} does not exist, and the pods need it",
            evidence=evidence,
            fix=f"create the {missing[1]} {missing[2]} in namespace {snapshot.namespace}",
        )
    if re.search(r"executable file not found|no such file or directory", message):
        return Finding(
            cause="NotATrainerImage",
            sentence=f"image {_image_of(pod)} has no such command: it is no trainer image",
            evidence=evidence,
            fix="correct workers.image in a new job, or leave it out",
        )
    return Finding(
        cause="ContainerNotCreated",
        sentence=f"the kubelet cannot start the container: {shortened(message)}",
        evidence=evidence,
        fix="correct workers.image in a new job, or mend what the sentence names on the node",
    )


def starting(snapshot: Snapshot) -> Finding | None:
    """Placed, and still without a container."""
    late = [pod for pod in snapshot.pods if pod.node and not pod.has_started]
    late = [pod for pod in late if _age(snapshot, pod) > START_SECONDS_MAX]
    if not late:
        return None
    pod = late[0]
    events = snapshot.events_about(f"Pod/{pod.name}")
    seconds = _age(snapshot, pod)
    newest = next((event for event in events if event.reason in ("Pulling", "Pulled")), None)
    if newest is not None and newest.reason == "Pulling":
        return Finding(
            cause="ImagePulling",
            sentence=f"node {pod.node} pulls image {_image_of(pod)} {lasting(seconds)}",
            evidence=[words_of(newest)],
            fix="wait (the image has several GB), or put it on the nodes beforehand",
        )
    return Finding(
        cause="ContainerCreating",
        sentence=f"pod {pod.name} is on node {pod.node} {lasting(seconds)} and has not started",
        evidence=[words_of(event) for event in events[:3]] or ["the kubelet says nothing about it"],
        fix=f"look at the node: kubectl describe node {pod.node}",
    )


def _age(snapshot: Snapshot, pod: Pod) -> float:
    return (snapshot.now - (pod.created or snapshot.now)).total_seconds()


def _image_of(pod: Pod) -> str:
    containers = pod.body.get("spec", {}).get("containers") or [{}]
    return str(containers[0].get("image", ""))
