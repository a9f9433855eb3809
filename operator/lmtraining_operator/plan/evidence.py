"""What does the node of a failed pod say about the failure?

Promise: hardware that the node's own watchers call broken is the cause of a crash or a hang on it,
and its pods go elsewhere at once; a pod that is lost with its node is nobody's fault, and costs
nothing. What the trainer itself has said (configuration, data, memory, storage) stays, and without
a word from the node everything is as it would be if nodes could not be read.
Trap avoided: an error of the program that its driver reports (an Xid) is no fault of the device;
and a node that is only not ready needs no list of ours: Kubernetes keeps pods away while it is so.
"""

import re
from dataclasses import dataclass, replace

from lmtraining_api.exits import FailureClass
from lmtraining_operator.plan import figures
from lmtraining_operator.plan.failures import Failure
from lmtraining_operator.plan.model import NodeCondition, ObservedNode
from lmtraining_operator.plan.nodes import BY_ITS_WORD
from lmtraining_operator.plan.situation import Situation

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Somebody has made sure that nothing runs on the node."""
NODE_LOST = "NodeLost"
READY = "Ready"
CONDITIONS_MAX = 8
WORDS_LENGTH_MAX = 160
XIDS_OF_PROGRAMS = frozenset({13, 31, 43, 45})
"""Mostly the program's own doing (graphics exception, page fault, stopped processing, clean-up),
and mended by its restart. https://docs.nvidia.com/deploy/xid-errors/"""

_BY_HARDWARE = frozenset({FailureClass.CRASH, FailureClass.HANG, FailureClass.UNKNOWN})
"""Classes of what a broken device looks like from within."""
RANK_RAISED = "RankRaised"
"""Reason of a crash by an exception: the program's own, unless it is one of the next."""
_OF_DEVICES = frozenset({"torch.AcceleratorError", "torch.distributed.DistBackendError"})
_XID = re.compile(r"\b(?:Xid\b.*?: |Xid[ :=]+|ErrorCode:)(\d+)\b", re.IGNORECASE)
"""As the driver writes it (`NVRM: Xid (PCI:0000:3b:00): 79, pid=...`), or an agent."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One thing that is wrong with a node."""

    name: str
    """Type of a condition, or key of a taint."""
    words: str


def is_out_of_service(node: ObservedNode | None) -> bool:
    return node is not None and OUT_OF_SERVICE in node.taints


def troubles(node: ObservedNode, hardware_faults: frozenset[str]) -> tuple[Trouble, ...]:
    """Everything that is wrong with the node, hardware first. A taint is trouble where it takes
    pods away, or is known for it: GPUs are fenced by harmless ones."""
    told = [Trouble(name=c.type, words=c.message) for c in node.conditions if _is_bad(c)]
    told += [
        Trouble(name=key, words=f"taint, {effect}")
        for key, effect in node.taints.items()
        if effect == "NoExecute" or key in hardware_faults or key == OUT_OF_SERVICE
    ]
    return tuple(sorted(told, key=lambda one: one.name not in hardware_faults))


def _is_bad(condition: NodeCondition) -> bool:
    """Conditions tell of trouble, but for those that tell of readiness. A watcher that knows
    nothing tells of none; a node of which nothing is known is silent."""
    if condition.type == READY:
        return condition.status != "True"
    if condition.type.endswith(READY):
        return condition.status == "False"
    return condition.status == "True"


def is_of_a_program(words: str) -> bool:
    """Whether the only Xids that are named are those of programs."""
    named = {int(number) for number in _XID.findall(words)}
    return bool(named) and named <= XIDS_OF_PROGRAMS


def with_evidence(failure: Failure, situation: Situation) -> Failure:
    """The failure in the light of what its node says."""
    node = situation.observed.nodes.get(failure.node)
    if node is None:
        return failure
    known = situation.settings.hardware_faults
    found = troubles(node, known)
    broken = next((t for t in found if t.name in known and not is_of_a_program(t.words)), None)
    failure = replace(failure, node_conditions=tuple(t.name for t in found[:CONDITIONS_MAX]))
    if broken is not None:
        return _of_hardware(failure, broken)
    is_lost = is_out_of_service(node) or any(t.name == READY for t in found)
    if is_lost and failure.failure_class is FailureClass.POD_LOST:
        return replace(
            failure,
            failure_class=FailureClass.DISRUPTION,
            reason=NODE_LOST,
            message=f"{failure.message}; its node is {_how_lost(node)}",
        )
    return failure


def _of_hardware(failure: Failure, broken: Trouble) -> Failure:
    words = f" ({figures.bounded(broken.words, WORDS_LENGTH_MAX)})" if broken.words else ""
    said = f"{BY_ITS_WORD}{broken.name}{words}"
    failure = replace(failure, node_fault=said, message=f"{failure.message}; {said}")
    if failure.failure_class not in _BY_HARDWARE or _is_of_the_program(failure):
        return failure
    return replace(failure, failure_class=FailureClass.HARDWARE)


def _is_of_the_program(failure: Failure) -> bool:
    """Whether it is an exception that no device raises."""
    raised = failure.record.exception_type if failure.record else None
    return failure.reason == RANK_RAISED and raised not in _OF_DEVICES


def _how_lost(node: ObservedNode) -> str:
    return "out of service" if is_out_of_service(node) else "not ready"
