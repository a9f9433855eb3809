"""What does the end of a pod mean?

Promise: the failure that status names is the first one of its attempt, not what followed from it; a
disruption is never charged to the job. Traps avoided: the kubelet reports exit code 137 for an
eviction too, so the disruption is asked first; a pod that lost its peer ends as well, and may be
seen before the peer that caused it, so a mere consequence is held back for a moment.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from lmtraining_api.exits import CLASS_OF_CODE, ExitCode, FailureClass
from lmtraining_api.names import TERMINATION_LOG_BYTES_MAX
from lmtraining_api.records import ExitRecord
from lmtraining_api.status import LastFailure
from lmtraining_operator.plan import figures
from lmtraining_operator.plan.model import ContainerExit, ObservedPod
from lmtraining_operator.plan.situation import Situation

ROOT_CAUSE_WAIT_SECONDS = 5.0
"""How long a consequence is held back while another pod may still tell the cause."""

SIGNAL_BASE = 128
EXIT_CODES = range(256)
CODES_OF_PYTHON = (1, 2)
VOLUME_LIMIT_WORDS = "exceeds the limit"

UNCOUNTED = frozenset({FailureClass.DISRUPTION, FailureClass.POD_LOST})
"""Classes that are nobody's fault of the job: they never spend recovery.restartsMax."""

_ADVICE = {
    FailureClass.OUT_OF_MEMORY: "raise workers.resources.memory or workers.sharedMemory, or "
    "training.gradientAccumulation",
    FailureClass.STORAGE: "check the claim that holds the checkpoints: free space, permissions",
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one pod is no longer useful."""

    failure_class: FailureClass
    reason: str
    message: str
    time: datetime
    pod: str
    replica: int
    node: str = ""
    is_graceful: bool = False
    """True when the pod was told to stop, and so has time to save."""
    exit_code: int | None = None
    record: ExitRecord | None = None

    def as_status(self, attempt: int) -> LastFailure:
        record = self.record
        return LastFailure(
            failure_class=self.failure_class,
            reason=figures.bounded(self.reason, 64),
            message=figures.bounded(self.message),
            attempt=attempt,
            pod=self.pod,
            node=self.node,
            rank=_count(record.rank) if record else None,
            step=_count(record.step) if record else None,
            exit_code=self.exit_code if self.exit_code in EXIT_CODES else None,
            frames=record.frames if record else [],
            time=self.time,
        )


def first_failure(situation: Situation) -> Failure | None:
    """The failure that ended the attempt; None while there is none, or only a consequence whose
    cause may still show."""
    failures = all_failures(situation)
    causes = [failure for failure in failures if not failure.failure_class.is_consequence]
    if causes:
        return min(causes, key=lambda failure: (failure.time, failure.replica))
    if not failures:
        return None
    earliest = min(failures, key=lambda failure: (failure.time, failure.replica))
    waited = situation.now - earliest.time
    cause_may_show = any(not pod.is_terminal for pod in situation.gang)
    if cause_may_show and waited < timedelta(seconds=ROOT_CAUSE_WAIT_SECONDS):
        return None
    return earliest


def all_failures(situation: Situation) -> list[Failure]:
    """Every failed or lost pod of the attempt."""
    ended = [
        failure_of(pod, job_uid=situation.job.metadata.uid, now=situation.now)
        for pod in situation.gang
    ]
    lost = (
        [lost_pod(name, situation.expected[name], situation.now) for name in situation.missing]
        if situation.gang_was_complete
        else []
    )
    return [failure for failure in ended if failure] + lost


def failure_of(pod: ObservedPod, *, job_uid: str, now: datetime) -> Failure | None:
    """Why this pod is no longer useful, or None while it is (or has finished)."""
    if pod.exit is not None and pod.exit.code == ExitCode.FINISHED:
        return None
    if pod.disruption is not None and (pod.is_deleting or pod.is_terminal):
        return _failure(
            pod,
            FailureClass.DISRUPTION,
            pod.disruption.reason,
            pod.disruption.message or "the cluster took the pod away",
            time=pod.disruption.since or now,
            is_graceful=not pod.is_terminal,
        )
    if pod.phase == "Failed" and pod.reason:
        return _ended_by_kubelet(pod, now)
    if pod.exit is not None:
        return _from_exit(pod, pod.exit, job_uid=job_uid, now=now)
    return _lost(pod, now) if pod.is_deleting or pod.phase == "Failed" else None


def _lost(pod: ObservedPod, now: datetime) -> Failure:
    """A pod that somebody deletes, or that ended without saying how."""
    reason = "PodDeleted" if pod.is_deleting else "PodFailed"
    what = "it is being deleted" if pod.is_deleting else "it failed without an exit code"
    return _failure(
        pod, FailureClass.POD_LOST, reason, what, time=now, is_graceful=not pod.is_terminal
    )


def lost_pod(name: str, replica: int, now: datetime) -> Failure:
    """A pod that ran and is no longer there."""
    return Failure(
        failure_class=FailureClass.POD_LOST,
        reason="PodDeleted",
        message=f"Pod {name}: it was deleted while it ran",
        time=now,
        pod=name,
        replica=replica,
    )


def exit_record_of(pod: ObservedPod, ended: ContainerExit, job_uid: str) -> ExitRecord | None:
    """The record in the termination log, if it is one and of this life of the pod."""
    text = ended.termination_message
    if not text or len(text.encode()) > TERMINATION_LOG_BYTES_MAX:
        return None
    try:
        record = ExitRecord.model_validate_json(text)
    except ValidationError:
        return None
    is_ours = record.job_uid == job_uid and record.attempt == pod.attempt
    return record if is_ours and record.exit_code == ended.code else None


def class_of_exit(ended: ContainerExit) -> FailureClass:
    """The class of an exit that left no record."""
    if ended.reason == "OOMKilled":
        return FailureClass.OUT_OF_MEMORY
    if ended.code in set(CLASS_OF_CODE):
        return CLASS_OF_CODE[ExitCode(ended.code)]
    if ended.code in CODES_OF_PYTHON or ended.code > SIGNAL_BASE:
        return FailureClass.CRASH
    return FailureClass.UNKNOWN


def _from_exit(pod: ObservedPod, ended: ContainerExit, *, job_uid: str, now: datetime) -> Failure:
    record = exit_record_of(pod, ended, job_uid)
    if record is None:
        return _failure(
            pod,
            class_of_exit(ended),
            ended.reason if ended.reason not in ("", "Error") else class_of_exit(ended).value,
            _exit_sentence(ended),
            time=ended.finished_at or now,
        )
    return _failure(
        pod,
        record.failure_class or class_of_exit(ended),
        record.reason,
        record.message or _exit_sentence(ended),
        time=record.time,
        record=record,
    )


def _exit_sentence(ended: ContainerExit) -> str:
    if ended.code > SIGNAL_BASE:
        return f"its container was killed by signal {ended.code - SIGNAL_BASE} ({ended.reason})"
    return f"its container ended with exit code {ended.code} ({ended.reason}); its log says more"


def _ended_by_kubelet(pod: ObservedPod, now: datetime) -> Failure:
    """Evicted, preempted, shut down with its node, or refused by it; a volume that outgrew its own
    limit is the job's doing, all else is not."""
    is_own_doing = VOLUME_LIMIT_WORDS in pod.message
    failure_class = FailureClass.OUT_OF_MEMORY if is_own_doing else FailureClass.DISRUPTION
    return _failure(pod, failure_class, pod.reason, pod.message or pod.reason, time=now)


def _failure(
    pod: ObservedPod,
    failure_class: FailureClass,
    reason: str,
    what: str,
    *,
    time: datetime,
    is_graceful: bool = False,
    record: ExitRecord | None = None,
) -> Failure:
    advice = "" if record and record.message else _ADVICE.get(failure_class, "")
    place = f"Pod {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    return Failure(
        failure_class=failure_class,
        reason=reason,
        message=f"{place}: {what}" + (f"; {advice}" if advice else ""),
        time=time,
        pod=pod.name,
        replica=pod.replica,
        node=pod.node,
        is_graceful=is_graceful,
        exit_code=pod.exit.code if pod.exit else None,
        record=record,
    )


def _count(value: int | None) -> int | None:
    return None if value is None else figures.count(value)
