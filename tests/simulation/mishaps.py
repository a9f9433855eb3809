"""What goes wrong with pods and nodes, and what people wish and do.

Promise: as in `faults`; `calm` ends all of it, so that the wish stops changing (P12).
"""

from random import Random

from lmtraining_api import names as api
from lmtraining_api.exits import FailureClass
from lmtraining_operator.gateway import Object
from tests.simulation.cluster import disrupt
from tests.simulation.faults import Act, enter, fault
from tests.simulation.runs import Container
from tests.simulation.server import TERMINAL
from tests.simulation.world import JOB, NAME, NAMESPACE, PERSON, World, is_terminal

# --- pods -----------------------------------------------------------------------------------


def _victim(world: World, random: Random) -> Container | None:
    """A container that runs on a node that can be reached."""
    uid = (world.job or {"metadata": {"uid": ""}})["metadata"]["uid"]
    running = [c for c in world.trainers.running(uid) if not c.node.is_cut_off]
    return random.choice(running) if running else None


def _pod(world: World, random: Random) -> Object | None:
    pods = [p for p in world.live_pods() if "deletionTimestamp" not in p["metadata"]]
    return random.choice(pods) if pods else None


@fault(is_charged=True)
def pod_fails(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is None:
        return False
    retried = [FailureClass.CRASH, FailureClass.HANG, FailureClass.STORAGE]
    world.trainers.fail(victim, random.choice(retried))
    return True


@fault(is_charged=True)
def pod_is_out_of_memory(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is not None:
        world.trainers.kill(victim, reason="OOMKilled")
    return victim is not None


@fault(is_charged=True)
def pod_is_badly_configured(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is not None:
        world.trainers.fail(victim, FailureClass.CONFIGURATION)
    return victim is not None


@fault(is_harmless=True, never=frozenset({"Pending", "Recovering", "Ended"}))
def rank_dies(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is None or victim.gang is None:
        return False
    world.trainers.rank_died(victim)
    return True


def _delete(world: World, pod: Object, *, grace_seconds: int | None = None) -> None:
    metadata = pod["metadata"]
    world.server.delete(
        ("Pod", metadata["name"]), PERSON, uid=metadata["uid"], grace_seconds=grace_seconds
    )


@fault()
def pod_is_deleted(world: World, random: Random) -> bool:
    pod = _pod(world, random)
    if pod is not None:
        _delete(world, pod)
    return pod is not None


@fault()
def pod_is_deleted_by_force(world: World, random: Random) -> bool:
    pod = _pod(world, random)
    if pod is None:
        return False
    container = world.trainers.containers.get(pod["metadata"]["uid"])
    if container is not None:
        container.was_orphaned = True
    _delete(world, pod, grace_seconds=0)
    return True


def _disrupted(reason: str) -> Act:
    def act(world: World, random: Random) -> bool:
        pod = _pod(world, random)
        if pod is None:
            return False
        disrupt(world, pod, "cluster", reason)
        _delete(world, pod)
        return True

    return act


enter("pod is preempted", _disrupted("PreemptionByScheduler"))
enter("pod is drained", _disrupted("EvictionByEvictionAPI"))


@fault()
def pod_is_evicted(world: World, random: Random) -> bool:
    """By the kubelet: the container is killed, and the pod failed at once."""
    victim = _victim(world, random)
    if victim is None or world.server.pod_of(victim.uid) is None:
        return False
    world.server.set_pod(
        victim.uid, "kubelet", phase="Failed", reason="Evicted", message="low on memory"
    )
    world.trainers.kill(victim)
    return True


@fault()
def ended_pod_is_tidied(world: World, random: Random) -> bool:
    ended = [pod for pod in world.pods() if pod["status"]["phase"] in TERMINAL]
    if ended:
        _delete(world, random.choice(ended))
    return bool(ended)


# --- nodes ----------------------------------------------------------------------------------


def _node_lost(seconds: tuple[float, float]) -> Act:
    def act(world: World, random: Random) -> bool:
        victim = _victim(world, random)
        if victim is None:
            return False
        node = victim.node
        world.cluster.cut_off(node)
        world.later(random.uniform(*seconds), world.cluster.bring_back, node)
        return True

    return act


enter("node is lost for a moment", _node_lost((0.5, 6.0)), is_charged=True)
enter("node is lost and comes back", _node_lost((10.0, 120.0)), is_charged=True)


@fault(is_charged=True)
def node_is_lost_for_good(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is None:
        return False
    world.cluster.cut_off(victim.node)
    world.later(random.uniform(1.0, 60.0), world.cluster.remove, victim.node)
    return True


@fault(is_charged=True)
def device_breaks(world: World, random: Random) -> bool:
    """The rank on it crashes, and the node tells of it. One at a time: there are few nodes."""
    victim = _victim(world, random)
    if victim is None or any(node.is_broken for node in world.cluster.nodes):
        return False
    world.cluster.break_device(victim.node)
    world.trainers.fail(victim, FailureClass.CRASH)
    return True


@fault(is_charged=True)
def node_is_out_of_service(world: World, random: Random) -> bool:
    victim = _victim(world, random)
    if victim is None:
        return False
    world.cluster.power_off(victim.node)
    world.later(random.uniform(1.0, 30.0), world.cluster.declare_out_of_service, victim.node)
    return True


# --- the wish -------------------------------------------------------------------------------


@fault()
def job_is_suspended(world: World, random: Random) -> bool:
    if world.job is None:
        return False
    _edit(world, suspend=True)
    world.later(random.uniform(0.1, 15.0), _edit, world)
    return True


def _edit(world: World, **changes: object) -> None:
    """Change these fields of the spec; without any, go on."""
    if world.job is not None:
        changes = changes or {"suspend": False}
        world.server.edit_spec(JOB, PERSON, world.job["spec"] | changes)


@fault(is_harmless=True)
def recovery_is_edited(world: World, random: Random) -> bool:
    if world.job is None:
        return False
    recovery = world.job["spec"]["recovery"]
    _edit(world, recovery=recovery | {"restartsMax": recovery["restartsMax"] + 1})
    return True


@fault(is_harmless=True)
def bad_edit_is_taken_back(world: World, random: Random) -> bool:
    """A field of a newer version, which this one cannot read."""
    if world.job is None:
        return False
    _edit(world, telepathy={"enabled": True})
    world.later(random.uniform(0.1, 10.0), _without_telepathy, world)
    return True


def _without_telepathy(world: World) -> None:
    if world.job is not None:
        spec = {name: value for name, value in world.job["spec"].items() if name != "telepathy"}
        world.server.edit_spec(JOB, PERSON, spec)


@fault(is_harmless=True)
def status_is_edited_by_hand(world: World, random: Random) -> bool:
    if world.job is None:
        return False
    world.server.edit_status_by_hand(JOB, PERSON, {"note": f"seen by {random.random():.3f}"})
    return True


@fault(never=frozenset({"Ended"}), forgets=True)
def status_is_wiped_by_hand(world: World, random: Random) -> bool:
    if world.job is None or is_terminal(world.job):
        return False
    world.server.wipe_status(JOB, PERSON)
    return True


@fault()
def job_is_deleted(world: World, random: Random) -> bool:
    return _delete_job(world)


@fault()
def job_is_made_again(world: World, random: Random) -> bool:
    if not _delete_job(world):
        return False
    world.later(random.choice([0.0, 0.01, 0.3, 5.0]), _make_again, world)
    return True


def _delete_job(world: World) -> bool:
    if world.job is None:
        return False
    uid = world.job["metadata"]["uid"]
    world.server.delete(JOB, PERSON, uid=uid, grace_seconds=None)
    return True


def _make_again(world: World) -> None:
    if world.job is None:
        world.server.create(world.shape.job(), PERSON)


@fault(is_harmless=True)
def foreign_pod_with_our_labels(world: World, random: Random) -> bool:
    """Somebody made a pod that looks like one of ours and belongs to nobody."""
    if world.job is None:
        return False
    name = f"foreign-{world.server.version}"
    labels = {
        api.LABEL_JOB_NAME: NAME,
        api.LABEL_JOB_UID: world.job["metadata"]["uid"],
        api.LABEL_ATTEMPT: "1",
        api.LABEL_REPLICA: "0",
    }
    world.server.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {"nodeName": "node-of-others"},
        },
        PERSON,
    )
    return True


def calm(world: World) -> None:
    """Nothing goes wrong any more, and what was wished for a while is not wished any more."""
    world.tell("== the world is calm from here on")
    world.network.clear()
    world.server.refused.clear()
    world.operator.drops = world.operator.repeats = world.operator.lies.count = 0
    world.operator.hold_until = 0.0
    world.clock_jump_seconds = 0.0
    for node in list(world.cluster.nodes):
        world.cluster.bring_back(node)
    if world.job is not None and world.job["spec"].get("suspend"):
        _edit(world, suspend=False)
    _without_telepathy(world)
    world.operator.start()
