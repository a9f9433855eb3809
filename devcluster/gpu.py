"""Simulated accelerators: a number in the node's status, and no device behind it.

Promise: the scheduler places and refuses pods that ask for `nvidia.com/gpu` as it would on a real
node. Trap avoided: a device plugin would have to hand out devices that do not exist; an extended
resource that only the status names is counted by the scheduler and ignored by the kubelet.
"""

import json

from devcluster.kubectl import Kubectl

RESOURCE = "nvidia.com/gpu"
DEFAULT_COUNT = 8


def status_patch(count: int, resource: str = RESOURCE) -> str:
    """A merge patch of a node's status."""
    amount = {resource: str(count)}
    return json.dumps({"status": {"capacity": amount, "allocatable": amount}})


def set_count(kubectl: Kubectl, *, node: str, count: int, resource: str = RESOURCE) -> None:
    """Let `node` claim `count` accelerators; 0 is allowed."""
    kubectl.run(
        *("patch", "node", node, "--subresource=status", "--type=merge"),
        *("--patch", status_patch(count, resource)),
    )
