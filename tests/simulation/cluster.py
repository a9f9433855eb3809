"""Scheduler, kubelets, node controller and the collectors of garbage.

Promise: each acts on what the API server says, a little later, and tells it what became of it, a
little later again; a kubelet that is cut off does neither, while its containers run on.
Trap avoided: pods whose end is seen at once and whole. A container ends, then its state is written,
then the phase; a pod that is being deleted goes only after that.
"""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Protocol

from lmtraining_api import names as api
from lmtraining_operator.gateway import Object
from tests.simulation.clock import stamp
from tests.simulation.runs import Container, Place
from tests.simulation.server import TERMINAL, ApiServer, Change, attempt_of, owner_uid, replica_of
from tests.simulation.trainers import Trainers

SCHEDULE_SECONDS = (0.02, 0.2)
RESCHEDULE_SECONDS = 2.0
START_SECONDS = (0.2, 1.2)
LOST_BEFORE_START_SECONDS = 1.0
STATUS_SECONDS = (0.01, 0.4)
INTENT_SECONDS = (0.1, 0.5)
COLLECT_SECONDS = (0.1, 3.0)
KILL_SECONDS = (0.05, 1.0)
"""Until a kubelet ends a container whose pod is gone."""
PODS_PER_NODE = 3
REMOVED_SECONDS = 20.0
"""From the taint out-of-service until the node is removed and its pods are collected: an operator
that sees the taint does not wait for that."""
NO: Mapping[str, str] = {}
UNREACHABLE = {"node.kubernetes.io/unreachable": "NoExecute"}
KUBELET, SCHEDULER, NODES = "kubelet", "scheduler", "node controller"


class World(Protocol):
    """What the cluster needs of the world."""

    server: ApiServer
    trainers: Trainers

    def now(self) -> float: ...
    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None: ...
    def tell(self, text: str) -> None: ...


class Cluster:
    """Everything between the API server and the containers."""

    def __init__(self, world: World, random: Random, *, detect_seconds: float) -> None:
        self._world = world
        self._random = random
        self._detect_seconds = detect_seconds
        """From the loss of a node until its pods are told to go."""
        self.nodes = [Place(f"node-{number}") for number in range(1, 4)]
        self._started: set[str] = set()
        """UIDs of the pods whose container was begun."""
        for node in self.nodes:
            self.tell_of(node)
        world.server.listeners.append(self._changed)

    # --- what happens in the API server --------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.kind == "Pod":
            uid = change.object["metadata"]["uid"]
            if change.type == "ADDED":
                self._after(SCHEDULE_SECONDS, self._schedule, uid)
            elif change.type == "DELETED":
                self._forget(uid)
                self._after(KILL_SECONDS, self._kill_orphan, uid)
            else:
                self._pod_changed(change, uid)
        elif change.type == "DELETED" and change.kind == api.KIND:
            self._collect_soon()
        if change.type == "ADDED" and owner_uid(change.object):
            self._after(COLLECT_SECONDS, self._world.server.collect_garbage)

    def _collect_soon(self) -> None:
        for _ in range(3):
            self._after(COLLECT_SECONDS, self._world.server.collect_garbage)

    def _pod_changed(self, change: Change, uid: str) -> None:
        new, old = change.object["metadata"], (change.before or {"metadata": {}})["metadata"]
        if new.get("annotations") != old.get("annotations"):
            self._after(INTENT_SECONDS, self._show_intent, uid)
        if new.get("deletionTimestamp") != old.get("deletionTimestamp"):
            self._after(STATUS_SECONDS, self._stop, uid)

    # --- scheduler ----------------------------------------------------------------------------

    def _schedule(self, uid: str) -> None:
        pod = self._world.server.pod_of(uid)
        if pod is None or pod["spec"].get("nodeName"):
            return
        away = avoided_nodes(pod)
        free = [n for n in self.nodes if n.name not in away and self._room(n) > 0]
        if not free:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient cpu.",
            }
            self._world.server.set_pod(uid, SCHEDULER, conditions=[condition])
            self._world.later(RESCHEDULE_SECONDS, self._schedule, uid)
            return
        node = self._random.choice(free)
        condition = {"type": "PodScheduled", "status": "True"}
        self._world.server.set_pod(uid, SCHEDULER, node=node.name, conditions=[condition])
        self._after(START_SECONDS, self._start, uid)

    def _room(self, node: Place) -> int:
        if node.is_cut_off or node.is_removed:
            return 0
        pods = self._world.server.of_kind("Pod")
        used = [p for p in pods if p["spec"].get("nodeName") == node.name and _is_live(p)]
        return PODS_PER_NODE - len(used)

    # --- kubelet ------------------------------------------------------------------------------

    def node_of(self, pod: Object) -> Place | None:
        name = pod["spec"].get("nodeName")
        return next((node for node in self.nodes if node.name == name), None)

    def _start(self, uid: str) -> None:
        pod = self._world.server.pod_of(uid)
        if pod is None or uid in self._started or "deletionTimestamp" in pod["metadata"]:
            return
        node = self.node_of(pod)
        if node is None or node.is_cut_off or not _is_live(pod):
            return
        name = pod["metadata"]["labels"][api.LABEL_JOB_NAME]
        job_file = self._world.server.objects.get(("ConfigMap", f"{name}-job-file"))
        claim = ("PersistentVolumeClaim", f"{name}-checkpoints")
        if job_file is None or claim not in self._world.server.objects:
            self._world.later(LOST_BEFORE_START_SECONDS, self._start, uid)  # cannot be mounted
            return
        self._started.add(uid)
        self._begin(pod, node, job_file["data"]["job.json"])

    def _begin(self, pod: Object, node: Place, job_file: str) -> None:
        metadata = pod["metadata"]
        container = Container(
            uid=metadata["uid"],
            name=metadata["name"],
            job_uid=metadata["labels"][api.LABEL_JOB_UID],
            attempt=attempt_of(pod),
            replica=replica_of(pod),
            node=node,
            address=self._free_address(),
            replicas=json.loads(job_file)["spec"].get("workers", {}).get("replicas", 1),
            on_end=self._ended,
        )
        self._world.trainers.begin(container, job_file)
        running = [{"name": "trainer", "state": {"running": {}}}]
        self._world.server.set_pod(
            container.uid,
            KUBELET,
            phase="Running",
            podIP=container.address,
            containerStatuses=running,
        )
        self._after(INTENT_SECONDS, self._show_intent, container.uid)

    def _free_address(self) -> str:
        """The lowest that is free: addresses are used again soon, as in a small range."""
        used = {c.address for c in self._world.trainers.containers.values() if c.is_running}
        return next(a for n in range(1, 250) if (a := f"127.1.0.{n}") not in used)

    def _show_intent(self, uid: str) -> None:
        pod, container = self._world.server.pod_of(uid), self._container(uid)
        if pod is None or container is None or container.node.is_cut_off:
            return
        text = pod["metadata"].get("annotations", {}).get(api.ANNOTATION_INTENT)
        if text:
            self._world.trainers.read_intent(container, text)

    def _container(self, uid: str) -> Container | None:
        return self._world.trainers.containers.get(uid)

    def _stop(self, uid: str) -> None:
        """The pod is being deleted: SIGTERM, and SIGKILL when its time is over."""
        pod, container = self._world.server.pod_of(uid), self._container(uid)
        if pod is None:
            return
        node = self.node_of(pod)
        if node is not None and node.is_cut_off:
            return
        if container is None or not container.is_running:
            self._after(STATUS_SECONDS, self._finalise, uid)
            return
        self._world.trainers.told_to_stop(container)
        grace = pod["metadata"]["deletionGracePeriodSeconds"]
        self._world.later(grace, self._out_of_time, uid)

    def _out_of_time(self, uid: str) -> None:
        container = self._container(uid)
        if container is not None and container.is_running and not container.node.is_cut_off:
            self._world.trainers.kill(container)

    def _forget(self, uid: str) -> None:
        """Nobody tells a container on a node that is cut off: it runs on, without a pod."""
        container = self._container(uid)
        if container is not None and container.is_running and container.node.is_cut_off:
            container.was_orphaned = True

    def _kill_orphan(self, uid: str) -> None:
        container = self._container(uid)
        if container is not None and container.is_running and not container.node.is_cut_off:
            self._world.trainers.kill(container)

    def _ended(self, container: Container) -> None:
        self._after(STATUS_SECONDS, self._write_end, container.uid)

    def _write_end(self, uid: str) -> None:
        """First the container's state, then the phase, then the end of a pod that is to go."""
        container = self._container(uid)
        if container is None or container.ended is None or container.node.is_cut_off:
            return
        how = container.ended
        state = {
            "exitCode": how.code,
            "reason": how.reason,
            "message": how.message,
            "finishedAt": stamp(how.time),
        }
        statuses = [{"name": "trainer", "state": {"terminated": state}}]
        self._world.server.set_pod(uid, KUBELET, containerStatuses=statuses)
        self._after(STATUS_SECONDS, self._write_phase, uid)

    def _write_phase(self, uid: str) -> None:
        container, pod = self._container(uid), self._world.server.pod_of(uid)
        if pod is None or container is None or container.ended is None:
            return
        if container.node.is_cut_off:
            return
        if _is_live(pod):
            phase = "Failed" if container.ended.code else "Succeeded"
            self._world.server.set_pod(uid, KUBELET, phase=phase)
        self._after(STATUS_SECONDS, self._finalise, uid)

    def _finalise(self, uid: str) -> None:
        """A pod that is to go, and whose container has ended, goes."""
        pod, container = self._world.server.pod_of(uid), self._container(uid)
        if pod is None or "deletionTimestamp" not in pod["metadata"]:
            return
        if container is None or container.ended is not None:
            self._world.server.remove_pod(uid, KUBELET)

    # --- nodes --------------------------------------------------------------------------------

    def tell_of(self, node: Place, *, ready: str = "True", taints: Mapping[str, str] = NO) -> None:
        """Its conditions and taints."""
        watched = {"GpuMemWatch": "True" if node.is_broken else "False"}
        self._world.server.set_node(
            node.name, NODES, conditions={"Ready": ready} | watched, taints=taints
        )

    def break_device(self, node: Place) -> None:
        node.is_broken = True
        self.tell_of(node)

    def power_off(self, node: Place) -> None:
        """Nothing runs on it any more, which nobody knows yet."""
        node.is_off = True
        self.cut_off(node)
        for container in list(self._world.trainers.containers.values()):
            if container.node is node and container.is_running:
                self._world.trainers.kill(container)

    def declare_out_of_service(self, node: Place) -> None:
        """Somebody has made sure of it, and says so; its pods are told to go, and at last the node
        is removed."""
        if node.is_removed or self._is_fenced(node):
            return
        self._world.tell(f"{node.name} is declared out of service")
        fenced = {"node.kubernetes.io/out-of-service": "NoExecute"}
        self.tell_of(node, ready="Unknown", taints=UNREACHABLE | fenced)
        self._tell_to_go(node)
        self._world.later(REMOVED_SECONDS, self.remove, node)

    def cut_off(self, node: Place) -> None:
        """Nothing reaches it any more; its containers run on."""
        node.is_cut_off = True
        self._world.tell(f"{node.name} is cut off")
        self._world.trainers.cut(node)
        self._world.later(self._detect_seconds, self._taint, node)

    def _taint(self, node: Place) -> None:
        if not node.is_cut_off or node.is_removed:
            return
        if not self._is_fenced(node):
            self.tell_of(node, ready="Unknown", taints=UNREACHABLE)
        self._tell_to_go(node)

    def _is_fenced(self, node: Place) -> bool:
        taints = self._world.server.objects["Node", node.name]["spec"]["taints"]
        return len(taints) > len(UNREACHABLE)

    def _tell_to_go(self, node: Place) -> None:
        for pod in self._pods_on(node):
            disrupt(self._world, pod, NODES, "DeletionByTaintManager")
            metadata = pod["metadata"]
            key = ("Pod", metadata["name"])
            self._world.server.delete(key, NODES, uid=metadata["uid"], grace_seconds=None)

    def bring_back(self, node: Place) -> None:
        """The node is back: its kubelet tells what became of its pods, and does what it missed."""
        if not node.is_cut_off or node.is_removed:
            return
        if node.is_off:
            self.declare_out_of_service(node)
            return
        node.is_cut_off = False
        self.tell_of(node)
        self._world.tell(f"{node.name} is back")
        for container in list(self._world.trainers.containers.values()):
            if container.node is node:
                self._catch_up(container)
        for pod in self._pods_on(node):
            uid = pod["metadata"]["uid"]
            is_to_go = "deletionTimestamp" in pod["metadata"]
            self._after(START_SECONDS, self._stop if is_to_go else self._start, uid)
        self._world.trainers.joined()

    def _catch_up(self, container: Container) -> None:
        if self._world.server.pod_of(container.uid) is None:
            self._after(KILL_SECONDS, self._kill_orphan, container.uid)
        elif container.ended is not None:
            self._after(STATUS_SECONDS, self._write_end, container.uid)
        else:
            self._after(INTENT_SECONDS, self._show_intent, container.uid)

    def remove(self, node: Place) -> None:
        """The machine is off and its Node deleted; its pods are collected. Another comes."""
        if node.is_removed or not node.is_cut_off:
            return
        node.is_removed = True
        self._world.server.remove_node(node.name, NODES)
        self._world.tell(f"{node.name} is switched off and removed")
        for container in list(self._world.trainers.containers.values()):
            if container.node is node and container.is_running:
                self._world.trainers.kill(container)
        self._world.later(self._random.uniform(1.0, 20.0), self._collect_pods, node)
        self.nodes.append(Place(f"node-{len(self.nodes) + 1}"))
        self.tell_of(self.nodes[-1])

    def _collect_pods(self, node: Place) -> None:
        for pod in self._pods_on(node):
            disrupt(self._world, pod, NODES, "DeletionByPodGC")
            self._world.server.remove_pod(pod["metadata"]["uid"], "pod garbage collector")

    def _pods_on(self, node: Place) -> list[Object]:
        pods = self._world.server.of_kind("Pod")
        return [pod for pod in pods if pod["spec"].get("nodeName") == node.name]

    def _after(self, seconds: tuple[float, float], what: Callable[..., Any], *args: Any) -> None:
        self._world.later(self._random.uniform(*seconds), what, *args)


def avoided_nodes(pod: Object) -> set[str]:
    """Names of the nodes that the pod's affinity keeps it away from."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    fields = [field for term in terms for field in term.get("matchFields") or []]
    return {name for field in fields if field["operator"] == "NotIn" for name in field["values"]}


def _is_live(pod: Object) -> bool:
    return pod["status"]["phase"] not in TERMINAL


def disrupt(world: World, pod: Object, actor: str, reason: str) -> None:
    """Mark the pod as one that somebody wants gone."""
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": "taken away",
        "lastTransitionTime": stamp(world.now()),
    }
    world.server.set_pod(pod["metadata"]["uid"], actor, conditions=[condition])
