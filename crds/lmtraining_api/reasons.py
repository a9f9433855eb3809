"""What each reason in status means and what a person does about it.

Promise: every reason and every failure class has an entry, so that the reference and the CLI can
explain whatever status shows (P4); a test keeps this total.
Trap avoided: an explanation beside the code that sets a reason is read by nobody at night.
"""

from enum import StrEnum
from typing import NamedTuple

from lmtraining_api.exits import FailureClass
from lmtraining_api.names import ANNOTATION_PAUSED
from lmtraining_api.status import (
    Accepted,
    Checkpointed,
    ConditionType,
    DataReady,
    Healthy,
    Progressing,
    Scheduled,
    Succeeded,
)


class Help(NamedTuple):
    """A meaning and what to do."""

    means: str
    do: str = "Nothing; it passes by itself."


REASONS_OF: dict[ConditionType, type[StrEnum]] = {
    ConditionType.SUCCEEDED: Succeeded,
    ConditionType.ACCEPTED: Accepted,
    ConditionType.DATA_READY: DataReady,
    ConditionType.SCHEDULED: Scheduled,
    ConditionType.PROGRESSING: Progressing,
    ConditionType.HEALTHY: Healthy,
    ConditionType.CHECKPOINTED: Checkpointed,
}

QUESTION_OF: dict[ConditionType, str] = {
    ConditionType.SUCCEEDED: "Is the run finished and exported? Unknown while it is active; its "
    "reason is the STATE column.",
    ConditionType.ACCEPTED: "Can this version run this spec, and may it?",
    ConditionType.DATA_READY: "Is the data prepared and readable?",
    ConditionType.SCHEDULED: "Are all pods of the attempt placed and started?",
    ConditionType.PROGRESSING: "Does the step advance?",
    ConditionType.HEALTHY: "Is there no open stability incident?",
    ConditionType.CHECKPOINTED: "Is an intact checkpoint there, and is it not older than promised?",
}

_LOOK = "Read the condition's message"

#: By condition first: two conditions may share a word.
REASON_HELP: dict[ConditionType, dict[str, Help]] = {
    ConditionType.SUCCEEDED: {
        Succeeded.PENDING: Help(
            "No pod of the job runs yet.", "Read `Scheduled`: its message says what is missing."
        ),
        Succeeded.PREPARING: Help("The tokenizer is trained and the text is packed into tokens."),
        Succeeded.STARTING: Help("The ranks start, meet and build the model."),
        Succeeded.TRAINING: Help("Optimizer steps are made.", "Nothing."),
        Succeeded.STALLED: Help(
            "The trainer answers, but the step has not advanced for too long.",
            "If it lasts, look at the pod's log: storage, a slow source or a hung device.",
        ),
        Succeeded.UNREACHABLE: Help(
            "The lead pod does not answer; training may go on. Figures in status are old.",
            "Check the NetworkPolicy and the node of the lead pod.",
        ),
        Succeeded.RECOVERING: Help(
            "A failure is being mended: the ranks, one pod or a new attempt wait or start.",
            "Read `status.lastFailure`; if it comes again, mend the cause.",
        ),
        Succeeded.SUSPENDING: Help(
            "`spec.suspend` is true; the pods save a checkpoint and stop, within "
            "`recovery.graceSeconds`."
        ),
        Succeeded.SUSPENDED: Help(
            "`spec.suspend` is true; a checkpoint is saved and the devices are free.",
            "Set `spec.suspend` to false to go on.",
        ),
        Succeeded.PAUSED: Help(
            f"The annotation `{ANNOTATION_PAUSED}` keeps the operator's hands off the job: pods "
            "that run train on, and nobody watches them; figures in status are old.",
            f"`kubectl annotate lmtj NAME {ANNOTATION_PAUSED}-` lets the operator go on.",
        ),
        Succeeded.COMPLETED: Help(
            "All steps are done and the model is exported.",
            "Fetch the export that `status.artifacts` names.",
        ),
        Succeeded.FAILED: Help(
            "The job has ended: no budget was left, or trying again cannot help.",
            "Read `status.lastFailure`, mend the cause, make a new job; with `checkpoint.path` and "
            "`existingRun: Resume` it goes on from the newest checkpoint.",
        ),
        Succeeded.DIVERGED: Help(
            "More steps were not finite than `stability.skippedStepsMax` allows.",
            "Lower `optimizer.learningRate`, raise `schedule.warmupFraction` or look at the data.",
        ),
        Succeeded.DEADLINE_EXCEEDED: Help(
            "A time in `spec.deadlines` is over. While the status is Unknown the pods still save a "
            "checkpoint and stop.",
            f"{_LOOK}. While the pods stop, a longer deadline lets the job go on; afterwards make "
            "a new job, which with `checkpoint.path` and `existingRun: Resume` goes on from the "
            "newest checkpoint.",
        ),
    },
    ConditionType.ACCEPTED: {
        Accepted.VALID: Help("This version runs this spec.", "Nothing."),
        Accepted.UNSUPPORTED: Help(
            "The spec asks for what this version cannot do.",
            f"{_LOOK} and change the field it names, or upgrade the operator.",
        ),
        Accepted.INVALID: Help(
            "The spec contradicts itself or the cluster.",
            f"{_LOOK} and change the field it names.",
        ),
        Accepted.NOT_ALLOWED: Help(
            "The spec asks for an image, a place or a service account that the administrator of "
            "this installation does not allow.",
            f"{_LOOK} and use what it names, or ask the administrator to extend the chart's "
            "`allowed` values.",
        ),
        Accepted.PAUSED: Help(
            f"The annotation `{ANNOTATION_PAUSED}` keeps the operator's hands off the job: its "
            "pods train on, nothing is mended, and status is as old as it says.",
            f"`kubectl annotate lmtj NAME {ANNOTATION_PAUSED}-` lets the operator go on.",
        ),
    },
    ConditionType.DATA_READY: {
        DataReady.PENDING: Help(
            "Nobody has looked at the data yet: no pod runs, or its ranks still start."
        ),
        DataReady.PREPARING: Help("The tokenizer is trained and the text is packed into tokens."),
        DataReady.READY: Help("Every rank can read its tokens.", "Nothing."),
        DataReady.FAILED: Help(
            "The data could not be read or holds too little text.",
            f"{_LOOK}: check `data.train[].uri`, its credentials and its format.",
        ),
    },
    ConditionType.SCHEDULED: {
        Scheduled.PENDING: Help("The pods are about to be made."),
        Scheduled.QUEUED: Help(
            "The queue of `spec.queue` has not let the pods go.",
            f"{_LOOK}: wait, or look at the queue: `kubectl get workloads,localqueues`.",
        ),
        Scheduled.UNSCHEDULABLE: Help(
            "No node fits a pod.",
            f"{_LOOK}: free or add nodes, or lower `workers.resources` or `workers.replicas`.",
        ),
        Scheduled.QUOTA_EXCEEDED: Help(
            "The namespace's quota refuses a pod or a volume.",
            "Raise the ResourceQuota, free some of it, or ask for less in `workers`.",
        ),
        Scheduled.IMAGE_PULL_FAILED: Help(
            "A node cannot pull the trainer image.",
            "Check `workers.image`, its registry and the pull secrets of the service account.",
        ),
        Scheduled.VOLUME_NOT_READY: Help(
            "The storage cannot be bound or mounted.",
            "Check the storage class and access mode of the claim in `status.artifacts.claim`.",
        ),
        Scheduled.CONTAINER_NOT_CREATED: Help(
            "The kubelet cannot start a container: a Secret is missing, or the image has no such "
            "command.",
            f"{_LOOK}: make the Secret it names, or correct `workers.image` in a new job.",
        ),
        Scheduled.CREATE_REFUSED: Help(
            "The API server refuses to make an object of the job; it is tried again.",
            f"{_LOOK}: mostly a policy of the namespace or a missing right of the operator.",
        ),
        Scheduled.NAME_TAKEN: Help(
            "An object of the same name exists and belongs to something else.",
            "Delete that object, or give the job another name.",
        ),
        Scheduled.STARTING: Help("The pods are placed; their containers start."),
        Scheduled.SCHEDULED: Help("All pods of the attempt run.", "Nothing."),
        Scheduled.SUSPENDED: Help(
            "No pods, as `spec.suspend` is true.", "Set `spec.suspend` to false to go on."
        ),
        Scheduled.STOPPING: Help(
            "The pods save a checkpoint and stop, since `deadlines.runSeconds` is over.",
            "Raise `deadlines.runSeconds` now to go on; otherwise nothing.",
        ),
        Scheduled.FINISHED: Help("No pods, as the job has ended.", "Nothing."),
    },
    ConditionType.PROGRESSING: {
        Progressing.NOT_STARTED: Help("No step of this attempt is done yet."),
        Progressing.UNKNOWN: Help(
            "This version of the operator cannot read the spec, or the job is paused; the pods "
            "train on, and nobody watches them.",
            "Read `Accepted`: it says what to do.",
        ),
        Progressing.STEPPING: Help("Steps are made.", "Nothing."),
        Progressing.EVALUATING: Help("The model is validated; steps go on after it."),
        Progressing.CHECKPOINTING: Help("A checkpoint is written; steps go on after it."),
        Progressing.EXPORTING: Help("All steps are done; the model is written."),
        Progressing.STALLED: Help(
            "The trainer answers, but the step has not advanced for too long.",
            "If it lasts, look at the pod's log: storage, a slow source or a hung device.",
        ),
        Progressing.UNREACHABLE: Help(
            "The lead pod does not answer; training may go on. Figures in status are of "
            "`progress.reportTime`.",
            "Check the NetworkPolicy and the node of the lead pod.",
        ),
        Progressing.FINISHED: Help("The job has ended.", "Nothing."),
    },
    ConditionType.HEALTHY: {
        Healthy.UNKNOWN: Help("No report of this attempt yet."),
        Healthy.STABLE: Help("Every recent step was good.", "Nothing."),
        Healthy.SKIPPING: Help(
            "Bad batches were skipped; the parameters are untouched. It ends after "
            "`stability.healthySteps` good steps.",
            "Look at `stability.lastRemedy`. If `stability.skippedSteps` grows, lower "
            "`optimizer.learningRate`.",
        ),
        Healthy.REWINDING: Help(
            "The run went back to a healthy checkpoint and round the data before the fault. It "
            "ends after `stability.healthySteps` good steps.",
            "Look at `stability.lastRemedy`. If it comes again, lower `optimizer.learningRate` or "
            "look at the data.",
        ),
        Healthy.STRAGGLER: Help(
            "A rank is far slower than the others at what it does alone, and all wait for it. It "
            "ends with the first comparison that is good again.",
            f"{_LOOK}: look at the node of the pod it names (CPU throttling, other load, heat), or "
            "drain it and delete the pod.",
        ),
        Healthy.REPLICA_DIVERGENCE: Help(
            "A rank's parameters were not those of the others; all went back to a healthy "
            "checkpoint.",
            "`stability.lastRemedy` names the rank: test its device and memory.",
        ),
    },
    ConditionType.CHECKPOINTED: {
        Checkpointed.NONE_YET: Help(
            "No checkpoint is intact yet: a failure now would start again from step 0."
        ),
        Checkpointed.FRESH: Help("The newest intact checkpoint is as new as promised.", "Nothing."),
        Checkpointed.STALE: Help(
            "The newest intact checkpoint is more than two intervals old (`checkpoint.everySteps`; "
            "where that is left out, `metrics.checkpointInterval`).",
            "If it lasts, look at the storage's speed and the pod's log.",
        ),
        Checkpointed.FAILING: Help(
            "The newest save failed, was left out or does not end; training goes on.",
            f"{_LOOK}: mend the storage, or save less often.",
        ),
        Checkpointed.STORAGE_FULL: Help(
            "The newest save found no space left; training goes on, and the checkpoints before it "
            "stay.",
            f"{_LOOK}: free space on the volume, enlarge it, or lower `checkpoint.keepLast` in a "
            "new job.",
        ),
    },
}

FAILURE_HELP: dict[FailureClass, Help] = {
    FailureClass.CONFIGURATION: Help(
        "The job asks for what cannot work.", "Change the field that the message names."
    ),
    FailureClass.DATA: Help(
        "The text cannot be read, or there is too little of it.",
        "Check the sources, their credentials and format.",
    ),
    FailureClass.DIVERGED: Help(
        "Too many steps were not finite.", "Lower the learning rate or look at the data."
    ),
    FailureClass.OUT_OF_MEMORY: Help(
        "Device or host memory ran out.",
        "Raise `training.gradientAccumulation` (smaller micro-batches) or "
        "`workers.resources.memory`.",
    ),
    FailureClass.HANG: Help(
        "A rank was silent for too long.", "Look at the frames: a collective, a device or storage."
    ),
    FailureClass.HARDWARE: Help("A device reported an error.", "Drain and check the node."),
    FailureClass.STORAGE: Help(
        "The run directory could not be read or written.", "Check the volume and its free space."
    ),
    FailureClass.PEER_LOST: Help(
        "Another pod of the gang went away; that pod's failure is the cause.",
        "Read the failure of that pod.",
    ),
    FailureClass.CRASH: Help(
        "A rank raised an error or was killed.",
        "Look at the frames and the pod's log; `lastFailure.message` ends with the command.",
    ),
    FailureClass.DISRUPTION: Help(
        "The pod was preempted, drained, evicted or told to stop; never counted against "
        "`recovery.restartsMax`.",
        "Nothing.",
    ),
    FailureClass.POD_LOST: Help(
        "The pod is gone, or its node is, and it left no record.", "Check the node."
    ),
    FailureClass.UNKNOWN: Help(
        "The container ended in a way that no record explains.",
        "Look at the pod's log; `lastFailure.message` ends with the command.",
    ),
}
