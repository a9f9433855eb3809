"""What does the end of a pod mean?

Promise: the failure that status names is the first one of its attempt, not what followed from it; a
disruption is never charged to the job. Traps avoided: the kubelet reports exit code 137 for an
eviction too, so the disruption is asked first; a pod that lost its peer ends as well, and so does
one whose peers told it to save and stop; it may be seen before the peer that caused it, so a mere
consequence is held back for a moment.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from lmtraining_api.exits import CLASS_OF_CODE, ExitCode, FailureClass
from lmtraining_api.names import TERMINATION_LOG_BYTES_MAX
from lmtraining_api.reasons import FAILURE_HELP
from lmtraining_api.records import ExitRecord
from lmtraining_api.status import ConditionType, LastFailure
from lmtraining_operator.plan import figures, gang
from lmtraining_operator.plan.manifests import SHARED_MEMORY_VOLUME
from lmtraining_operator.plan.model import GANG_INCOMPLETE, ContainerExit, ObservedPod
from lmtraining_operator.plan.obstacles import shortened
from lmtraining_operator.plan.situation import Situation

ROOT_CAUSE_WAIT_SECONDS = 5.0
"""How long a consequence is held back while another pod may still tell the cause."""

SIGNAL_BASE = 128
STOP_CODES = (SIGNAL_BASE + 9, SIGNAL_BASE + 15)
"""Of a container that was killed, or told to stop and died of it."""
EXIT_CODES = range(256)
CODES_OF_PYTHON = (1, 2)
STORAGE_LIMIT_WORDS = (
    "exceeds the limit",  # of an emptyDir
    "exceeds the total limit of containers",
    "exceeded its local ephemeral storage limit",
)
MEMORY_VOLUME = f'"{SHARED_MEMORY_VOLUME}"'
POD_DELETED = "PodDeleted"
_NO_RECORD = (
    "its container ended with exit code 0 and left no record of a finished run, so nothing says "
    "that it trained: check that workers.image is a trainer image, and correct it in a new job"
)

UNCOUNTED = frozenset({FailureClass.DISRUPTION, FailureClass.POD_LOST})
"""Classes that are nobody's fault of the job: they never spend recovery.restartsMax."""

_ADVICE = {
    FailureClass.OUT_OF_MEMORY: "raise workers.resources.memory or workers.sharedMemory, or "
    "training.gradientAccumulation",
    FailureClass.STORAGE: "check the storage of checkpoint.storage: free space, permissions",
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
    exit_code: int | None = None
    record: ExitRecord | None = None
    follows: bool = False
    """True where it points at what another pod of the gang did."""
    node_conditions: tuple[str, ...] = ()
    """What is wrong with its node."""
    node_fault: str = ""
    """What says that it is its hardware."""

    def as_status(self, situation: Situation) -> LastFailure:
        record = self.record
        log = _where_its_log_is(situation, self.pod)
        return LastFailure(
            failure_class=self.failure_class,
            reason=figures.bounded(self.reason, 64),
            message=figures.bounded(self.message, figures.MESSAGE_LENGTH_MAX - len(log)) + log,
            advice=FAILURE_HELP[self.failure_class].do.replace("`", ""),
            attempt=situation.attempt,
            pod=self.pod,
            node=self.node,
            node_conditions=[figures.bounded(name, 316) for name in self.node_conditions],
            node_fault=figures.bounded(self.node_fault),
            rank=_count(record.rank) if record else None,
            step=_count(record.step) if record else None,
            exit_code=self.exit_code if self.exit_code in EXIT_CODES else None,
            frames=record.frames if record else [],
            time=min(self.time, situation.now),
        )


def _where_its_log_is(situation: Situation, name: str) -> str:
    """The command that shows what a pod said that has ended and stays; empty for any other."""
    namespace = situation.job.metadata.namespace
    stays = any(
        pod.name == name and pod.exit is not None and not pod.is_deleting for pod in situation.gang
    )
    return f"; its log, while the pod is there: kubectl logs -n {namespace} {name}" if stays else ""


def first_failure(situation: Situation) -> Failure | None:
    """The failure that ended the attempt; None while there is none, or only a consequence whose
    cause may still show."""
    failures = all_failures(situation)
    causes = [failure for failure in failures if not failure.follows]
    if causes:
        return min(causes, key=lambda failure: (failure.time, failure.replica))
    if not failures:
        return _left_by_a_finished_pod(situation) or _incomplete_gang(situation)
    earliest = min(failures, key=lambda failure: (failure.time, failure.replica))
    if situation.is_replacing:
        return earliest  # of the pod that is being replaced
    waited = abs(situation.now - earliest.time)  # a node's clock, or ours, may have been set back
    cause_may_show = any(not (pod.is_terminal or pod.exit) for pod in situation.gang)
    if cause_may_show and waited < timedelta(seconds=ROOT_CAUSE_WAIT_SECONDS):
        return None
    return _silent_peer(situation, earliest.time) or earliest


def _silent_peer(situation: Situation, time: datetime) -> Failure | None:
    """The pod that the others have lost: it has not ended, and nobody hears of it."""
    lead_answers = situation.report is not None and not situation.observed.report.error
    for pod in situation.gang:
        is_heard = pod.replica == 0 and lead_answers
        if not (pod.is_terminal or pod.exit or is_heard):
            what = "its peers have lost it, and it has not ended: check its node and the network"
            return _failure(pod, FailureClass.POD_LOST, "PodSilent", what, time=time)
    return None


def _left_by_a_finished_pod(situation: Situation) -> Failure | None:
    """While a pod is being replaced, and until the new one trains with the others: one that has
    finished meanwhile, which the new pod would wait for in vain."""
    for pod in situation.gang if situation.awaits_gang else ():
        if has_finished(pod, situation.job.metadata.uid):
            what = "it has finished, and cannot meet the pod in the place of the lost one"
            time = situation.now
            return _failure(
                pod, FailureClass.POD_LOST, "PeerFinished", what, time=time, follows=True
            )
    return None


def _incomplete_gang(situation: Situation) -> Failure | None:
    """Pods that hold places, and so devices, for others that find none."""
    holders = [pod for pod in situation.gang if pod.node and pod.created_at]
    if situation.gang_was_complete or situation.gang_runs or not holders:
        return None
    unplaced = [pod for pod in situation.gang if pod.unschedulable_message]
    over_quota = [one for one in gang.refusals(situation) if one.is_over_quota]
    oldest = min(holders, key=lambda pod: (pod.created_at or situation.now, pod.replica))
    held_seconds = _held_seconds(situation, oldest)
    waits = unplaced or over_quota or situation.is_replacing
    if held_seconds < situation.spec.recovery.gang_timeout_seconds or not waits:
        return None
    why = f"pod {situation.replaced.replaced_by} has not started" if situation.replaced else ""
    why = over_quota[0].message if over_quota else why
    why = shortened(unplaced[0].unschedulable_message if unplaced else why)
    what = (
        f"it and {len(holders) - 1} more held their places for {held_seconds:.0f} s, and other "
        f"pods of the gang found none ({why}): all are released, and tried again later"
    )
    return _failure(oldest, FailureClass.DISRUPTION, GANG_INCOMPLETE, what, time=situation.now)


def _held_seconds(situation: Situation, pod: ObservedPod) -> float:
    """How long the pod has held its place for others: since it is there, or its gang is broken."""
    scheduled = situation.condition(ConditionType.SCHEDULED)
    times = [pod.created_at or situation.now]
    if scheduled is not None:
        times.append(scheduled.last_transition_time)
    return (situation.now - max(times)).total_seconds()


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
    if has_finished(pod, job_uid):
        return None
    if pod.disruption is not None and (pod.is_deleting or pod.is_terminal):
        return _failure(
            pod,
            FailureClass.DISRUPTION,
            pod.disruption.reason,
            pod.disruption.message or "the cluster took the pod away",
            time=pod.disruption.since or now,
        )
    if pod.phase == "Failed" and pod.reason:
        return _ended_by_kubelet(pod, now)
    if pod.exit is not None and not _was_stopped(pod, pod.exit):
        return _from_exit(pod, pod.exit, job_uid=job_uid, now=now)
    return _lost(pod, now) if pod.is_deleting or pod.phase == "Failed" else None


def has_finished(pod: ObservedPod, job_uid: str) -> bool:
    """Whether it has ended well, as its record says; it never comes back to train."""
    if pod.exit is None or pod.exit.code != ExitCode.FINISHED:
        return False
    return exit_record_of(pod, pod.exit, job_uid) is not None


def _was_stopped(pod: ObservedPod, ended: ContainerExit) -> bool:
    """Whether it ended because somebody deletes it, and its time to stop was too short to say so.
    Seen a moment earlier, it would be a deleted pod that still runs."""
    was_killed = ended.code in STOP_CODES and ended.reason != "OOMKilled"
    return pod.is_deleting and was_killed and not ended.termination_message


def after_its_save(situation: Situation) -> LastFailure | None:
    """The newest failure in better words, where a pod that was found to be deleted has told since
    that it saved a checkpoint first; else None. The failure is seen before the pod has ended."""
    known = situation.status.last_failure
    if known is None or known.failure_class is not FailureClass.POD_LOST:
        return None
    pods = situation.observed.pods if known.reason == POD_DELETED else ()
    pod = next((pod for pod in pods if pod.name == known.pod and pod.exit is not None), None)
    ended = pod.exit if pod is not None else None
    if pod is None or ended is None:
        return None
    record = exit_record_of(pod, ended, situation.job.metadata.uid)
    if record is None or record.exit_code != ExitCode.PREEMPTED:
        return None
    said = _from_exit(pod, ended, job_uid=situation.job.metadata.uid, now=situation.now)
    changes = {
        "failure_class": FailureClass.DISRUPTION,
        "reason": said.reason,
        "message": figures.bounded(said.message),
        "advice": FAILURE_HELP[FailureClass.DISRUPTION].do,
        "step": _count(record.step),
        "exit_code": said.exit_code,
    }
    return known.model_copy(update=changes)


def _lost(pod: ObservedPod, now: datetime) -> Failure:
    """A pod that somebody deletes, or that ended without saying how."""
    reason = POD_DELETED if pod.is_deleting else "PodFailed"
    what = "it is being deleted" if pod.is_deleting else "it failed without an exit code"
    return _failure(pod, FailureClass.POD_LOST, reason, what, time=now)


def lost_pod(name: str, replica: int, now: datetime) -> Failure:
    """A pod that ran and is no longer there."""
    return Failure(
        failure_class=FailureClass.POD_LOST,
        reason=POD_DELETED,
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


def lead_exit_record(situation: Situation) -> ExitRecord | None:
    """What the lead pod of this attempt left when it ended."""
    lead = situation.lead
    if lead is None or lead.exit is None:
        return None
    return exit_record_of(lead, lead.exit, situation.job.metadata.uid)


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
        reason = ended.reason if ended.reason not in ("", "Error") else class_of_exit(ended).value
        return _failure(
            pod,
            class_of_exit(ended),
            "FinishedWithoutRecord" if ended.code == ExitCode.FINISHED else reason,
            _exit_sentence(ended),
            time=ended.finished_at or now,
            follows=class_of_exit(ended).is_consequence,
        )
    failure_class = record.failure_class or class_of_exit(ended)
    was_told_by_peers = ended.code == ExitCode.PREEMPTED and not pod.is_deleting
    return _failure(
        pod,
        failure_class,
        record.reason,
        record.message or _exit_sentence(ended),
        time=record.time,
        record=record,
        follows=failure_class.is_consequence or was_told_by_peers,
    )


def _exit_sentence(ended: ContainerExit) -> str:
    if ended.code == ExitCode.FINISHED:
        return _NO_RECORD
    if ended.code > SIGNAL_BASE:
        return f"its container was killed by signal {ended.code - SIGNAL_BASE} ({ended.reason})"
    return f"its container ended with exit code {ended.code} ({ended.reason})"


def _ended_by_kubelet(pod: ObservedPod, now: datetime) -> Failure:
    """Evicted, preempted, shut down with its node, or refused by it; storage that outgrew the pod's
    own limit is the job's doing, all else is not."""
    failure_class = FailureClass.DISRUPTION
    if any(words in pod.message for words in STORAGE_LIMIT_WORDS):
        is_memory = MEMORY_VOLUME in pod.message
        failure_class = FailureClass.OUT_OF_MEMORY if is_memory else FailureClass.CRASH
    return _failure(pod, failure_class, pod.reason, pod.message or pod.reason, time=now)


def _failure(
    pod: ObservedPod,
    failure_class: FailureClass,
    reason: str,
    what: str,
    *,
    time: datetime,
    record: ExitRecord | None = None,
    follows: bool = False,
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
        exit_code=pod.exit.code if pod.exit else None,
        record=record,
        follows=follows,
    )


def _count(value: int | None) -> int | None:
    return None if value is None else figures.count(value)
