"""What the plan is given and what it gives back: frozen values, nothing else.

Promise: everything that a decision depends on is in these values, so a decision can be replayed.
Trap avoided: a view of the world that changes while it is judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from lmtraining_api.records import TrainerReport
from lmtraining_api.status import LMTrainingJobStatus

#: A Kubernetes object as JSON.
Object = dict[str, Any]

FORBIDDEN = 403
GANG_INCOMPLETE = "GangIncomplete"
"""Reason of an attempt that was given up because some of its pods found no place."""
TERMINAL_PHASES = frozenset({"Succeeded", "Failed"})
PROMETHEUS: Object = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}
"""The pods of any Prometheus that carries the usual label, as a peer of a NetworkPolicy."""
HARDWARE_FAULTS = frozenset(
    {
        # NVSentinel
        "GpuInforomWatch",
        "GpuMemWatch",
        "GpuNvlinkWatch",
        "GpuPcieWatch",
        "GpuPowerWatch",
        "SysLogsGPUFallenOff",
        "SysLogsSXIDError",
        "SysLogsXIDError",
        "nvidia.com/gpu-nvlink-error",
        "nvidia.com/gpu-xid-error",
        # node-problem-detector, alone and as AKS runs it
        "GPUMissing",
        "IBLinkFlapping",
        "NVLinkStatusInactive",
        "ReadonlyFilesystem",
        "XIDErrors",
        # the node monitoring agent of EKS
        "AcceleratedHardwareReady",
    }
)
"""Conditions and taints by which the agents that watch over nodes tell of broken hardware."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What jobs may use; nothing named: anything."""

    images: tuple[str, ...] = ()
    """Starts of workers.image."""
    uris: tuple[str, ...] = ()
    """Starts of the places that data is read from and checkpoints are written to."""
    service_accounts: tuple[str, ...] = ()
    """Names for workers.serviceAccountName."""
    host_network: bool = False
    """Whether podTemplate.hostNetwork may be true; here nothing named is nothing allowed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What this installation of the operator adds to every job."""

    trainer_image: str
    """Image of a job that names none."""
    allowed: Allowed = Allowed()
    metrics_readers: tuple[Object, ...] = (PROMETHEUS,)
    """Who may scrape the pods that train, as peers of a NetworkPolicy."""
    reads_nodes: bool = False
    """Whether nodes of pods that fail are read, which needs a right of its own."""
    hardware_faults: frozenset[str] = HARDWARE_FAULTS
    """Types of conditions, and keys of taints, of a node whose hardware is at fault."""


@dataclass(frozen=True, kw_only=True)
class NodeCondition:
    """One condition of a node."""

    type: str
    status: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ObservedNode:
    """What a node says of itself, and others of it."""

    name: str
    conditions: tuple[NodeCondition, ...] = ()
    taints: Mapping[str, str] = field(default_factory=dict)
    """Effect by key; of two with one key, NoExecute."""


@dataclass(frozen=True, kw_only=True)
class ContainerExit:
    """How the trainer container ended, as the kubelet says."""

    code: int
    reason: str = ""
    """The kubelet's word: Completed, Error, OOMKilled, StartError."""
    termination_message: str = ""
    """Content of the termination log: an ExitRecord, or anything at all."""
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Disruption:
    """Somebody other than the job wants the pod gone (condition DisruptionTarget, or that of a
    queue)."""

    reason: str
    message: str = ""
    since: datetime | None = None
    takes_all: bool = False
    """True when a queue wants the quota of the whole group: the other pods are next."""


@dataclass(frozen=True, kw_only=True)
class ObservedPod:
    """One pod of this job UID."""

    name: str
    uid: str
    attempt: int
    replica: int
    phase: str = "Pending"
    address: str = ""
    node: str = ""
    is_on_dead_node: bool = False
    """Whether a person or a controller says by a taint that nothing runs on its node any more."""
    is_deleting: bool = False
    is_held: bool = False
    """True when a finalizer keeps it, such as a queue's: it stays after it has been deleted."""
    grace_seconds: int = 0
    """Of a pod that is being deleted: what it was given to stop; 0 when it was forced."""
    deleting_seconds: float = 0.0
    """Of a pod that is being deleted: how long this operator has watched that, by a clock that
    nobody sets."""
    watched_seconds: float = 0.0
    """How long this operator has seen it in its lists, by the same clock."""
    group: str = ""
    """The group of a queue that it is a member of."""
    role: str = ""
    """Which pods of its group are like it, as the queue knows them."""
    intent: str = ""
    """Content of the intent annotation."""
    gates: tuple[str, ...] = ()
    """Who must let it go before the scheduler looks at it, such as a queue."""
    unschedulable_message: str = ""
    """Why the scheduler has not placed it; empty when it has, or has not tried."""
    waiting_reason: str = ""
    """Why the container does not run, in the kubelet's word."""
    waiting_message: str = ""
    exit: ContainerExit | None = None
    disruption: Disruption | None = None
    reason: str = ""
    """status.reason: the kubelet's word for the end of the whole pod (Evicted, NodeShutdown)."""
    message: str = ""
    created_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        """True when no container of it runs or ever will."""
        return self.phase in TERMINAL_PHASES

    @property
    def has_log(self) -> bool:
        """True when its trainer has ended, as the kubelet says, and nobody takes the pod away: it
        cannot write any more, and what it said can be read."""
        return self.is_terminal and self.exit is not None and not self.is_deleting

    @property
    def is_gone(self) -> bool:
        """True when only its name is left, which a finalizer keeps: without one it would not be
        seen any more."""
        has_ended = self.is_terminal or self.grace_seconds == 0
        return self.is_held and self.is_deleting and has_ended

    @property
    def has_started(self) -> bool:
        """True when its container runs at an address."""
        is_up = self.phase == "Running" and self.exit is None
        return is_up and bool(self.address) and not self.is_deleting


@dataclass(frozen=True, kw_only=True)
class ObservedClaim:
    """The PersistentVolumeClaim of the job."""

    name: str
    phase: str = "Pending"
    access_modes: tuple[str, ...] = ()
    size: str = ""
    """Its capacity, or what it asks for while it has none."""
    is_deleting: bool = False
    made_for_job: str = ""
    """Value of the job-name label; empty when a person made it."""
    warning: str = ""
    """Why it is not bound, in the words of its newest Warning event."""


@dataclass(frozen=True, kw_only=True)
class ObservedReport:
    """What pulling the lead's report has brought so far, for one attempt."""

    report: TrainerReport | None = None
    """The newest good one; it names this job and this attempt."""
    address: str = ""
    """Where it was pulled; the lead may have been replaced since."""
    error: str = ""
    """Why the newest pull failed; empty when it did not."""
    failing_since: datetime | None = None
    """When the first of the pulls failed that have failed in a row."""


@dataclass(frozen=True, kw_only=True)
class PodWarning:
    """A Warning event about a pod that has not started."""

    pod: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An object that the API server would not let us create."""

    kind: str
    name: str
    code: int
    message: str
    count: int
    """How often in a row."""
    time: datetime
    """When it was refused last."""
    is_leaving: bool = False
    """True when the object that has the name goes by itself."""

    @property
    def key(self) -> str:
        """As `Create.key` spells it."""
        return f"{self.kind}/{self.name}"

    @property
    def is_over_quota(self) -> bool:
        return self.code == FORBIDDEN and "exceeded quota" in self.message

    @property
    def counts_ended_pods(self) -> bool:
        """True when a quota is full that counts objects, and so pods that have ended too."""
        return self.is_over_quota and "count/pods" in self.message


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """An object that a job leaves behind, other than a pod."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The world as far as one job is concerned, at one moment."""

    pods: tuple[ObservedPod, ...] = ()
    config_map: bool = False
    network_policy: bool = False
    nodes: Mapping[str, ObservedNode] = field(default_factory=dict)
    """By name: those of pods that have failed, where they may be read."""
    claim: ObservedClaim | None = None
    report: ObservedReport = ObservedReport()
    warnings: tuple[PodWarning, ...] = ()
    queue_message: str = ""
    """Why the queue holds the pods back, in its own words; empty where it does not say."""
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    """By kind/name, as `Create.key` spells it."""
    other_jobs: tuple[Object, ...] = ()
    """The other jobs of the namespace, when this one names a checkpoint.path."""
    abandoned: tuple[Leftover, ...] = ()
    """Workloads of groups of a queue that nobody fills any more, of this job and of earlier ones of
    its name."""
    leftovers: tuple[Leftover, ...] = ()
    """What is to go with the pods, once nothing of an ended job is kept any longer."""

    @property
    def live_pods(self) -> tuple[ObservedPod, ...]:
        """Pods in which a container may run."""
        return tuple(pod for pod in self.pods if not pod.is_terminal)

    @property
    def training_pods(self) -> tuple[ObservedPod, ...]:
        """Pods whose trainer may run. One that has ended is left alone for its log, though the
        kubelet needs a moment to call its pod ended too."""
        return tuple(pod for pod in self.live_pods if pod.exit is None)


@dataclass(frozen=True, kw_only=True)
class Create:
    """Make this object. It is done when an object of that name belongs to the same job."""

    body: Object

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class DeletePod:
    """Delete exactly this pod (name and UID), with this much time to stop."""

    name: str
    uid: str
    grace_seconds: int | None
    """None: the time that the pod was made with, and so has been told of."""


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete exactly this object, which is no pod."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class SetIntent:
    """Write the intent annotation of exactly this pod."""

    name: str
    uid: str
    intent: str


@dataclass(frozen=True, kw_only=True)
class PublishEvent:
    """Tell a person about a transition, once per (reason, attempt, subject)."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int
    subject: str = ""
    """Which of several in one attempt: a node, a pod, a request, a round."""


Action = Create | DeletePod | Delete | SetIntent | PublishEvent


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do now. The status is written before the first action (attempt before its pods,
    failure before the delete that removes its evidence)."""

    status: LMTrainingJobStatus
    actions: tuple[Action, ...] = ()
    report_from: str = ""
    """Address of the pod whose report says how training goes; empty when none can."""
    look_again_seconds: float
    """When time alone may change the plan."""
    is_done: bool = False
    """True when nothing about this job can need us again."""
