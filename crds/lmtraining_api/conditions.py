"""The conditions of a job, and the reasons that each can have.

Promise: the reason of `Succeeded` is the state of the job; each reason is one a person can act on.
Trap avoided: a newer operator may give a reason that is not here, so `Condition.reason` is a text,
and what matters for good is asked of its status.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from lmtraining_api.base import StatusModel
from lmtraining_api.fields import Message

#: A whole number that JSON carries exactly.
Count = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]


class ConditionType(StrEnum):
    """The conditions, in the order in which a job meets them."""

    SUCCEEDED = "Succeeded"
    ACCEPTED = "Accepted"
    DATA_READY = "DataReady"
    SCHEDULED = "Scheduled"
    PROGRESSING = "Progressing"
    HEALTHY = "Healthy"
    CHECKPOINTED = "Checkpointed"


class Succeeded(StrEnum):
    """Reasons of Succeeded: the state of the job. Unknown while active."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    STARTING = "Starting"
    TRAINING = "Training"
    STALLED = "Stalled"
    UNREACHABLE = "Unreachable"
    RECOVERING = "Recovering"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    PAUSED = "Paused"
    COMPLETED = "Completed"
    FAILED = "Failed"
    DIVERGED = "Diverged"
    DEADLINE_EXCEEDED = "DeadlineExceeded"

    @property
    def is_terminal(self) -> bool:
        return self in _ENDS


_ENDS = frozenset(
    {
        Succeeded.COMPLETED,
        Succeeded.FAILED,
        Succeeded.DIVERGED,
        Succeeded.DEADLINE_EXCEEDED,
    }
)


class Accepted(StrEnum):
    """Reasons of Accepted: does the operator run this spec?"""

    VALID = "Valid"
    UNSUPPORTED = "Unsupported"
    INVALID = "Invalid"
    NOT_ALLOWED = "NotAllowed"
    PAUSED = "Paused"


class DataReady(StrEnum):
    """Reasons of DataReady: is the data prepared and readable?"""

    PENDING = "Pending"
    PREPARING = "Preparing"
    READY = "Ready"
    FAILED = "Failed"


class Scheduled(StrEnum):
    """Reasons of Scheduled: are all pods of the attempt placed and started?"""

    PENDING = "Pending"
    QUEUED = "Queued"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    VOLUME_NOT_READY = "VolumeNotReady"
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    CREATE_REFUSED = "CreateRefused"
    NAME_TAKEN = "NameTaken"
    STARTING = "Starting"
    SCHEDULED = "Scheduled"
    SUSPENDED = "Suspended"
    STOPPING = "Stopping"
    FINISHED = "Finished"


class Progressing(StrEnum):
    """Reasons of Progressing: does the step advance?"""

    NOT_STARTED = "NotStarted"
    UNKNOWN = "Unknown"
    STEPPING = "Stepping"
    EVALUATING = "Evaluating"
    CHECKPOINTING = "Checkpointing"
    EXPORTING = "Exporting"
    STALLED = "Stalled"
    UNREACHABLE = "Unreachable"
    FINISHED = "Finished"


class Healthy(StrEnum):
    """Reasons of Healthy: is there no open stability incident?"""

    UNKNOWN = "Unknown"
    STABLE = "Stable"
    SKIPPING = "Skipping"
    REWINDING = "Rewinding"
    STRAGGLER = "Straggler"
    REPLICA_DIVERGENCE = "ReplicaDivergence"


class Checkpointed(StrEnum):
    """Reasons of Checkpointed: is a checkpoint not older than promised intact?"""

    NONE_YET = "NoneYet"
    FRESH = "Fresh"
    STALE = "Stale"
    FAILING = "Failing"
    STORAGE_FULL = "StorageFull"


class Condition(StatusModel):
    """One observation about the job, as in metav1.Condition."""

    type: ConditionType
    """What is observed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """One CamelCase word."""
    message: Message = ""
    """One sentence for a person: what, where, and what to do."""
    last_transition_time: AwareDatetime
    """When status last changed."""
    observed_generation: Count
    """metadata.generation that this was said about."""
