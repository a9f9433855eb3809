"""`LMTrainingJob.status`: what the operator says back.

Promise: every condition is present from the first visit, each with a reason a person can act on; a
value that can grow old comes with its time (P4). There is no `phase`: the reason of `Succeeded` is
the state.
Trap avoided: numbers for a human are short strings, since kubectl prints 14 digits of a raw float;
lists and texts are bounded, since status lives in etcd.
"""

from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field

from lmtraining_api.base import StatusModel
from lmtraining_api.conditions import (
    Accepted,
    Checkpointed,
    Condition,
    ConditionType,
    Count,
    DataReady,
    Healthy,
    Progressing,
    Scheduled,
    Succeeded,
)
from lmtraining_api.exits import ReadFailureClass
from lmtraining_api.fields import Frames, Message, Notice
from lmtraining_api.report_parts import LABELS_SHOWN_MAX, Label

__all__ = [
    "Accepted",
    "AppliedStatus",
    "Artifacts",
    "AvoidedNode",
    "CheckpointStatus",
    "Checkpointed",
    "Condition",
    "ConditionType",
    "DataReady",
    "Goodput",
    "Healthy",
    "LMTrainingJobStatus",
    "LastFailure",
    "LastRecovery",
    "LastRemedy",
    "Metrics",
    "Progress",
    "Progressing",
    "Restarts",
    "RobustnessStatus",
    "Scheduled",
    "StabilityStatus",
    "Succeeded",
]

Short = Annotated[str, Field(max_length=32)]
Path = Annotated[str, Field(max_length=1024)]
Reason = Annotated[str, Field(max_length=64)]


class Restarts(StatusModel):
    """New attempts and replaced pods so far."""

    total: Count = 0
    """All of them."""
    counted: Count = 0
    """Those that spend recovery.restartsMax."""
    by_reason: dict[ReadFailureClass, Count] = Field(default={}, max_length=16)
    """All, by class of the failure."""


class Progress(StatusModel):
    """How far training is."""

    step: Count = 0
    """Optimizer steps done, over all attempts."""
    total_steps: Count = 0
    """Optimizer steps of the budget."""
    percent: Short = ""
    """Share of the budget done, such as 42%."""
    eta: Short = ""
    """Time left at the present speed, such as 1h20m."""
    tokens: Count = 0
    """Training tokens seen."""
    step_time: AwareDatetime | None = None
    """When the newest step ended."""
    report_time: AwareDatetime | None = None
    """When the trainer last said all this."""


class Metrics(StatusModel):
    """The newest figures, as short strings."""

    loss: Short = ""
    """Training loss, nats per token."""
    validation_loss: Short = ""
    """Validation loss, nats per token."""
    validation_accuracy: Short = ""
    """Share of the validation examples whose label was said rightly, where the task has labels."""
    validation_f1: Short = ""
    """Macro F1 over the labels; of tags that of the entities."""
    cut_examples: Count = 0
    """Labelled examples that are longer than data.sequenceLength, and were cut."""
    unigram_loss: Short = ""
    """Validation loss of a unigram model, or of one that knows how often each label occurs: the
    baseline."""
    gradient_norm: Short = ""
    """Global gradient norm before clipping."""
    learning_rate: Short = ""
    """Learning rate of the newest step."""
    tokens_per_second: Short = ""
    """Training tokens per second, all ranks."""
    mfu: Short = ""
    """Model FLOP/s utilisation, such as 41.3%: the share of the devices' peak that the model takes;
    empty where the peak is not known, as on CPUs."""
    checkpoint_interval: Short = ""
    """Time between two checkpoints, such as 4m10s, where checkpoint.everySteps leaves it open."""
    checkpoint_cost: Short = ""
    """Seconds that a save takes from training, from which that is chosen."""
    time_between_faults: Short = ""
    """Time between two faults that end the ranks, such as 12d3h: the other thing it is chosen
    from."""
    precision: Short = ""
    """What precision.compute resolved to."""
    parameters: Count = 0
    """Trainable parameters."""
    update_ratio: Short = ""
    """Size of an update beside the weights', at the newest sampled step."""
    update_rms: Short = ""
    """Root mean square of Adam's update before the learning rate."""
    swallowed: Short = ""
    """Share of the weights whose updates Adam's epsilon swallows, such as 3%."""
    attention_logit_bound: Short = ""
    """No attention logit was larger at the newest sampled step."""
    activation_max: Short = ""
    """Largest absolute value that a block gave to the next."""
    noise_scale_tokens: Short = ""
    """Gradient noise scale in tokens: larger batches bring little."""


class Goodput(StatusModel):
    """Where the time went since the trainer first started, over all attempts and rounds; the parts
    add up to wallTime."""

    share: Short = ""
    """productive as a share of wallTime, such as 93%."""
    wall_time: Short = ""
    """Wall time until progress.reportTime."""
    productive: Short = ""
    """Optimizer steps that are part of the model."""
    startup: Short = ""
    """From the start of the ranks to the loop: they meet, prepare data, build the model."""
    compile: Short = ""
    """Warming up, the first step of each start included."""
    data_wait: Short = ""
    """Waiting for the next batch."""
    checkpoint: Short = ""
    """Time that saving took from the loop."""
    replayed_steps: Short = ""
    """Steps that a fault or a rewind has lost, and that are done again."""
    recovery: Short = ""
    """From the death of the ranks to their next start, and loading a checkpoint."""
    evaluation: Short = ""
    """Validation."""
    stopped: Short = ""
    """Told to stop (suspended, preempted), until the next start."""
    other: Short = ""
    """What is left: skipped batches, comparing replicas, reporting, the export."""


class RobustnessStatus(StatusModel):
    """The validation loss under one kind and strength of noise."""

    noise: Short
    """tokens: so many are replaced by random ones. embeddings: Gaussian noise is added."""
    level: Short
    """Share of the tokens, or standard deviation as a share of the embeddings' root mean square."""
    loss: Short = ""
    """Mean over the draws, nats per token."""
    deviation: Short = ""
    """Standard deviation over the draws."""
    failed: Short = ""
    """Share of the draws whose loss is not finite or above the unigram loss."""


class LastRemedy(StatusModel):
    """The newest thing that was done about a bad step."""

    remedy: Short
    """Skip, Rewind or Rerun."""
    fault: Short
    """What was found: NonFinite, LossSpike, ZeroGradient, Divergence, ExplodingUpdate,
    ReplicaDivergence or SilentCorruption; Requested, where a person asked for a rewind."""
    step: Count
    """Steps done when it was found."""
    to_step: Count | None = None
    """Of a rewind: the step of the healthy checkpoint that was loaded."""
    message: Message = ""
    """What was found, in numbers."""
    time: AwareDatetime
    """When it was done."""


class StabilityStatus(StatusModel):
    """Stability incidents so far."""

    skipped_steps: Count = 0
    """Bad batches that were skipped."""
    clipped_steps: Count = 0
    """Steps whose gradient was clipped below gradientClipNorm."""
    rewinds: Count = 0
    """Rewinds to a healthy checkpoint."""
    rate_scale: Short = ""
    """What rewinds have made of the learning rate, as a factor; empty while it is 1."""
    healthy_step: Count | None = None
    """The step of the newest healthy checkpoint: where a rewind would go."""
    notice: Message = ""
    """What is odd and nothing is done about, such as a loss that does not fall any more."""
    last_remedy: LastRemedy | None = None
    """The newest thing that was done about a bad step."""


class CheckpointStatus(StatusModel):
    """The newest intact checkpoint."""

    last_step: Count
    """Its step."""
    last_time: AwareDatetime
    """When it was published."""
    path: Path
    """Its directory, relative to the run directory."""
    size_bytes: Count = 0
    """Its size."""
    sha256: Annotated[str, Field(max_length=64)] = ""
    """SHA-256 of its manifest."""


class LastFailure(StatusModel):
    """The newest failure: the first one of its attempt, not what followed from it."""

    failure_class: ReadFailureClass
    """What kind it was."""
    reason: Reason
    """One CamelCase word."""
    message: Message = ""
    """One sentence: what failed, where, and what to do where that is known."""
    advice: Message = ""
    """What to do about failures of this class."""
    attempt: Count
    """The attempt that failed."""
    pod: Annotated[str, Field(max_length=253)] = ""
    """Its pod."""
    replaced_by: Annotated[str, Field(max_length=253)] = ""
    """The pod in its place, where the attempt goes on with the others."""
    node: Annotated[str, Field(max_length=253)] = ""
    """The node of that pod."""
    node_conditions: list[Annotated[str, Field(max_length=316)]] = Field(default=[], max_length=8)
    """What was wrong with that node: types of its conditions, and keys of its taints that take pods
    away. Only where the operator may read nodes."""
    node_fault: Message = ""
    """Which of them is about hardware, so that new pods keep away from the node."""
    rank: Count | None = None
    """The rank, where known."""
    step: Count | None = None
    """The step, where known."""
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Exit code of the container, where it had one."""
    frames: Frames = Field(default=[])
    """Where in the code: file:line function, innermost last."""
    time: AwareDatetime
    """When it was seen."""


class AvoidedNode(StatusModel):
    """A node that new pods of this job keep away from."""

    name: Annotated[str, Field(max_length=253)]
    """Its name."""
    reason: Message = ""
    """Why."""
    time: AwareDatetime
    """Since when."""


class LastRecovery(StatusModel):
    """How the newest failure was mended."""

    fault_time: AwareDatetime
    """When the failure was seen."""
    first_step_time: AwareDatetime
    """When the first optimizer step after it ended."""
    seconds: Short
    """From fault to first step."""
    load_seconds: Short = ""
    """Of these: to verify and load the checkpoint."""
    fault: Message = ""
    """What it was, where the ranks were started again inside their pods or a pod was replaced."""
    resumed_from_step: Count | None = None
    """The checkpoint it went on from; absent: from the start."""
    passed_over: Notice = ""
    """Newer checkpoints that were found broken, and what is wrong with them."""
    replayed_steps: Count = 0
    """Steps done again."""


class AppliedStatus(StatusModel):
    """What the ranks go by of what may be changed while they train, and what became of
    spec.requests."""

    generation: Count = 0
    """metadata.generation whose training.budget, checkpoint.everySteps and requests all ranks
    have followed."""
    checkpoint: Reason = ""
    """The newest requests.checkpoint that was saved."""
    checkpoint_step: Count | None = None
    """Its step."""
    rollback: Reason = ""
    """The newest requests.rollback that was made, or refused."""
    rollback_step: Count | None = None
    """The step that it went back to; absent where it was refused."""
    refusal: Message = ""
    """Why it was refused, with the steps that there are."""


class Artifacts(StatusModel):
    """What the run leaves behind."""

    claim: Annotated[str, Field(max_length=253)] = ""
    """PersistentVolumeClaim that holds the run directory."""
    uri: Annotated[str, Field(max_length=1024)] = ""
    """Or the object store that holds it."""
    run_directory: Path = ""
    """Run directory, relative to the root of the volume or to the uri."""
    export: Path = ""
    """Exported model, relative to the same; set when it is complete."""


def _known_conditions(value: object) -> object:
    """Without the conditions that only a newer operator knows."""
    if not isinstance(value, list):
        return value
    known = {kind.value for kind in ConditionType}
    return [c for c in value if not isinstance(c, dict) or c.get("type") in known]


STATUS_VERSION = 1
"""It counts up where an operator that does not know it would do harm: by a field that it would
leave out of what it writes, though another decision rests on it."""


class LMTrainingJobStatus(StatusModel):
    """What the operator says about the job."""

    schema_version: Count = STATUS_VERSION
    """Version of what is said here. An operator that knows only older ones leaves the job alone."""
    observed_generation: Count = 0
    """metadata.generation of the spec that this status is about."""
    start_time: AwareDatetime | None = None
    """When the job was first accepted."""
    first_placed_time: AwareDatetime | None = None
    """When all of its pods first had a node: until here it waited for room."""
    first_run_time: AwareDatetime | None = None
    """When all of its pods first ran: from here deadlines.runSeconds counts."""
    completion_time: AwareDatetime | None = None
    """When it ended, well or not."""
    conditions: Annotated[list[Condition], BeforeValidator(_known_conditions)] = Field(
        default=[],
        max_length=16,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    """The conditions; Succeeded is the summary."""
    attempt: Count = 0
    """Number of the gang of pods; written here before any pod of it exists."""
    round: Count = 0
    """Number of the start of the ranks within the attempt."""
    trainer_image: Annotated[str, Field(max_length=512)] = ""
    """Image of all pods of all attempts, fixed when the job begins."""
    next_attempt_time: AwareDatetime | None = None
    """When the next attempt, or the pod in the place of a lost one, starts, while waiting after a
    failure."""
    replaced_pods: dict[Short, Count] = Field(default={}, max_length=512)
    """How often the pod of a replica was replaced alone in this attempt, by replica; it is the last
    part of that pod's name, and written here before the pod exists."""
    waits_in_place: bool = False
    """Whether pods of the trainer image wait in place while one of them is replaced, as the first
    report says; an older image does not."""
    restarts: Restarts = Restarts()
    """New attempts and replaced pods so far."""
    progress: Progress = Progress()
    """How far training is."""
    metrics: Metrics = Metrics()
    """The newest figures."""
    goodput: Goodput = Goodput()
    """Where the time went."""
    labels: list[Label] = Field(default=[], max_length=LABELS_SHOWN_MAX + 1)
    """The labels of the training text, in the order of their numbers in the model; of many the
    first, of at most 32 characters each, and how many there are beside them."""
    robustness: list[RobustnessStatus] = Field(default=[], max_length=8)
    """What the finished model stands, where training.evaluation.robustness asks for it."""
    stability: StabilityStatus = StabilityStatus()
    """Stability incidents so far."""
    checkpoint: CheckpointStatus | None = None
    """The newest intact checkpoint."""
    last_failure: LastFailure | None = None
    """The newest failure."""
    hardware_faults: dict[Annotated[str, Field(max_length=253)], Count] = Field(
        default={}, max_length=64
    )
    """Failures of class Hardware so far, by node."""
    avoided_nodes: list[AvoidedNode] = Field(default=[], max_length=16)
    """Nodes that new pods keep away from: two hardware faults, one that the node itself tells of,
    or a rule with RetryElsewhere."""
    last_recovery: LastRecovery | None = None
    """How it was mended."""
    applied: AppliedStatus | None = None
    """What was changed or asked for while the job ran, as far as the ranks have followed."""
    artifacts: Artifacts = Artifacts()
    """What the run leaves behind."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it has been set."""
        return next((c for c in self.conditions if c.type is kind), None)

    @property
    def is_terminal(self) -> bool:
        """True once the job has ended; it never changes after that (P2).

        Asked of the condition's status and not of its reason, which a newer operator may have
        taken from a longer list.
        """
        summary = self.condition(ConditionType.SUCCEEDED)
        return summary is not None and summary.status != "Unknown"
