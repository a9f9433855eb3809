"""What keeps the volume of the run from being there."""

import re

from lmtraining_cli.snapshot import Object, Snapshot
from lmtraining_cli.why.finding import Finding, shortened, words_of

_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})


def claim(snapshot: Snapshot) -> Finding | None:
    """A claim that does not exist or is not bound."""
    name = snapshot.claim_name
    if not name or not snapshot.claim_is_known or _all_run(snapshot):
        return None
    found = snapshot.claim
    if found is None:
        return _absent(snapshot, name)
    phase = str((found.get("status") or {}).get("phase") or "Pending")
    if "deletionTimestamp" in found["metadata"]:
        return Finding(
            cause="ClaimBeingDeleted",
            sentence=f"PersistentVolumeClaim {name} is being deleted",
            evidence=["it has a deletionTimestamp"],
            fix="wait until it is gone and create it again, or name another in a new job",
        )
    if phase == "Lost":
        return Finding(
            cause="VolumeLost",
            sentence=f"the volume of PersistentVolumeClaim {name} is gone",
            evidence=[f"phase Lost, volume {found.get('spec', {}).get('volumeName', '')}"],
            fix="restore the PersistentVolume, or use another claim in a new job",
        )
    is_told = bool(snapshot.events_about(f"PersistentVolumeClaim/{name}"))
    return _pending(snapshot, name, found) if phase == "Pending" and is_told else None


def silent_claim(snapshot: Snapshot) -> Finding | None:
    """A claim that is not bound, and nobody says why: once all that is told has been asked."""
    found, name = snapshot.claim, snapshot.claim_name
    if found is None or _all_run(snapshot):
        return None
    phase = str((found.get("status") or {}).get("phase") or "Pending")
    return _pending(snapshot, name, found) if phase == "Pending" else None


def _all_run(snapshot: Snapshot) -> bool:
    return bool(snapshot.pods) and all(pod.has_started for pod in snapshot.pods)


def _absent(snapshot: Snapshot, name: str) -> Finding | None:
    is_own = (snapshot.value("checkpoint.storage") or {}).get("existingClaim") is None
    if is_own:
        return None  # the operator makes it
    return Finding(
        cause="ClaimMissing",
        sentence=f"PersistentVolumeClaim {name} does not exist",
        evidence=["checkpoint.storage.existingClaim names it"],
        fix=f"create it in namespace {snapshot.namespace}, or name another in a new job",
    )


def _pending(snapshot: Snapshot, name: str, found: Object) -> Finding | None:
    events = snapshot.events_about(f"PersistentVolumeClaim/{name}")
    newest = next(iter(events), None)
    wanted = found.get("spec", {}).get("storageClassName")
    if newest is not None and newest.reason == "WaitForFirstConsumer":
        return None  # a pod that finds a place makes it; why it finds none is another question
    evidence = [words_of(event) for event in events[:3]] or ["phase Pending"]
    if newest is not None and newest.reason == "ProvisioningFailed" and wanted:
        missing = re.search(r'storageclass[^"]*"([^"]+)" not found', newest.message)
        return Finding(
            cause="StorageClassMissing" if missing else "ProvisioningFailed",
            sentence=f"storage class {wanted} does not exist"
            if missing
            else f"storage class {wanted} cannot make a volume for claim {name}: "
            f"{shortened(newest.message)}",
            evidence=evidence,
            fix="name one of kubectl get storageclass in checkpoint.storage.claim.storageClassName "
            "of a new job",
        )
    if not wanted:
        return Finding(
            cause="NoStorageClass",
            sentence=f"claim {name} names no storage class, and the cluster has no default one "
            "that makes a volume for it",
            evidence=evidence,
            fix="set checkpoint.storage.claim.storageClassName in a new job, mark a class as the "
            "default, or make a PersistentVolume that fits",
        )
    return Finding(
        cause="ClaimPending",
        sentence=f"claim {name} waits for storage class {wanted} to make its volume",
        evidence=evidence,
        fix="look at the provisioner of that class; a volume of several nodes needs one that "
        "offers ReadWriteMany",
    )


def mount(snapshot: Snapshot) -> Finding | None:
    """A volume that a node cannot attach or mount."""
    for pod in (pod for pod in snapshot.pods if pod.node and not pod.has_started):
        for event in snapshot.events_about(f"Pod/{pod.name}"):
            if event.reason in _MOUNT_REASONS:
                return _mount_finding(snapshot, pod.name, event.message, words_of(event))
    return None


def _mount_finding(snapshot: Snapshot, pod: str, message: str, evidence: str) -> Finding:
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if missing:
        return Finding(
            cause="SecretMissing" if missing[1] == "secret" else "MissingObject",
            sentence=f"{missing[1]} {missing[2]} does not exist, and pod {pod} mounts it",
            evidence=[evidence],
            fix=f"create it in namespace {snapshot.namespace}; the pod then starts by itself",
        )
    if "Multi-Attach" in message:
        return Finding(
            cause="MultiAttach",
            sentence="the volume is attached to another node, and can be to one only",
            evidence=[evidence],
            fix="wait until the pod there is gone, or use ReadWriteMany storage in a new job",
        )
    return Finding(
        cause="MountFailed",
        sentence=f"the node cannot mount a volume of pod {pod}: {shortened(message)}",
        evidence=[evidence],
        fix="check the storage's address, export and rights, and the driver on the node",
    )
