"""Why does no node take a pod?

Promise: of all that the scheduler counts up, the cause that holds for the most nodes is named, and
whether the pod could ever fit is told from whether it does not fit now.
Trap avoided: the scheduler's sentence ends with what preemption found, node by node, and in a gang
the pod that waits is not the one that holds the devices.
"""

import re
from collections.abc import Callable

from lmtraining_cli.snapshot import Object, Pod, Snapshot
from lmtraining_cli.why.finding import Finding, shortened
from lmtraining_cli.wording import bytes_of, plural

_PREEMPTION = re.compile(r"\.?\s*(?:no new claims to deallocate, )?preemption: .*", re.DOTALL)
_NODES = re.compile(r"\d+/(\d+) nodes are available")


TOO_LARGE = "TooLarge"


def unschedulable(snapshot: Snapshot) -> Finding | None:
    """A pod that has no place, and why."""
    waiting = [pod for pod in snapshot.pods if pod.unschedulable]
    if not waiting:
        return None
    pod = waiting[0]
    message = _PREEMPTION.sub("", pod.unschedulable).strip().rstrip(".")
    placed = [one for one in snapshot.pods if one.node]
    evidence = [f"scheduler on pod {pod.name}: {shortened(message)}"]
    cause, sentence, fix = _cause(snapshot, pod, message)
    if placed:
        evidence.append(
            f"{len(placed)} of {plural(snapshot.replicas, 'pod')} have a place and hold it "
            f"({', '.join(one.name for one in placed[:4])}); they train once all have one"
        )
        incomplete = f"{len(waiting)} of {snapshot.replicas} pods find no place"
        sentence = f"the gang is incomplete: {incomplete}: {sentence}"
        cause = f"Gang{cause}"
        fix += ", or lower workers.replicas in a new job"
    return Finding(cause=cause, sentence=sentence, evidence=evidence, fix=fix)


Cause = tuple[str, str, str]


def _cause(snapshot: Snapshot, pod: Pod, message: str) -> Cause:
    """Word, sentence and fix."""
    nodes = _NODES.search(message)
    if "no nodes available" in message or (nodes and nodes[1] == "0"):
        return "NoNodes", "the cluster has no node", "add nodes"
    counted = sorted(_tallies(message), key=lambda pair: -pair[0])
    causes = [
        explain(snapshot, pod, count, found)
        for count, words in counted
        for pattern, explain in _EXPLAINED
        if (found := pattern.search(words))
    ]
    never = [cause for cause in causes if cause[0] == TOO_LARGE]
    if never or causes:
        return (never or causes)[0]  # what waiting cannot mend comes first
    return "Unschedulable", f"no node takes the pod: {shortened(message)}", "free or add nodes"


def _tallies(message: str) -> list[tuple[int, str]]:
    """How many nodes, and what is said of them."""
    body = message.partition(": ")[2] or message
    parts = re.split(r", (?=\d+ )", body)
    found = [re.match(r"(\d+) (.*)", part.strip(), re.DOTALL) for part in parts]
    return [(int(one[1]), one[2]) for one in found if one]


def _insufficient(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    resource = found[1]
    asked = _asked(pod, resource)
    field = {"cpu": "workers.resources.cpu", "memory": "workers.resources.memory"}.get(
        resource, "workers.accelerator.count"
    )
    most = _largest(snapshot, resource)
    if most is not None and bytes_of(most) < bytes_of(asked):
        has = amount(resource, most)
        offers = f"the largest node has {has}" if bytes_of(most) else "no node has any"
        return (
            TOO_LARGE,
            f"a pod asks for {amount(resource, asked)} {resource}, and {offers}: it can never fit",
            f"lower {field} in a new job, or add larger nodes",
        )
    return (
        "NoRoom",
        f"{plural(count, 'node')} {'has' if count == 1 else 'have'} too little {resource} free for "
        f"a pod that asks for {amount(resource, asked)}",
        f"wait until others end, add nodes with {resource}, or lower {field} in a new job",
    )


def amount(resource: str, quantity: str) -> str:
    """A quantity in the unit that its resource has everywhere: a node tells its memory in Ki and
    its cores in thousandths, a job in whatever was written."""
    if resource == "memory" or resource.endswith("storage"):
        return f"{bytes_of(quantity) / 2**30:.1f}Gi"
    return f"{bytes_of(quantity):.3f}".rstrip("0").rstrip(".")


def _tainted(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    taint = found[1].replace(": }", "}").strip("{} ")
    return (
        "Taint",
        f"{plural(count, 'node')} {'repels' if count == 1 else 'repel'} the pods by the taint "
        f"{taint}",
        "remove the taint, or add nodes without it",
    )


def _cordoned(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return (
        "Cordoned",
        f"{plural(count, 'node')} cordoned, which means closed to new pods",
        "kubectl uncordon the node, or add nodes",
    )


def _not_ready(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return "NodesNotReady", f"{plural(count, 'node')} not ready", "mend the nodes, or add others"


def _affinity(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return (
        "VolumeElsewhere",
        "the volume of the run is bound to a node or zone that cannot take the pod",
        "free room on that node or in that zone, or use storage that all nodes reach in a new job",
    )


def _selector(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return (
        "NodeSelector",
        f"{plural(count, 'node')} lack the labels that the pods ask for",
        "label a node, or change what selects it",
    )


def _too_many(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return (
        "TooManyPods",
        f"{plural(count, 'node')} hold as many pods as they may",
        "end other pods, or add nodes",
    )


def _unbound(snapshot: Snapshot, pod: Pod, count: int, found: re.Match[str]) -> Cause:
    return (
        "ClaimPending",
        f"claim {snapshot.claim_name} of the run has no volume yet",
        "look at the claim: kubectl describe pvc " + snapshot.claim_name,
    )


Explain = Callable[[Snapshot, Pod, int, re.Match[str]], Cause]
_EXPLAINED: tuple[tuple[re.Pattern[str], Explain], ...] = (
    (re.compile(r"(?:not-ready|unreachable)"), _not_ready),
    (re.compile(r"untolerated taint(?:\(s\))?\s*(\{[^}]*\}|)"), _tainted),
    (re.compile(r"were unschedulable"), _cordoned),
    (re.compile(r"volume node affinity conflict"), _affinity),
    (re.compile(r"unbound immediate PersistentVolumeClaims"), _unbound),
    (re.compile(r"node affinity|node selector"), _selector),
    (re.compile(r"Too many pods"), _too_many),
    (re.compile(r"Insufficient ([\w./-]+\w)"), _insufficient),
)


def _asked(pod: Pod, resource: str) -> str:
    containers: list[Object] = pod.body.get("spec", {}).get("containers") or []
    requests = (containers[0].get("resources") or {}).get("requests") or {} if containers else {}
    return str(requests.get(resource, ""))


def _largest(snapshot: Snapshot, resource: str) -> str | None:
    """What the largest node could give an only pod; None where the nodes may not be seen."""
    if not snapshot.nodes:
        return None
    given = [
        str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))
        for node in snapshot.nodes
    ]
    return max(given, key=bytes_of)
