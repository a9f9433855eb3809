"""What is trained, on what and how: the blocks that the trainer executes.

Promise: every field has bounds, every impossible combination within a block is refused here with
the values and the fix.
Trap avoided: a field that would have no effect is refused, never silently ignored.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from lmtraining_api.base import Rule, SpecModel, Term
from lmtraining_api.fields import (
    UPWARDS_PATTERN,
    USERINFO_PATTERN,
    ObjectName,
    Uri,
    matches,
)
from lmtraining_api.optimization import (
    STEPS_MAX,
    Budget,
    EarlyStopping,
    FineTuning,
    Optimizer,
    Regularisation,
    Schedule,
)

BATCH_TOKENS_MAX = 1_000_000_000


class ModelConfig(SpecModel):
    """A model built from scratch. The vocabulary is the tokenizer's, the context the data's."""

    architecture: Literal["gpt2", "llama", "bert"] = "gpt2"
    """Family of the transformers library: gpt2 and llama for tasks that read a text one way, bert
    for those that look at all of it."""
    layers: int = Field(ge=1, le=256)
    """Number of transformer blocks."""
    hidden_size: int = Field(ge=8, le=65536)
    """Width of the residual stream."""
    heads: int = Field(ge=1, le=512)
    """Attention heads; they divide hiddenSize."""
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)
    """Dropout probability (embeddings, attention, residual); gpt2 and bert only."""

    rules: ClassVar = (
        Rule(
            cel="self.hiddenSize % self.heads == 0",
            message="hiddenSize {hiddenSize} is not a multiple of heads {heads}: "
            "choose heads that divide hiddenSize",
            check=lambda m: m.hidden_size % m.heads == 0,
            at="heads",
        ),
        Rule(
            cel="self.architecture != 'llama' || (self.hiddenSize / self.heads) % 2 == 0",
            message="hiddenSize {hiddenSize} / heads {heads} must be even for llama, whose rotary "
            "embedding turns pairs: choose fewer heads or a larger hiddenSize",
            check=lambda m: m.architecture != "llama" or (m.hidden_size // m.heads) % 2 == 0,
            at="heads",
        ),
        Rule(
            cel="self.architecture != 'llama' || self.dropout == 0.0",
            message="dropout has no effect on architecture {architecture}: remove dropout or "
            "choose gpt2",
            check=lambda m: m.architecture != "llama" or m.dropout == 0.0,
            at="dropout",
        ),
    )


class SecretReference(SpecModel):
    """A Secret in the job's namespace."""

    name: ObjectName
    """Name of the Secret."""


class Credentials(SpecModel):
    """How a source or a store is opened. Never a literal secret."""

    secret_ref: SecretReference
    """Each key of the Secret is one storage option of fsspec (S3: key, secret, endpoint_url)."""


#: Of a block whose uri is required.
NO_PASSWORD_IN_URI = Rule(
    cel=f"!self.uri.matches('{USERINFO_PATTERN}')",
    message="uri holds a password, which everyone who may read the job would see: put it "
    "in a Secret and name that in credentials.secretRef",
    check=lambda s: not matches(USERINFO_PATTERN, s.uri),
    at="uri",
)

_SCHEME = r"^[a-z][a-z0-9+.-]*(://|::)."


_URI_RULES = (
    Rule(
        cel=f"self.uri.matches('{_SCHEME}')",
        message="uri has no scheme, so no storage to read from: write file:///path, "
        "s3://bucket/key or another fsspec URI",
        check=lambda s: matches(_SCHEME, s.uri),
        at="uri",
    ),
    Rule(
        cel="!self.uri.startsWith('file://') || self.uri.startsWith('file:///')",
        message="uri names a file by a relative path, which no pod can resolve: write "
        "file:/// with three slashes and the absolute path",
        check=lambda s: not s.uri.startswith("file://") or s.uri.startswith("file:///"),
        at="uri",
    ),
    Rule(
        cel=f"!self.uri.matches(r'{UPWARDS_PATTERN}')",
        message="uri climbs with '..': write the path it ends at",
        check=lambda s: not matches(UPWARDS_PATTERN, s.uri),
        at="uri",
    ),
    NO_PASSWORD_IN_URI,
    Rule(
        cel="!has(self.credentials) || !self.uri.startsWith('file:')",
        message="credentials has no effect on a file: uri: remove credentials",
        check=lambda s: s.credentials is None or not s.uri.startswith("file:"),
        at="credentials",
    ),
)


class Pretrained(SpecModel):
    """A model that is trained further."""

    uri: Uri
    """fsspec URI of a Hugging Face checkpoint directory: config.json, tokenizer.json and
    model.safetensors, whole or in shards. Any architecture that AutoModelForCausalLM of
    transformers knows; code in the directory is never run."""
    credentials: Credentials | None = None
    """Secret for a store that asks for one; not for file: directories."""

    rules: ClassVar = _URI_RULES


class Masking(SpecModel):
    """Which tokens a masked language model has to find (Devlin et al., arXiv 1810.04805): of the
    hidden ones 80 % become the mask token, 10 % a random one, 10 % stay."""

    share: float = Field(default=0.15, ge=0.01, le=0.9)
    """Share of the tokens of a sequence that are hidden, at least one of them."""
    whole_words: bool = False
    """Hide all tokens of a word or none."""


#: The tasks whose models read a text one way, and their architectures; the others look at all of
#: it.
ONE_WAY_TASKS: Final = ("causal-lm", "backward-lm")
LABEL_TASKS: Final = ("sequence-classification", "token-classification")
"""Those that need labels."""
ONE_WAY_ARCHITECTURES: Final = ("gpt2", "llama")
_READS_ONE_WAY: Final = f"self.task in {list(ONE_WAY_TASKS)}"


class Model(SpecModel):
    """What is trained: exactly one of config and pretrained."""

    task: Literal[
        "causal-lm", "backward-lm", "masked-lm", "sequence-classification", "token-classification"
    ] = "causal-lm"
    """The training objective. causal-lm: predict the next token. backward-lm: predict the token
    before, so that a text is read from its end to its beginning. masked-lm: find tokens that were
    hidden, from those on both sides. sequence-classification: say which label a text has.
    token-classification: say which tag (O, B-name or I-name) each word of a text has."""
    config: ModelConfig | None = None
    """A new model with random weights."""
    pretrained: Pretrained | None = None
    """A model to go on from; causal-lm only. It brings its own tokenizer."""
    masking: Masking | None = None
    """Which tokens are hidden; masked-lm only. Left out: 15 %, token by token."""

    rules: ClassVar = (
        Rule(
            cel="has(self.config) != has(self.pretrained)",
            message="model needs exactly one of config (a new model) and pretrained (one to go on "
            "from): set one",
            check=lambda m: (m.config is None) != (m.pretrained is None),
        ),
        Rule(
            cel="self.task == 'causal-lm' || !has(self.pretrained)",
            message="pretrained is for task causal-lm: choose that, or set config, as task {task} "
            "begins with a new model",
            check=lambda m: m.task == "causal-lm" or m.pretrained is None,
            at="pretrained",
        ),
        Rule(
            cel=f"!has(self.config) || ({_READS_ONE_WAY}) == (self.config.architecture in "
            f"{list(ONE_WAY_ARCHITECTURES)})",
            message="config.architecture {config.architecture} does not read as task {task} "
            "does: choose {architectures}",
            check=lambda m: (
                m.config is None
                or (m.task in ONE_WAY_TASKS) == (m.config.architecture in ONE_WAY_ARCHITECTURES)
            ),
            at="config.architecture",
            terms={
                "architectures": Term(
                    cel=f"({_READS_ONE_WAY} ? 'gpt2 or llama' : 'bert')",
                    value=lambda m: "gpt2 or llama" if m.task in ONE_WAY_TASKS else "bert",
                )
            },
        ),
        Rule(
            cel="self.task == 'masked-lm' || !has(self.masking)",
            message="masking has no effect on task {task}: remove it, or choose masked-lm",
            check=lambda m: m.task == "masked-lm" or m.masking is None,
            at="masking",
        ),
    )


#: Where a label is when a source does not say.
LABEL_FIELD: Final = "label"


class DataSource(SpecModel):
    """Text to read."""

    uri: Uri
    """fsspec URI or glob of files: file:///data/**/*.py, s3://bucket/part-*.jsonl.gz."""
    format: Literal["text", "jsonl", "csv", "parquet", "auto"] = "text"
    """text: a file is a document. jsonl: a line is one, an object. csv: a row is one; the first row
    names the columns, commas part the cells. parquet: a row is one. auto: jsonl, csv or parquet
    where a file's name ends so (before .gz and the like), else text."""
    text_field: Annotated[str, Field(min_length=1, max_length=128)] = "text"
    """Name of the field (jsonl) or the column (csv, parquet) that holds the text; with task
    token-classification, that of the list of its words."""
    label_field: Annotated[str, Field(min_length=1, max_length=128)] = LABEL_FIELD
    """Name of the field that holds the label, a text or a whole number, or the list of the words'
    tags; for a task with labels."""
    credentials: Credentials | None = None
    """Secret for a source that asks for one; not for file: sources."""

    rules: ClassVar = (
        *_URI_RULES,
        Rule(
            # An entry of a list keeps what was written: the API server adds no defaults to it.
            cel="!has(self.textField) || self.textField == 'text' || "
            "(has(self.format) && self.format != 'text')",
            message="textField has no effect on format text: set format to jsonl, csv, "
            "parquet or auto, or remove textField",
            check=lambda s: s.format != "text" or s.text_field == "text",
            at="textField",
        ),
    )


class TrainSource(DataSource):
    """Text to train on."""

    weight: float | None = Field(default=None, ge=0.001, le=1000.0)
    """Share of this source beside the weights of the others (9 and 1: nine tenths and one),
    whatever its size: a small source is read more often. It is exact in each 4,096 sequences in a
    row, rounded to whole ones, at least one of each source; a batch has it nearly. Left out of all:
    each source has the share of its size, and every sequence is read once an epoch."""


class Tokenizer(SpecModel):
    """How text becomes tokens."""

    kind: Literal["bpe"] = "bpe"
    """bpe: a byte-level BPE, trained on this job's training text and cached with the data."""
    vocab_size: int = Field(default=8192, ge=258, le=262144)
    """Entries of the vocabulary: 256 bytes, one end-of-text token (with bert also one for padding
    and one for hidden tokens), the rest merges."""


_VALIDATION_FRACTION = 0.01


def _uris(sources: Sequence[DataSource]) -> list[str]:
    return [source.uri for source in sources]


class Data(SpecModel):
    """What the model reads."""

    train: list[TrainSource] = Field(min_length=1, max_length=64)
    """Training text."""
    validation: list[DataSource] = Field(default=[], max_length=64)
    """Validation text; when empty, validationFraction of the training text is held out."""
    validation_fraction: float = Field(default=_VALIDATION_FRACTION, ge=0.0001, le=0.5)
    """Share of the training text that is held out, at least one piece: documents of up to 16384
    characters whole, longer ones in pieces, chosen by a hash of their content."""
    deduplicate: Literal["none", "exact"] = "none"
    """exact: a training document that is equal to an earlier one, of any source, is left out."""
    tokenizer: Tokenizer = Tokenizer()
    """How text becomes tokens."""
    sequence_length: int = Field(default=1024, ge=8, le=131072)
    """Tokens per sequence: the model's context."""

    rules: ClassVar = (
        Rule(
            cel="self.train.all(a, self.train.exists_one(b, b.uri == a.uri))",
            message="train names a uri twice: list each source once",
            check=lambda d: len(set(_uris(d.train))) == len(d.train),
            at="train",
        ),
        Rule(
            cel="self.validation.all(v, !self.train.exists(t, t.uri == v.uri))",
            message="a validation uri is also in train, so the validation loss would measure "
            "memory: remove it from one of them",
            check=lambda d: not set(_uris(d.validation)) & set(_uris(d.train)),
            at="validation",
        ),
        Rule(
            cel=f"size(self.validation) == 0 || self.validationFraction == {_VALIDATION_FRACTION}",
            message="validationFraction has no effect beside validation sources: remove one of "
            "them",
            check=lambda d: not d.validation or d.validation_fraction == _VALIDATION_FRACTION,
            at="validationFraction",
        ),
        Rule(
            cel="self.train.all(s, has(s.weight)) || !self.train.exists(s, has(s.weight))",
            message="train has sources with a weight and sources without: give each a weight, or "
            "none",
            check=lambda d: len({source.weight is None for source in d.train}) <= 1,
            at="train",
        ),
        Rule(
            cel="size(self.train) > 1 || !self.train.exists(s, has(s.weight))",
            message="weight has no effect on the only source of train: remove weight",
            check=lambda d: len(d.train) > 1 or not d.is_weighted,
            at="train",
        ),
    )

    @property
    def is_weighted(self) -> bool:
        """Whether the sources of train have weights."""
        return any(source.weight is not None for source in self.train)


class Robustness(SpecModel):
    """The validation loss under noise, once, at the end of the run: tokens replaced by random ones
    (1, 5 and 10 %), and Gaussian noise on the embeddings (0.1, 0.3 and 1 times their root mean
    square)."""

    seeds: int = Field(default=3, ge=1, le=100)
    """Draws of each noise; each of the six costs that many validations."""


class Evaluation(SpecModel):
    """When and on how much the model is validated."""

    every_steps: int = Field(default=200, ge=1, le=STEPS_MAX)
    """Steps between validations; the last step is always validated."""
    sequences: int = Field(default=128, ge=1, le=1_000_000)
    """Validation sequences at most, the same ones each time."""
    robustness: Robustness | None = None
    """Test at the end what the model stands. Left out: no test."""


_IN_EPOCHS = "!(has(self.budget.steps) || has(self.budget.tokens))"
_STEPS = (
    "(has(self.budget.steps) ? self.budget.steps : "
    "(self.budget.tokens + self.batchTokens - 1) / self.batchTokens)"
)
_STEPS_TERM = {"steps": Term(cel=_STEPS, value=lambda t: t.planned_steps or 0)}


class Training(SpecModel):
    """How the model is trained."""

    budget: Budget
    """When training is finished."""
    batch_tokens: int = Field(ge=8, le=BATCH_TOKENS_MAX)
    """Tokens in one optimizer step, over all ranks and accumulated micro-batches."""
    gradient_accumulation: int = Field(default=1, ge=1, le=65536)
    """Micro-batches per rank and step. A micro-batch has
    batchTokens / sequenceLength / ranks / gradientAccumulation sequences."""
    optimizer: Optimizer = Optimizer()
    """The update rule."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps."""
    regularisation: Regularisation = Regularisation()
    """What keeps the model from learning its text by heart."""
    fine_tuning: FineTuning = FineTuning()
    """Which weights are trained, and how fast."""
    gradient_clip_norm: float = Field(default=1.0, gt=0.0, le=1.0e6)
    """Gradients are scaled down to this global norm."""
    evaluation: Evaluation = Evaluation()
    """When and on how much the model is validated."""
    early_stopping: EarlyStopping | None = None
    """End the run when validation does not improve. Left out: the budget is used up, and the newest
    weights are exported."""
    seed: int = Field(default=1, ge=0, le=2_147_483_647)
    """Seed of the weights, the dropout and the data order."""

    rules: ClassVar = (
        Rule(
            cel=f"!has(self.budget.tokens) || {_STEPS} <= {STEPS_MAX}",
            message="budget.tokens {budget.tokens} is {steps} steps of batchTokens {batchTokens}, "
            f"and a run has at most {STEPS_MAX}: lower it, or raise batchTokens",
            check=lambda t: t.budget.tokens is None or (t.planned_steps or 0) <= STEPS_MAX,
            at="budget.tokens",
            terms=_STEPS_TERM,
        ),
        Rule(
            cel="self.optimizer.name != 'ftrl' || self.regularisation.proximalL1 == 0.0",
            message="regularisation.proximalL1 is undone by optimizer "
            "{optimizer.name}, whose weights follow from its sums of gradients: set optimizer.l1 "
            "instead",
            check=lambda t: t.optimizer.name != "ftrl" or t.regularisation.proximal_l1 == 0.0,
            at="regularisation.proximalL1",
            at_creation=True,
        ),
        Rule(
            cel="!has(self.fineTuning.lora) || self.regularisation.proximalL1 == 0.0",
            message="regularisation.proximalL1 would make adapters of "
            "fineTuning.lora zero, and no weight of the export: remove one of them",
            check=lambda t: t.fine_tuning.lora is None or t.regularisation.proximal_l1 == 0.0,
            at="regularisation.proximalL1",
            at_creation=True,
        ),
        Rule(
            cel=f"!has(self.earlyStopping) || {_IN_EPOCHS} || "
            f"self.evaluation.everySteps <= {_STEPS}",
            message="earlyStopping has no effect where evaluation.everySteps "
            "{evaluation.everySteps} is more than the {steps} steps of the budget: lower it, or "
            "remove earlyStopping",
            check=lambda t: (
                t.early_stopping is None
                or t.planned_steps is None
                or t.evaluation.every_steps <= t.planned_steps
            ),
            at="evaluation.everySteps",
            terms=_STEPS_TERM,
            at_creation=True,
        ),
        Rule(
            cel=f"!has(self.fineTuning.unfreezeEverySteps) || {_IN_EPOCHS} || "
            f"self.fineTuning.unfreezeEverySteps < {_STEPS}",
            message="fineTuning.unfreezeEverySteps {fineTuning.unfreezeEverySteps} unfreezes "
            "nothing within the {steps} steps of the budget: lower it, or name what is never to be "
            "trained in fineTuning.freeze",
            check=lambda t: (
                t.fine_tuning.unfreeze_every_steps is None
                or t.planned_steps is None
                or t.fine_tuning.unfreeze_every_steps < t.planned_steps
            ),
            at="fineTuning.unfreezeEverySteps",
            terms=_STEPS_TERM,
            at_creation=True,
        ),
    )

    @property
    def planned_steps(self) -> int | None:
        """Steps of the budget; None where that takes the data to know."""
        if self.budget.tokens is not None:
            return -(-self.budget.tokens // self.batch_tokens)
        return self.budget.steps


class Parallelism(SpecModel):
    """How the ranks share the model."""

    layout: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every rank holds the whole model. fsdp: each rank holds its part of the weights, the
    gradients and the optimizer's state, and writes that part of a checkpoint; for models whose
    training does not fit on one device (16 bytes per parameter), though the weights alone do (4
    bytes), as at the start each rank has them whole. A run may go on with the other layout. With
    one rank there is no difference."""


class Precision(SpecModel):
    """Number formats."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of the forward and backward pass. auto: bf16 where it is measured to be faster on the
    actual device, else fp32; measured once per run and kept in its journal."""


class Stability(SpecModel):
    """What to do when a step is bad, or none comes: remedies inside the pods, without a new
    attempt."""

    skipped_steps_max: int = Field(default=10, ge=0, le=1_000_000)
    """Bad batches that may be skipped; after that, or after three among the last 16, the run is
    rewound. Bad: a loss or gradient that is not finite, a gradient of zero, a loss spike."""
    rewinds_max: int = Field(default=3, ge=0, le=1000)
    """Rewinds to the newest healthy checkpoint before the job is Diverged. Each jumps over the data
    that went before the fault; from the second on, the learning rate is halved and warmed up."""
    loss_spike_deviations: float = Field(default=8.0, ge=3.0, le=1000.0)
    """How many standard deviations (by median absolute deviation of the last 128 good steps) a loss
    must rise above their median to be a spike."""
    divergence_nats: float = Field(default=0.5, gt=0.0, le=100.0)
    """How far the median loss of the last 32 steps may rise above the lowest it ever was."""
    healthy_steps: int = Field(default=50, ge=1, le=1_000_000)
    """Good steps that must follow a checkpoint before it counts as healthy."""
    adaptive_clip: bool = True
    """Also clip gradients whose norm is out of the usual for this run."""
    rounds_max: int = Field(default=10, ge=0, le=1000)
    """How often, in one attempt, the ranks are started again inside their pods when one of them
    died or hangs. After that, or when the same fault comes at the same step three times, the pod
    fails: it is replaced alone where that can help, else a new attempt begins. At 0 a new attempt
    always begins."""
    silence_seconds: int = Field(default=120, ge=1, le=86400)
    """A rank hangs when it has given no sign of life for so long, and for ten times its longest
    silence so far in the same phase of a step; before its first step, for ten minutes."""
