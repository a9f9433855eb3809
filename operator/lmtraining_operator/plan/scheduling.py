"""Are all pods of the attempt placed and started, and if not, why not?

Promise: whatever keeps a pod from starting is in status within seconds, in the words of whoever
keeps it (scheduler, kubelet, API server), cut down to the cause, with the pod and with what to do.
The gravest answer of the gang is given, since the others wait for that pod.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta

from lmtraining_api.job import Credentials, TrackerCredentials, TrainingSpec
from lmtraining_api.status import Scheduled
from lmtraining_operator.plan import gang, names, nodes, obstacles
from lmtraining_operator.plan.model import ObservedPod, PodWarning, Refusal
from lmtraining_operator.plan.situation import Situation
from lmtraining_operator.plan.verdicts import Verdict

CONFLICT = 409
STUCK_POD_SECONDS = 60.0
"""A pod that is still there so long after its grace is probably on a lost node."""

_IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONTAINER_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
)
_VOLUME_EVENTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_VOLUME_WORDS = ("persistentvolumeclaim", "persistent volume", "volume node affinity")


def scheduled(situation: Situation) -> Verdict:
    """The condition Scheduled of a live attempt. True is kept: what comes later is a failure."""
    if situation.gang_was_complete or situation.gang_runs:
        return Verdict("True", Scheduled.SCHEDULED)
    questions: tuple[Callable[[Situation], Verdict | None], ...] = (
        _refused,
        _queued,
        _image,
        _container,
        _volume,
        _placement,
    )
    for question in questions:
        verdict = question(situation)
        if verdict is not None:
            return verdict
    return _not_yet(situation)


def _not(reason: Scheduled, message: str) -> Verdict:
    return Verdict("False", reason, message)


def _refused(situation: Situation) -> Verdict | None:
    """An object of the attempt that the API server refuses to make."""
    refusals = sorted(gang.refusals(situation), key=lambda one: (one.time, one.name))
    return _verdict_on_refusal(refusals[-1]) if refusals else None


def _verdict_on_refusal(refusal: Refusal) -> Verdict:
    what = f"{refusal.kind} {refusal.name}"
    if refusal.is_leaving:
        return _not(
            Scheduled.PENDING,
            f"waiting until {what} is gone, which is being deleted ({refusal.message})",
        )
    if refusal.code == CONFLICT:
        return _not(
            Scheduled.NAME_TAKEN,
            f"{what} exists and does not belong to this job ({refusal.message}): delete it, or "
            "give the job another name",
        )
    if refusal.is_over_quota:
        return _not(
            Scheduled.QUOTA_EXCEEDED,
            f"{what}: {refusal.message}; it is tried again until the quota has room",
        )
    return _not(
        Scheduled.CREATE_REFUSED,
        f"the API server refuses {what}: {refusal.message}; it is tried again",
    )


def _first(situation: Situation, matches: Callable[[ObservedPod], bool]) -> ObservedPod | None:
    return next((pod for pod in situation.gang if matches(pod)), None)


def _queued(situation: Situation) -> Verdict | None:
    """Pods that nobody has let go yet: before that the scheduler does not look at them."""
    pod = _first(situation, lambda pod: bool(pod.gates))
    if pod is None:
        return None
    queue = situation.spec.queue
    waits_for = f"queue {queue.name} lets them go" if queue else "somebody lets them go"
    gates = ", ".join(pod.gates)
    said = obstacles.shortened(situation.observed.queue_message)
    return _not(
        Scheduled.QUEUED,
        f"the pods wait until {waits_for} (gate {gates} of pod {pod.name}): "
        + (said or "when, depends on its quota and on who is before them"),
    )


def _image(situation: Situation) -> Verdict | None:
    pod = _first(situation, lambda pod: pod.waiting_reason in _IMAGE_REASONS)
    if pod is None:
        return None
    cause, fix = obstacles.image_pull(pod.waiting_message)
    return _not(
        Scheduled.IMAGE_PULL_FAILED,
        f"pod {pod.name} cannot pull image {situation.trainer_image} "
        f"({pod.waiting_reason}: {cause}): {fix}",
    )


def _container(situation: Situation) -> Verdict | None:
    pod = _first(situation, lambda pod: pod.waiting_reason in _CONTAINER_REASONS)
    if pod is None:
        return None
    return _not(
        Scheduled.CONTAINER_NOT_CREATED,
        f"the kubelet cannot start the container of pod {pod.name} ({pod.waiting_reason}: "
        f"{pod.waiting_message})",
    )


def _missing_secret(situation: Situation, complaint: str) -> str | None:
    """The kubelet knows the Secret's name; the field that names it, only we do."""
    for field, credentials in _credentials(situation.spec):
        name = credentials.secret_ref.name if credentials else None
        if name is not None and f'secret "{name}" not found' in complaint:
            return f"Secret {name} ({field}.credentials.secretRef.name) does not exist: create it"
    return None


def _credentials(
    spec: TrainingSpec,
) -> Iterator[tuple[str, Credentials | TrackerCredentials | None]]:
    """Whatever may name a Secret, by its field."""
    for field, sources in (("train", spec.data.train), ("validation", spec.data.validation)):
        for number, source in enumerate(sources):
            yield f"data.{field}[{number}]", source.credentials
    if spec.model.pretrained is not None:
        yield "model.pretrained", spec.model.pretrained.credentials
    yield "checkpoint.storage", spec.checkpoint.storage.credentials
    for name, tracker in (("mlflow", spec.tracking.mlflow), ("wandb", spec.tracking.wandb)):
        if tracker is not None:
            yield f"tracking.{name}", tracker.credentials


def _volume(situation: Situation) -> Verdict | None:
    """A volume that cannot be mounted, or a claim that is not bound."""
    claim = situation.observed.claim
    if claim is not None and claim.warning:
        return _not(
            Scheduled.VOLUME_NOT_READY,
            f"PersistentVolumeClaim {claim.name}{_claim_state(situation)}: "
            f"{obstacles.shortened(claim.warning)}: {_claim_fix(situation)}",
        )
    warning = _volume_warning(situation)
    if warning is not None:
        hint = _missing_secret(situation, warning.message)
        return _not(
            Scheduled.VOLUME_NOT_READY,
            hint or f"pod {warning.pod} waits for a volume: {obstacles.shortened(warning.message)}",
        )
    pod = _first(situation, lambda pod: _is_about_a_volume(pod.unschedulable_message))
    if pod is None:
        return None
    return _not(
        Scheduled.VOLUME_NOT_READY,
        f"pod {pod.name} waits for PersistentVolumeClaim {names.claim_name(situation.job)}"
        f"{_claim_state(situation)}: {obstacles.shortened(pod.unschedulable_message)}: "
        f"{_claim_fix(situation)}",
    )


def _volume_warning(situation: Situation) -> PodWarning | None:
    waiting = {pod.name for pod in situation.gang if not pod.has_started}
    return next(
        (w for w in situation.observed.warnings if w.reason in _VOLUME_EVENTS and w.pod in waiting),
        None,
    )


def _is_about_a_volume(message: str) -> bool:
    return any(word in message.lower() for word in _VOLUME_WORDS)


def _claim_state(situation: Situation) -> str:
    claim = situation.observed.claim
    if claim is None:
        return " (it does not exist)"
    return " (it is being deleted)" if claim.is_deleting else f" ({claim.phase})"


def _claim_fix(situation: Situation) -> str:
    is_own = situation.spec.checkpoint.storage.existing_claim is None
    return obstacles.unbound_claim(exists=situation.observed.claim is not None, own=is_own)


def _placement(situation: Situation) -> Verdict | None:
    pod = _first(situation, lambda pod: bool(pod.unschedulable_message))
    if pod is None:
        return None
    accelerator = situation.spec.workers.accelerator
    devices = f" and {accelerator.count} x {accelerator.resource}" if accelerator else ""
    resources = situation.spec.workers.resources
    cause, fix = obstacles.placement(
        pod.unschedulable_message, accelerator=accelerator.resource if accelerator else None
    )
    return _not(
        Scheduled.UNSCHEDULABLE,
        f"no node takes pod {pod.name}, which needs {resources.cpu} CPU, {resources.memory} memory"
        f"{devices}: {cause}: {fix}{nodes.advice(situation.status)}",
    )


def waiting_for_pods(situation: Situation, pods: tuple[ObservedPod, ...]) -> str:
    """What keeps the next pods from starting, where it is pods that are still there."""
    first = pods[0]
    place = f" on node {first.node}" if first.node else ""
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    text = f"waiting until pod {first.name}{place}{more} is gone"
    failure = situation.status.last_failure
    patience = timedelta(seconds=STUCK_POD_SECONDS + situation.spec.recovery.grace_seconds)
    if failure is None or situation.now - failure.time < patience:
        return text
    return (
        f"{text}: it may still write checkpoints, so nothing starts beside it until "
        f"{gang.STUCK_SECONDS:.0f} s after its grace; if its node is surely down, delete the Node "
        "or taint it with node.kubernetes.io/out-of-service, to go on at once"
    )


def _not_yet(situation: Situation) -> Verdict:
    if situation.is_replacing and situation.strays:
        return _not(Scheduled.PENDING, waiting_for_pods(situation, situation.strays))
    if situation.status.next_attempt_time is not None and situation.missing:
        return _not(Scheduled.PENDING, f"pod {situation.missing[0]} waits (backoff)")
    total = len(situation.expected)
    if len(situation.missing) == total:
        return _not(Scheduled.PENDING, "the pods are being made")
    started = sum(pod.has_started for pod in situation.gang)
    return _not(Scheduled.STARTING, f"{started} of {total} pods have started")
