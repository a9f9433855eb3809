"""The scheduler's and the kubelet's words, cut down to the cause, and what a person can do.

Promise: the commonest causes (too little CPU, memory or accelerators, a claim that is not bound, an
image that cannot be pulled) come with one fix that names the field; of any other the words are
kept, up to `WORDS_LENGTH_MAX`.
Trap avoided: the scheduler adds what preemption found, node by node, and the kubelet each layer of
its client: the cause drowns in them, and the end, where it often is, is cut off.
"""

import re

WORDS_LENGTH_MAX = 240

_PREEMPTION = re.compile(r"\.?\s*(?:no new claims to deallocate, )?preemption: .*", re.DOTALL)
_INSUFFICIENT = re.compile(r"Insufficient ([\w./-]+\w)")
_FIELD_OF_RESOURCE = {"cpu": "workers.resources.cpu", "memory": "workers.resources.memory"}
_ANY_ROOM = "free or add nodes, or lower workers.resources or workers.replicas"

_PULL_CAUSES = (
    (
        re.compile(r"unauthorized|authentication required|access denied|denied|forbidden", re.I),
        "give the service account of the pods a pull secret for that registry",
    ),
    (
        re.compile(r"manifest unknown|name unknown|not found", re.I),
        "correct workers.image in a new job, or push the image",
    ),
    (
        re.compile(r"no such host|connection refused|i/o timeout|no route to host", re.I),
        "make the registry reachable from the node, or correct workers.image in a new job",
    ),
    (re.compile(r"no space left on device", re.I), "free disk space on the node"),
)
_ANY_IMAGE = "correct workers.image in a new job, or make the image available to the node"


def placement(words: str, *, accelerator: str | None) -> tuple[str, str]:
    """Why no node takes a pod, and the fix."""
    cause = shortened(words)
    short = list(dict.fromkeys(_INSUFFICIENT.findall(cause)))
    fields = _FIELD_OF_RESOURCE | (
        {accelerator: "workers.accelerator.count"} if accelerator else {}
    )
    lower = [fields[name] for name in short if name in fields]
    if not lower:
        return cause, _ANY_ROOM
    return cause, f"lower {' and '.join(lower)}, or add nodes with more {' and '.join(short)}"


def image_pull(words: str) -> tuple[str, str]:
    """Why an image cannot be pulled, and the fix."""
    for pattern, fix in _PULL_CAUSES:
        if found := pattern.search(words):
            return found[0], fix
    return shortened(words), _ANY_IMAGE


def unbound_claim(*, exists: bool, own: bool) -> str:
    """What a claim that is not there or not bound needs."""
    if not exists:
        return "create it, or name another in checkpoint.storage.existingClaim of a new job"
    if own:
        return (
            "make a PersistentVolume that fits it, or name a storage class that makes one in "
            "checkpoint.storage.claim.storageClassName of a new job"
        )
    return "make a PersistentVolume that fits it, or name another claim in a new job"


def shortened(words: str) -> str:
    """Without what preemption found; the beginning where it is still long."""
    cause = _PREEMPTION.sub("", words).strip().rstrip(".")
    return cause if len(cause) <= WORDS_LENGTH_MAX else f"{cause[: WORDS_LENGTH_MAX - 1]}…"
