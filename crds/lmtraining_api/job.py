"""`LMTrainingJob`: what a person writes.

Promise: these models are the only description of the job. The CRD, the field reference, the job
file in the pod and the local run are all made from them or parsed by them. Every number has bounds,
every string and list has a length: the API server needs them to price the CEL rules, and a person
gets the error at `kubectl apply`.
Trap avoided: a default made by `default_factory` or in code is invisible to the API server, so
every default here is a literal.
"""

import math
from functools import partial
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from lmtraining_api.base import Rule, SpecModel, Term, TransitionRule
from lmtraining_api.fields import ObjectName
from lmtraining_api.lifecycle import YEAR_SECONDS, Deadlines, Requests, Rollback
from lmtraining_api.names import API_VERSION, JOB_NAME_LENGTH_MAX, KIND
from lmtraining_api.optimization import (
    Budget,
    EarlyStopping,
    FineTuning,
    Lora,
    Optimizer,
    Regularisation,
    Schedule,
)
from lmtraining_api.placement import PodTemplate, Queue
from lmtraining_api.tracking import MlflowTracking, TrackerCredentials, Tracking, WandbTracking
from lmtraining_api.training import (
    BATCH_TOKENS_MAX,
    LABEL_FIELD,
    LABEL_TASKS,
    ONE_WAY_TASKS,
    Credentials,
    Data,
    DataSource,
    Evaluation,
    Masking,
    Model,
    ModelConfig,
    Parallelism,
    Precision,
    Pretrained,
    Robustness,
    SecretReference,
    Stability,
    Tokenizer,
    Training,
)
from lmtraining_api.workers import (
    Accelerator,
    Checkpoint,
    Claim,
    Recovery,
    RecoveryRule,
    Resources,
    Storage,
    Workers,
)

__all__ = [
    "Accelerator",
    "Budget",
    "Checkpoint",
    "Claim",
    "Credentials",
    "Data",
    "DataSource",
    "Deadlines",
    "EarlyStopping",
    "Evaluation",
    "FineTuning",
    "LMTrainingJob",
    "LMTrainingJobSpec",
    "Lora",
    "Masking",
    "MlflowTracking",
    "Model",
    "ModelConfig",
    "ObjectMeta",
    "Optimizer",
    "Parallelism",
    "PodTemplate",
    "Precision",
    "Pretrained",
    "Queue",
    "Recovery",
    "RecoveryRule",
    "Regularisation",
    "Requests",
    "Resources",
    "Robustness",
    "Rollback",
    "Schedule",
    "SecretReference",
    "Stability",
    "Storage",
    "Tokenizer",
    "TrackerCredentials",
    "Tracking",
    "Training",
    "TrainingSpec",
    "WandbTracking",
    "Workers",
]

_RANKS = (
    "(self.workers.replicas * (has(self.workers.accelerator) ? self.workers.accelerator.count : "
    "(has(self.workers.ranksPerReplica) ? self.workers.ranksPerReplica : 1)))"
)
_ROW = f"(self.data.sequenceLength * {_RANKS} * self.training.gradientAccumulation)"
_MULTIPLE = f"((self.training.batchTokens / {_ROW} + 1) * {_ROW})"
_HAS_LABELS = f"self.model.task in {list(LABEL_TASKS)}"
_READS_ONE_WAY = f"self.model.task in {list(ONE_WAY_TASKS)}"
ENCODER_VOCABULARY_MIN = 259
"""256 bytes and three special tokens."""
_ROW_TERMS = {
    "row": Term(cel=_ROW, value=lambda s: s.tokens_per_sequence_row),
    "ranks": Term(cel=_RANKS, value=lambda s: s.workers.world_size),
}


def _are_records(spec: "TrainingSpec", *, side: Literal["train", "validation"]) -> bool:
    """Whether each source of a task with labels has records that can hold them."""
    sources: list[DataSource] = getattr(spec.data, side)
    return spec.model.task not in LABEL_TASKS or all(s.format == "jsonl" for s in sources)


def _keep_their_label_field(spec: "TrainingSpec", *, side: Literal["train", "validation"]) -> bool:
    """Whether no source of a task without labels says where they are."""
    sources: list[DataSource] = getattr(spec.data, side)
    return spec.model.task in LABEL_TASKS or all(s.label_field == LABEL_FIELD for s in sources)


class TrainingSpec(SpecModel):
    """The part of the spec that the trainer executes: the content of the job file."""

    model: Model
    """What is trained."""
    data: Data
    """What it reads."""
    training: Training
    """How it is trained."""
    parallelism: Parallelism = Parallelism()
    """How the ranks share the model."""
    precision: Precision = Precision()
    """Number formats."""
    stability: Stability = Stability()
    """What to do when a step is bad."""
    workers: Workers = Workers()
    """The pods that train."""
    checkpoint: Checkpoint = Checkpoint()
    """How progress is kept."""
    tracking: Tracking = Tracking()
    """Who is told of it."""

    rules: ClassVar = (
        Rule(
            cel=f"{_ROW} <= {BATCH_TOKENS_MAX}",
            message="one sequence on every rank is {row} tokens (data.sequenceLength "
            "{data.sequenceLength} x {ranks} ranks x training.gradientAccumulation "
            "{training.gradientAccumulation}), and training.batchTokens ends at "
            f"{BATCH_TOKENS_MAX}: lower one of the three",
            check=lambda s: s.tokens_per_sequence_row <= BATCH_TOKENS_MAX,
            at="training.batchTokens",
            terms=_ROW_TERMS,
        ),
        Rule(
            cel=f"{_ROW} > {BATCH_TOKENS_MAX} || self.training.batchTokens % {_ROW} == 0",
            message="training.batchTokens {training.batchTokens} is not a multiple of {row}, one "
            "sequence on every rank (data.sequenceLength {data.sequenceLength} x {ranks} ranks x "
            "training.gradientAccumulation {training.gradientAccumulation}): choose {multiple} or "
            "another multiple",
            check=lambda s: (
                s.tokens_per_sequence_row > BATCH_TOKENS_MAX  # no multiple of it can be chosen
                or s.training.batch_tokens % s.tokens_per_sequence_row == 0
            ),
            at="training.batchTokens",
            terms={
                **_ROW_TERMS,
                "multiple": Term(
                    cel=f"({_MULTIPLE} <= {BATCH_TOKENS_MAX} ? {_MULTIPLE} : {_MULTIPLE} - {_ROW})",
                    value=lambda s: s.next_batch_tokens,
                ),
            },
        ),
        Rule(
            cel="self.workers.replicas == 1 || !has(self.checkpoint.storage.claim) || "
            "!has(self.checkpoint.storage.claim.accessMode) || "
            "self.checkpoint.storage.claim.accessMode == 'ReadWriteMany'",
            message="workers.replicas {workers.replicas} needs storage that all pods can write: "
            "set checkpoint.storage.claim.accessMode to ReadWriteMany, or workers.replicas to 1",
            check=lambda s: (
                s.workers.replicas == 1
                or s.checkpoint.storage.claim is None
                or s.checkpoint.storage.claim.access_mode in (None, "ReadWriteMany")
            ),
            at="checkpoint.storage.claim.accessMode",
        ),
        Rule(
            cel="self.parallelism.layout == 'ddp' || !has(self.checkpoint.storage.uri)",
            message="parallelism.layout {parallelism.layout} needs a volume that all ranks write "
            "their part of a checkpoint to: use checkpoint.storage.claim or existingClaim instead "
            "of uri, or set parallelism.layout to ddp",
            check=lambda s: s.parallelism.layout == "ddp" or s.checkpoint.storage.uri is None,
            at="parallelism.layout",
        ),
        Rule(
            cel="self.parallelism.layout == 'ddp' || "
            "!(self.training.optimizer.name in ['adafactor', 'muon'])",
            message="training.optimizer.name {training.optimizer.name} looks at whole matrices, of "
            "which parallelism.layout {parallelism.layout} leaves each rank a part: choose adamw, "
            "lion or another optimizer that does not, or set parallelism.layout to ddp",
            check=lambda s: (
                s.parallelism.layout == "ddp"
                or s.training.optimizer.name not in ("adafactor", "muon")
            ),
            at="training.optimizer.name",
        ),
        Rule(
            cel="!has(self.model.pretrained) || self.data.tokenizer.vocabSize == "
            f"{Tokenizer().vocab_size}",
            message="data.tokenizer.vocabSize {data.tokenizer.vocabSize} has no effect beside "
            "model.pretrained, which brings its own tokenizer: remove data.tokenizer",
            check=lambda s: s.model.pretrained is None or s.data.tokenizer == Tokenizer(),
            at="data.tokenizer.vocabSize",
        ),
        Rule(
            cel="self.parallelism.layout == 'ddp' || !has(self.training.fineTuning.lora)",
            message="training.fineTuning.lora has no merge for weights that parallelism.layout "
            "{parallelism.layout} leaves in parts: set parallelism.layout to ddp, which trains "
            "adapters in little more memory than the weights take",
            check=lambda s: s.parallelism.layout == "ddp" or s.training.fine_tuning.lora is None,
            at="training.fineTuning.lora",
        ),
        Rule(
            cel=f"self.training.regularisation.mixup == 0.0 || {_ROW} > {BATCH_TOKENS_MAX} || "
            f"self.training.batchTokens >= 2 * {_ROW}",
            message="training.regularisation.mixup mixes two sequences of a micro-batch, and each "
            "has only one of data.sequenceLength {data.sequenceLength}: double "
            "training.batchTokens {training.batchTokens}, or lower training.gradientAccumulation",
            check=lambda s: (
                s.training.regularisation.mixup == 0.0
                or s.tokens_per_sequence_row > BATCH_TOKENS_MAX
                or s.training.batch_tokens >= 2 * s.tokens_per_sequence_row
            ),
            at="training.regularisation.mixup",
        ),
        Rule(
            cel=f"self.training.regularisation.mixup == 0.0 || {_READS_ONE_WAY}",
            message="training.regularisation.mixup is not for model.task {model.task}: set it to "
            "0, or choose causal-lm or backward-lm",
            check=lambda s: s.training.regularisation.mixup == 0.0 or s.model.task in ONE_WAY_TASKS,
            at="training.regularisation.mixup",
        ),
        Rule(
            cel=f"self.data.tokenizer.vocabSize >= {ENCODER_VOCABULARY_MIN} || {_READS_ONE_WAY}",
            message="data.tokenizer.vocabSize {data.tokenizer.vocabSize} has no room for the "
            "special tokens of model.task {model.task} beside 256 bytes: set it to "
            f"{ENCODER_VOCABULARY_MIN} or more",
            check=lambda s: (
                s.data.tokenizer.vocab_size >= ENCODER_VOCABULARY_MIN
                or s.model.task in ONE_WAY_TASKS
            ),
            at="data.tokenizer.vocabSize",
        ),
        Rule(
            cel="!has(self.training.regularisation.dropout) || !has(self.model.config) || "
            "self.model.config.dropout == 0.0",
            message="training.regularisation.dropout takes the place of model.config.dropout: "
            "remove one of them",
            check=lambda s: (
                s.training.regularisation.dropout is None
                or s.model.config is None
                or s.model.config.dropout == 0.0
            ),
            at="training.regularisation.dropout",
            at_creation=True,
        ),
        *(
            Rule(
                # An entry of a list keeps what was written: the API server adds no defaults to it.
                cel=f"!({_HAS_LABELS}) || "
                f"self.data.{side}.all(s, has(s.format) && s.format == 'jsonl')",
                message=f"data.{side} needs JSON lines for model.task {{model.task}}, each with a "
                "text and its label: set format of each source to jsonl",
                check=partial(_are_records, side=side),
                at=f"data.{side}",
            )
            for side in ("train", "validation")
        ),
        *(
            Rule(
                # An empty one is refused by its own length.
                cel=f"{_HAS_LABELS} || self.data.{side}.all(s, !has(s.labelField) || "
                f"s.labelField in ['', '{LABEL_FIELD}'])",
                message=f"labelField of data.{side} has no effect on model.task {{model.task}}: "
                "remove it, or choose a task with labels",
                check=partial(_keep_their_label_field, side=side),
                at=f"data.{side}",
            )
            for side in ("train", "validation")
        ),
        Rule(
            cel=f"!({_HAS_LABELS}) || !self.data.train.exists(s, has(s.weight))",
            message="weight of data.train is for tasks that read running text: remove it, or "
            "choose another model.task than {model.task}",
            check=lambda s: s.model.task not in LABEL_TASKS or not s.data.is_weighted,
            at="data.train",
        ),
        Rule(
            cel=f"!({_HAS_LABELS}) || self.data.deduplicate == 'none'",
            message="data.deduplicate is for tasks that read running text: remove it, or choose "
            "another model.task than {model.task}",
            check=lambda s: s.model.task not in LABEL_TASKS or s.data.deduplicate == "none",
            at="data.deduplicate",
        ),
        Rule(
            cel=f"!({_HAS_LABELS}) || !has(self.training.evaluation.robustness)",
            message="training.evaluation.robustness is for tasks that read running text: remove "
            "it, or choose another model.task than {model.task}",
            check=lambda s: (
                s.model.task not in LABEL_TASKS or s.training.evaluation.robustness is None
            ),
            at="training.evaluation.robustness",
        ),
    )

    @property
    def claim_access_mode(self) -> str:
        """Access mode of the claim that is made for this job, resolved."""
        claim = self.checkpoint.storage.claim
        fitting = "ReadWriteOnce" if self.workers.replicas == 1 else "ReadWriteMany"
        return (claim.access_mode if claim else None) or fitting

    @property
    def tokens_per_sequence_row(self) -> int:
        """Tokens when every rank has one sequence in every micro-batch of a step."""
        return (
            self.data.sequence_length
            * self.workers.world_size
            * self.training.gradient_accumulation
        )

    @property
    def next_batch_tokens(self) -> int:
        """The first multiple of a row above batchTokens, or below it where that is too large."""
        row = self.tokens_per_sequence_row
        above = (self.training.batch_tokens // row + 1) * row
        return above if above <= BATCH_TOKENS_MAX else above - row

    def total_steps(self, epoch_sequences: int) -> int:
        """Steps of the budget, where the training text has so many sequences."""
        planned, epochs = self.training.planned_steps, self.training.budget.epochs
        if planned is not None or epochs is None:
            return planned or 1
        return max(1, math.ceil(epochs * epoch_sequences / self.batch_sequences))

    @property
    def micro_batch_sequences(self) -> int:
        """Sequences in one forward pass of one rank."""
        return self.training.batch_tokens // self.tokens_per_sequence_row

    @property
    def batch_sequences(self) -> int:
        """Sequences in one optimizer step, over all ranks."""
        return self.training.batch_tokens // self.data.sequence_length


def _same(name: str, field: FieldInfo) -> str:
    """CEL: the field is what it was. Not by CEL's optional values, which have no bounds that an API
    server could price the rule by."""
    there, same = f"has(self.{name})", f"self.{name} == oldSelf.{name}"
    is_always_there = field.is_required() or field.default is not None
    return same if is_always_there else f"{there} == has(oldSelf.{name}) && (!{there} || {same})"


_CHANGEABLE = {"training": "budget", "checkpoint": "everySteps"}
"""What may be changed in a block that stays otherwise."""


def _immutable(block: str, *, but: str = "") -> TransitionRule:
    """The block stays as it was made, but for one of its fields."""
    fields = TrainingSpec.model_fields[block].annotation.model_fields  # type: ignore[union-attr]
    parts = [_same(field.alias or name, field) for name, field in fields.items() if name != but]
    same = " && ".join(parts) if but else f"self.{block} == oldSelf.{block}"
    exception = f", but for {block}.{_CHANGEABLE[block]}" if but else ""
    return TransitionRule(
        cel=same,
        message=f"spec.{block} cannot be changed once the job exists{exception}: make a new job, "
        "or undo the change",
        at=block,
        of=block if but else "",
    )


def _as_large(name: str) -> str:
    """CEL: the field is there as it was, and not smaller."""
    there = f"has(self.{name})"
    return f"{there} == has(oldSelf.{name}) && (!{there} || self.{name} >= oldSelf.{name})"


class LMTrainingJobSpec(TrainingSpec):
    """What the job should be. Only suspend, deadlines, keepPodsSeconds, recovery, requests,
    podTemplate, queue.priorityClass, checkpoint.everySteps and, upwards, training.budget may be
    changed later."""

    recovery: Recovery = Recovery()
    """How faults are answered."""
    deadlines: Deadlines = Deadlines()
    """By when the job must have come somewhere."""
    requests: Requests = Requests()
    """What is to be done once while the job runs."""
    pod_template: PodTemplate = PodTemplate()
    """What the pods have beside what the operator gives them: where they go, labels, variables."""
    queue: Queue | None = None
    """Who lets the pods go. Left out: nobody has to."""
    suspend: bool = False
    """true: save a checkpoint and free the devices; false again: go on from it."""
    keep_pods_seconds: int | None = Field(default=None, ge=0, le=YEAR_SECONDS)
    """How long after the end of the job its pods, with their logs, its ConfigMap and its
    NetworkPolicy stay. The job with its status, the claim and the run directory stay in any case.
    Left out: as long as the job."""

    transition_rules: ClassVar = (
        _immutable("model"),
        _immutable("data"),
        _immutable("training", but="budget"),
        TransitionRule(
            cel=f"{_as_large('steps')} && {_as_large('tokens')} && "
            f"{_same('epochs', Budget.model_fields['epochs'])}",
            message="spec.training.budget can only be raised once the job exists, in steps or "
            "tokens as it was made, since steps that are done cannot be taken back: put the old "
            "value back, or set a larger one",
            at="training.budget",
            of="training.budget",
        ),
        _immutable("parallelism"),
        _immutable("precision"),
        _immutable("stability"),
        _immutable("workers"),
        _immutable("checkpoint", but="every_steps"),
        _immutable("tracking"),
        TransitionRule(
            cel="has(self.queue) == has(oldSelf.queue) && (!has(self.queue) || "
            "self.queue.name == oldSelf.queue.name)",
            message="spec.queue cannot be changed once the job exists, but for its priorityClass: "
            "make a new job, or undo the change",
            at="queue",
        ),
    )


class ObjectMeta(SpecModel):
    """The part of Kubernetes' metadata that we read."""

    model_config = SpecModel.model_config | {"extra": "ignore"}

    name: ObjectName
    namespace: str = "default"
    uid: str = ""
    generation: int = 1


class LMTrainingJob(SpecModel):
    """Trains a language model and reports back in status."""

    api_version: Literal["lmtraining.dev/v1alpha1"] = API_VERSION
    kind: Literal["LMTrainingJob"] = KIND
    metadata: ObjectMeta
    """Name and labels of the job."""
    spec: LMTrainingJobSpec
    """What the job should be."""

    rules: ClassVar = (
        Rule(
            cel=f"size(self.metadata.name) <= {JOB_NAME_LENGTH_MAX}",
            message="name has {length} characters, and the names of its pods leave room "
            f"for {JOB_NAME_LENGTH_MAX}: choose a shorter name",
            check=lambda job: len(job.metadata.name) <= JOB_NAME_LENGTH_MAX,
            at="metadata.name",
            terms={
                "length": Term(
                    cel="size(self.metadata.name)", value=lambda job: len(job.metadata.name)
                )
            },
        ),
        Rule(
            cel="!self.metadata.name.contains('.')",
            message="name contains a dot, which the host names of its pods cannot: use a "
            "dash instead",
            check=lambda job: "." not in job.metadata.name,
            at="metadata.name",
        ),
    )

    @classmethod
    def from_document(cls, document: object) -> Self:
        """A job from a document that a person wrote, with only the names that the API server takes.

        `model_validate` takes our snake_case names too, so `batch_tokens` would pass in a local run
        and be refused by the cluster.
        """
        return cls.model_validate(document, by_alias=True, by_name=False)

    @model_validator(mode="before")
    @classmethod
    def _without_status(cls, document: object) -> object:
        """The API server's `status` is read on its own; any other unknown field is refused."""
        if isinstance(document, dict):
            return {key: value for key, value in document.items() if key != "status"}
        return document
