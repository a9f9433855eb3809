"""The records that cross between operator and trainer, and between two lives of a run.

Promise: intent goes down, reports come up, nothing else crosses. Each record carries the identity
(job UID, attempt, round) that lets its reader refuse one from another life.
Trap avoided: JSON has no NaN, so a value that is not finite is absent and a flag says so; and no
record has room for training text or raw output (P11).
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BeforeValidator, Field

from lmtraining_api.base import Record, StatusModel
from lmtraining_api.exits import ReadExitCode, ReadFailureClass
from lmtraining_api.fields import (
    FRAMES_MAX,
    MESSAGE_LENGTH_MAX,
    NOTICE_LENGTH_MAX,
    REASON_PATTERN,
    Frames,
    Message,
    Notice,
    first,
)
from lmtraining_api.job import TrainingSpec
from lmtraining_api.report_parts import (
    HUNG_RANKS_MAX,
    LABELS_SHOWN_MAX,
    ROBUSTNESS_MAX,
    CheckpointReport,
    FaultReport,
    IntervalReport,
    Labels,
    PathInRun,
    RankHealth,
    RankScore,
    RankStack,
    RemedyReport,
    RobustnessReport,
    RobustnessReports,
    TimeAccounts,
    Word,
)
from lmtraining_api.wishes import Applied, Wishes

__all__ = [
    "FRAMES_MAX",
    "HUNG_RANKS_MAX",
    "MESSAGE_LENGTH_MAX",
    "NOTICE_LENGTH_MAX",
    "RANKS_REPORTED_MAX",
    "ROBUSTNESS_MAX",
    "CheckpointReport",
    "ExitRecord",
    "FaultReport",
    "Intent",
    "IntervalReport",
    "JobFile",
    "JournalEntry",
    "Message",
    "Peer",
    "RankHealth",
    "RankScore",
    "RankStack",
    "RemedyReport",
    "RobustnessReport",
    "State",
    "TimeAccounts",
    "TrainerReport",
    "gang_digest",
]

#: A pod has no more, and reports its own.
RANKS_REPORTED_MAX = 64
SLOWEST_RANKS_MAX = 8
REPLICAS_MAX = 512

Uid = Annotated[str, Field(max_length=64)]
PodName = Annotated[str, Field(max_length=253)]
Directory = Annotated[str, Field(max_length=1024)]
PlaceUri = Annotated[str, Field(max_length=2048)]


class JobFile(Record):
    """Job file: what a pod is to do, immutable (ConfigMap, or local). What is left at its default
    may be absent."""

    job_name: PodName
    namespace: PodName
    job_uid: Uid
    run_directory: Directory
    """Absolute path at which every pod of the job sees the run directory."""
    data_cache_directory: Directory
    """Absolute path of the prepared data, shared by all jobs of the same storage."""
    run_uri: PlaceUri = ""
    """The run directory in the object store of checkpoint.storage.uri; empty on a volume, which all
    pods see at `run_directory`."""
    data_cache_uri: PlaceUri = ""
    """The prepared data there."""
    spec: TrainingSpec


class Peer(StatusModel):
    """One pod of the gang."""

    replica: int = Field(ge=0)
    """Index of the pod; 0 leads."""
    pod_uid: Uid
    address: Annotated[str, Field(max_length=64)]
    """Pod IP."""


class Intent(Record):
    """What the operator wants of a pod now; level-triggered, so reading it twice is harmless.

    A complete peer table (one entry per replica) is the starting gun; until then a pod waits.
    """

    job_uid: Uid
    attempt: int = Field(ge=1)
    generation: int = Field(ge=1)
    """metadata.generation of the job that this intent was made from."""
    peers: list[Peer] = Field(default=[], max_length=REPLICAS_MAX)
    wishes: Wishes | None = None
    """What may change while the pods run; absent from an older operator."""


def gang_digest(pod_uids: Iterable[str]) -> str:
    """A name for a gang of exactly these pods."""
    return sha256("\n".join(sorted(pod_uids)).encode()).hexdigest()[:16]


State = Literal[
    "Waiting",  # for the peer table
    "Preparing",  # tokenizer and packed tokens
    "Starting",  # ranks start, meet, build the model
    "Loading",  # a checkpoint
    "Training",
    "Evaluating",
    "Checkpointing",
    "Exporting",
    "Finished",
    "Stopping",  # told to stop, saving
    "Failed",
    "Unknown",  # a newer trainer's word that this reader does not know; never written
]
Precision = Literal["fp32", "bf16"]


class ExitRecord(Record):
    """Why a pod ended (termination log and run directory).

    The message is our own text; of a foreign exception only its type and frames are kept, since its
    text may quote data.
    """

    job_uid: Uid
    attempt: int
    round: int
    replica: int
    pod_name: PodName = ""
    exit_code: ReadExitCode
    failure_class: ReadFailureClass | None = None
    """Absent when finished."""
    reason: Annotated[str, Field(max_length=64, pattern=REASON_PATTERN)]
    """One CamelCase word."""
    message: Message = ""
    rank: int | None = None
    """The rank that failed first."""
    step: int | None = None
    exception_type: Annotated[str, Field(max_length=128)] | None = None
    frames: Frames = Field(default=[])
    """file:line function, innermost last."""
    time: AwareDatetime

    tokens: int | None = None
    """Of a finished run, like the rest below: the last report may have been pulled before its end.
    Training tokens seen."""
    loss: float | None = None
    """Training loss of the last step."""
    validation_loss: float | None = None
    """Validation loss after the last step."""
    validation_accuracy: float | None = None
    """The same of the accuracy, where the task has labels."""
    validation_f1: float | None = None
    """The same of the F1."""
    checkpoint: CheckpointReport | None = None
    """The newest intact checkpoint."""
    export_path: PathInRun | None = None
    """Directory of the exported model, relative to the run directory."""
    accounts: TimeAccounts | None = None
    """Where the time went."""
    robustness: RobustnessReports = Field(default=[])
    """What the model stands, where that was asked for."""


class TrainerReport(Record):
    """What the lead pod answers to GET /report. At most 64 KiB."""

    job_uid: Uid
    attempt: int
    round: int
    state: Annotated[
        State, BeforeValidator(lambda word: word if word in get_args(State) else "Unknown")
    ]
    message: Message = ""
    """Progress of a state without steps: "tokenised 12 of 40 MB"."""
    report_time: AwareDatetime

    step: int = 0
    """Optimizer steps done, over all attempts."""
    total_steps: int = 0
    tokens: int = 0
    """Training tokens seen, over all attempts, without replays."""
    step_time: AwareDatetime | None = None
    """When the newest step ended."""
    eta_seconds: float | None = None

    loss: float | None = None
    """Mean cross-entropy of the newest step, nats per token."""
    loss_is_finite: bool = True
    validation_loss: float | None = None
    validation_step: int | None = None
    validation_accuracy: float | None = None
    """Share of the validation examples whose label was said rightly, where the task has labels."""
    validation_f1: float | None = None
    """Macro F1 over the labels; of tags that of the entities."""
    labels: Labels = Field(default=[], max_length=LABELS_SHOWN_MAX + 1)
    """What a text can be said to be, by number; of many the first, and how many there are beside
    them."""
    cut_examples: int | None = None
    """Labelled examples that are longer than data.sequenceLength, and were cut."""
    robustness: RobustnessReports = Field(default=[])
    """What the model stands, where that was asked for; known at the end of the run."""
    unigram_loss: float | None = None
    """Validation loss of a unigram model of the training tokens: the baseline to beat."""
    gradient_norm: float | None = None
    """Global norm before clipping, newest step."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    """Over the last steps, replays included, waits excluded."""
    mfu: float | None = None
    """Model FLOP/s utilisation at that speed, a ratio; None where the device has no known peak."""
    precision: Annotated[
        Precision | None,
        BeforeValidator(lambda word: word if word in get_args(Precision) else None),
    ] = None
    """What precision.compute resolved to."""
    parameters: int | None = None
    """Trainable parameters."""
    zero_share: float | None = None
    """Share of the decaying weights that are exactly zero, at the end, where the job asked for
    sparsity."""

    skipped_steps: int = 0
    """Bad batches that were skipped, over all attempts."""
    clipped_steps: int = 0
    """Steps whose gradient was clipped below gradientClipNorm, over all attempts."""
    rewinds: int = 0
    """Rewinds to a healthy checkpoint, over all attempts."""
    rate_scale: float = 1.0
    """What rewinds have made of the learning rate."""
    is_stable: bool = True
    """False from a remedy until as many good steps as make a checkpoint healthy."""
    update_ratio: float | None = None
    """Of the newest sampled step, like the five below: size of the update beside the weights'."""
    update_rms: float | None = None
    """Root mean square of Adam's update before the learning rate."""
    swallowed_share: float | None = None
    """Share of the weights whose second moment has a root below Adam's epsilon."""
    attention_logit_bound: float | None = None
    """No attention logit of the probed sequences was larger."""
    activation_max: float | None = None
    """Largest absolute value that a block gave to the next."""
    noise_scale_tokens: float | None = None
    """Gradient noise scale: larger batches bring little."""
    notice: Notice = ""
    """What is odd and nothing is done about; empty when all is usual."""
    last_remedy: RemedyReport | None = None
    """The newest thing that was done about a bad step."""

    time_seconds: dict[Word, float] = Field(default={}, max_length=32)
    """Seconds of this attempt by state, since the supervisor started; adds up to its wall time."""
    accounts: TimeAccounts | None = None
    """Where the time of the run went, over all attempts and rounds, to the second."""
    resumed_from_step: int | None = None
    """The checkpoint this attempt loaded; absent when it began at step 0."""
    passed_over: Notice = ""
    """Newer checkpoints that were found broken then, and what is wrong with them."""
    load_seconds: float | None = None
    """Time to find, verify and load that checkpoint."""
    replayed_steps: int = 0
    """Steps that an earlier attempt had already done and this one did again."""
    first_step_time: AwareDatetime | None = None
    """When the first optimizer step of this round ended."""

    checkpoint: CheckpointReport | None = None
    """The newest intact checkpoint."""
    checkpoint_interval: IntervalReport | None = None
    """Absent where checkpoint.everySteps is given."""
    healthy_step: int | None = None
    """The step of the newest healthy one: where a rewind would go."""
    checkpoint_error: Message = ""
    """Why the newest save failed, was left out or does not end; empty when all is well."""
    storage_is_full: bool = False
    """Whether that is want of space."""
    export_path: PathInRun | None = None
    """Directory of the exported model, relative to the run directory."""
    last_fault: FaultReport | None = None
    """Why the ranks were started again in this attempt."""
    ranks: Annotated[list[RankHealth], BeforeValidator(first(RANKS_REPORTED_MAX))] = Field(
        default=[], max_length=RANKS_REPORTED_MAX
    )
    slowest_ranks: Annotated[list[RankScore], BeforeValidator(first(SLOWEST_RANKS_MAX))] = Field(
        default=[], max_length=SLOWEST_RANKS_MAX
    )
    """Of all pods, the slowest first, as of the newest comparison of this round; empty for a rank
    alone."""
    applied: Applied | None = None
    """What of the intent's wishes the ranks go by; absent until they have been read, and from an
    older trainer."""
    last_exit: ExitRecord | None = None
    """How the attempt before this one ended, from the run directory."""
    gang: Annotated[str, Field(max_length=64)] = ""
    """Digest of the pods in the peer table: on the lead that of its round, on the others the newest
    one read. Only pods of one digest meet."""


class JournalEntry(Record):
    """One line of the run's append-only journal, written and synced before the act it describes."""

    sequence: int = Field(ge=0)
    time: AwareDatetime
    attempt: int
    round: int
    kind: Literal[
        "Started",  # an attempt begins
        "Resolved",  # what an `auto` became
        "Pretrained",  # the weights that the run goes on from, by their SHA-256
        "Loaded",  # a checkpoint was loaded
        "Rejected",  # a checkpoint was not loaded, and why
        "Skipped",  # a bad batch, and what was bad about it
        "Rewound",  # to a healthy checkpoint, and past which data
        "Asked",  # a wish of a person was followed or refused
        "Rerun",  # a bad batch was computed again and came out otherwise
        "Saved",  # a checkpoint is intact
        "Stopped",  # told to stop, saved
        "Finished",  # the export is written
    ]
    step: int
    detail: dict[Annotated[str, Field(max_length=64)], Message | int | float | bool | None] = Field(
        default={}, max_length=64
    )
