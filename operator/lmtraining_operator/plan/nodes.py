"""Which nodes do new pods of this job keep away from?

Promise: a node on which devices failed twice, that itself tells of broken hardware when a pod fails
on it, or from which a rule of the job wants to go elsewhere, gets no new pod of it; status says
which and why, before the first pod that keeps away. But for the node's own word it is our own
evidence, so it needs no right to read nodes.
Traps avoided: a list that grows until no node is left: it is bounded, and the oldest entry goes
first; and a node that was mended and stays avoided: its own word holds for an hour.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from lmtraining_api.exits import FailureClass
from lmtraining_api.job import Recovery
from lmtraining_api.status import AvoidedNode, LastFailure, LMTrainingJobStatus
from lmtraining_operator.plan import figures
from lmtraining_operator.plan.model import Object
from lmtraining_operator.plan.rules import Found

HARDWARE_FAULTS_MAX = 2
"""So many on one node are no chance."""
FAULTY_NODES_MAX = 64
AVOIDED_NODES_MAX = 16
RETRY_ELSEWHERE = "RetryElsewhere"
_BY_RULE = "recovery.rules["
"""What the reason begins with where only a rule of the job says so."""
BY_ITS_WORD = "its node says "
"""What the reason begins with where the node itself has told of a fault."""
ITS_WORD_HOLDS = timedelta(hours=1)
"""A node may be mended. One that is not tells again when a pod fails on it, and the second fault of
its hardware is no chance."""


def after_failure(
    status: LMTrainingJobStatus, failure: LastFailure, why_avoid: str
) -> LMTrainingJobStatus:
    """The status with what this failure says of its node."""
    if not failure.node:
        return status
    faults = dict(status.hardware_faults)
    if failure.failure_class is FailureClass.HARDWARE:
        faults[failure.node] = figures.count(faults.pop(failure.node, 0) + 1)
        faults = dict(list(faults.items())[-FAULTY_NODES_MAX:])
    status = status.model_copy(update={"hardware_faults": faults})
    if not why_avoid or failure.node in names(status):
        return status
    added = AvoidedNode(name=failure.node, reason=why_avoid, time=failure.time)
    kept = [*status.avoided_nodes, added][-AVOIDED_NODES_MAX:]
    return status.model_copy(update={"avoided_nodes": kept})


def before_failure(status: LMTrainingJobStatus, failure: LastFailure) -> LMTrainingJobStatus:
    """The status without the node that is avoided since this failure, which was no hardware's."""
    since = (failure.node, failure.time)
    kept = [one for one in status.avoided_nodes if (one.name, one.time) != since]
    return status.model_copy(update={"avoided_nodes": kept})


def why_to_avoid(status: LMTrainingJobStatus, failure: LastFailure, found: Found | None) -> str:
    """Why new pods keep away from the node of this failure; empty when they do not."""
    if not failure.node:
        return ""
    if found is not None and found[1].action == RETRY_ELSEWHERE:
        return f"{_BY_RULE}{found[0]}] says {RETRY_ELSEWHERE} after {failure.failure_class}"
    if failure.node_fault:
        return failure.node_fault
    is_one = failure.failure_class is FailureClass.HARDWARE
    count = status.hardware_faults.get(failure.node, 0) + is_one
    return f"{count} hardware faults on it" if count >= HARDWARE_FAULTS_MAX else ""


def still_avoided(
    status: LMTrainingJobStatus, recovery: Recovery, now: datetime
) -> LMTrainingJobStatus:
    """Without the nodes that are avoided only for a rule that was taken back, or for what the node
    said a while ago (P12)."""
    has_rule = any(rule.action == RETRY_ELSEWHERE for rule in recovery.failure_rules)

    def holds(node: AvoidedNode) -> bool:
        if status.hardware_faults.get(node.name, 0) >= HARDWARE_FAULTS_MAX:
            return True
        if node.reason.startswith(BY_ITS_WORD):
            return abs(now - node.time) < ITS_WORD_HOLDS  # also after the clock was set back
        return has_rule or not node.reason.startswith(_BY_RULE)

    kept = [node for node in status.avoided_nodes if holds(node)]
    return status.model_copy(update={"avoided_nodes": kept})


def names(status: LMTrainingJobStatus) -> tuple[str, ...]:
    """The nodes that new pods keep away from."""
    return tuple(one.name for one in status.avoided_nodes)


def affinity(avoided: Iterable[str]) -> Object:
    """A pod's affinity that keeps it away from these nodes. By the node's name and not by a label,
    which somebody may change; such a requirement takes one name."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoided]
    term: Object = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}


def advice(status: LMTrainingJobStatus) -> str:
    """What to add where no node takes a pod."""
    avoided = ", ".join(f"{one.name} ({one.reason})" for one in status.avoided_nodes[:4])
    more = f" and {len(status.avoided_nodes) - 4} more" if len(status.avoided_nodes) > 4 else ""
    return f"; it keeps away from {avoided}{more}" if avoided else ""
