"""The rules of the contract, each with a job that keeps it and one that breaks it.

One table for both judges: tests/unit asks the models, tests/api a real API server. A rule without a
pair here fails `test_every_rule_has_a_pair`.
"""

import copy
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]

MINIMAL: Document = {
    "apiVersion": "lmtraining.dev/v1alpha1",
    "kind": "LMTrainingJob",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        "data": {"train": [{"uri": "file:///data/*.txt"}], "sequenceLength": 8},
        "training": {"budget": {"steps": 10}, "batchTokens": 64},
    },
}


def merged(document: Document, patch: Document) -> Document:
    """A JSON merge patch: blocks are merged, None removes, anything else replaces."""
    result = copy.deepcopy(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def minimal(**spec: Any) -> Document:
    """The smallest job, with changes to its spec."""
    return changed(MINIMAL, **spec)


def changed(document: Document, **spec: Any) -> Document:
    """A job with changes to its spec."""
    return merged(document, {"spec": spec})


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two jobs that differ in one thing; the second is refused at `at` with `sentence`."""

    accept: Document
    refuse: Document
    at: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two changes to the minimal job once it exists; `allow` writes out what was the default."""

    allow: Document
    refuse: Document
    at: str
    sentence: str = "{at} cannot be changed once the job exists: make a new job, or undo the change"

    @property
    def told(self) -> str:
        return self.sentence.format(at=self.at)


def config(**fields: Any) -> Document:
    return minimal(model={"config": fields})


def source(uri: str = "s3://bucket/*.txt", **fields: Any) -> Document:
    return minimal(data={"train": [{"uri": uri, **fields}]})


def data(*train: str, validation: tuple[str, ...] = (), **fields: Any) -> Document:
    uris = [{"uri": uri} for uri in train]
    return minimal(data={"train": uris, "validation": [{"uri": u} for u in validation], **fields})


def weighted(*weights: float | None) -> Document:
    return minimal(
        data={
            "train": [
                {"uri": f"s3://bucket/{number}.txt"}
                | ({} if weight is None else {"weight": weight})
                for number, weight in enumerate(weights)
            ]
        }
    )


def optimizer(name: str, **fields: Any) -> Document:
    return minimal(training={"optimizer": {"name": name, **fields}})


def schedule(name: str, **fields: Any) -> Document:
    return minimal(training={"schedule": {"name": name, **fields}})


def workers(**fields: Any) -> Document:
    return minimal(workers=fields)


def store(uri: str, **fields: Any) -> Document:
    return minimal(checkpoint={"storage": {"uri": uri, **fields}})


def tolerating(**fields: Any) -> Document:
    return minimal(podTemplate={"tolerations": [fields]})


def told_to(uri: str, *, by: str = "mlflow", **tracker: Any) -> Document:
    return minimal(tracking={by: {"uri": uri, **tracker}})


def named(name: str) -> Document:
    return merged(MINIMAL, {"metadata": {"name": name}})


MASKED = minimal(model={"task": "masked-lm", "config": {"architecture": "bert"}})
LABELLED = minimal(
    model={"task": "sequence-classification", "config": {"architecture": "bert"}},
    data={"train": [{"uri": "file:///data/a.jsonl", "format": "jsonl"}]},
)
JSON_LINES = {"uri": "s3://b/2", "format": "jsonl"}
STARS = {"uri": "s3://b/1", "format": "jsonl", "labelField": "stars"}
SECRET = {"secretRef": {"name": "storage-key"}}
DEVICES = {"count": 2}
CRASH_RULE = {"failureClass": "Crash", "exitCode": 137, "restartsMax": 2}
TRAIN_URI = "spec.data.train[0].uri"
STORE_URI = "spec.checkpoint.storage.uri"
TRACKER_URI = "spec.tracking.mlflow.uri"

OWN_KEY = (
    " has a key of the operator's own, or of a queue (app.kubernetes.io/, lmtraining.dev/, "
    "kueue.x-k8s.io/): take another key; a queue is named in spec.queue"
)
ROW_TOKENS_MAX = 61_035 * 2 * 8192  # 999,997,440, all that batchTokens has room for
LONGEST_ROW = minimal(
    data={"sequenceLength": 8192},
    training={"batchTokens": ROW_TOKENS_MAX, "gradientAccumulation": 61_035},
    workers={"replicas": 2},
)

PAIRS = (
    # podTemplate
    Pair(
        accept=minimal(podTemplate={"labels": {"team": "a", "example.org/x": "b"}}),
        refuse=minimal(podTemplate={"labels": {"lmtraining.dev/job-name": "b"}}),
        at="spec.podTemplate.labels",
        sentence=f"labels{OWN_KEY}",
    ),
    Pair(
        accept=minimal(podTemplate={"annotations": {"example.org/x": "b"}}),
        refuse=minimal(podTemplate={"annotations": {"kueue.x-k8s.io/queue-name": "b"}}),
        at="spec.podTemplate.annotations",
        sentence=f"annotations{OWN_KEY}",
    ),
    Pair(
        accept=tolerating(key="spot"),
        refuse=tolerating(effect="NoSchedule"),
        at="spec.podTemplate.tolerations[0].key",
        sentence="a toleration without key bears every taint, which needs operator Exists: set "
        "it, or name the key",
    ),
    Pair(
        accept=tolerating(key="spot", value="a"),
        refuse=tolerating(key="spot", operator="Exists", value="a"),
        at="spec.podTemplate.tolerations[0].value",
        sentence="value has no effect with operator Exists: remove value, or set operator to Equal",
    ),
    Pair(
        accept=tolerating(key="spot", effect="NoExecute", tolerationSeconds=5),
        refuse=tolerating(key="spot", tolerationSeconds=5),
        at="spec.podTemplate.tolerations[0].tolerationSeconds",
        sentence="tolerationSeconds is for effect NoExecute alone: set effect to it, or remove "
        "tolerationSeconds",
    ),
    Pair(
        accept=minimal(podTemplate={"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}),
        refuse=minimal(podTemplate={"env": [{"name": "LD_PRELOAD", "value": "x"}]}),
        at="spec.podTemplate.env[0].name",
        sentence="env LD_PRELOAD is set by the operator or changes how Python starts: remove it",
    ),
    # metadata
    Pair(
        accept=named("n" * 50),
        refuse=named("n" * 51),
        at="metadata.name",
        sentence="name has 51 characters, and the names of its pods leave room for 50: choose a "
        "shorter name",
    ),
    Pair(
        accept=named("a-b"),
        refuse=named("a.b"),
        at="metadata.name",
        sentence="name contains a dot, which the host names of its pods cannot: use a dash instead",
    ),
    # model
    Pair(
        accept=config(hiddenSize=18, heads=3),
        refuse=config(hiddenSize=16, heads=3),
        at="spec.model.config.heads",
        sentence="hiddenSize 16 is not a multiple of heads 3: choose heads that divide hiddenSize",
    ),
    Pair(
        accept=config(architecture="llama", hiddenSize=16, heads=8),
        refuse=config(architecture="llama", hiddenSize=16, heads=16),
        at="spec.model.config.heads",
        sentence="hiddenSize 16 / heads 16 must be even for llama, whose rotary embedding turns "
        "pairs: choose fewer heads or a larger hiddenSize",
    ),
    Pair(
        accept=config(architecture="gpt2", dropout=0.5),
        refuse=config(architecture="llama", dropout=0.5),
        at="spec.model.config.dropout",
        sentence="dropout has no effect on architecture llama: remove dropout or choose gpt2",
    ),
    Pair(
        accept=MASKED,
        refuse=changed(MASKED, model={"config": {"architecture": "gpt2"}}),
        at="spec.model.config.architecture",
        sentence="config.architecture gpt2 does not read as task masked-lm does: choose bert",
    ),
    Pair(
        accept=changed(MASKED, model={"masking": {"wholeWords": True}}),
        refuse=minimal(model={"masking": {"wholeWords": True}}),
        at="spec.model.masking",
        sentence="masking has no effect on task causal-lm: remove it, or choose masked-lm",
    ),
    # data
    Pair(
        accept=source("https://example.org/corpus.txt"),
        refuse=source("corpus/*.txt"),
        at=TRAIN_URI,
        sentence="uri has no scheme, so no storage to read from: write file:///path, "
        "s3://bucket/key or another fsspec URI",
    ),
    Pair(
        accept=source("file:///data/a.txt"),
        refuse=source("file://data/a.txt"),
        at=TRAIN_URI,
        sentence="uri names a file by a relative path, which no pod can resolve: write file:/// "
        "with three slashes and the absolute path",
    ),
    Pair(
        accept=source("file:///data/..a/b..txt"),
        refuse=source("file:///data/../etc/shadow"),
        at=TRAIN_URI,
        sentence="uri climbs with '..': write the path it ends at",
    ),
    Pair(
        accept=source("abfs://container@account.dfs.core.windows.net/a.txt"),
        refuse=source("s3://key:secret@bucket/a.txt"),
        at=TRAIN_URI,
        sentence="uri holds a password, which everyone who may read the job would see: put it in "
        "a Secret and name that in credentials.secretRef",
    ),
    Pair(
        accept=source("s3://bucket/a.txt", credentials=SECRET),
        refuse=source("file:///data/a.txt", credentials=SECRET),
        at="spec.data.train[0].credentials",
        sentence="credentials has no effect on a file: uri: remove credentials",
    ),
    Pair(
        accept=source(format="parquet", textField="100% body"),
        refuse=source(format="text", textField="100% body"),
        at="spec.data.train[0].textField",
        sentence="textField has no effect on format text: set format to jsonl, csv, "
        "parquet or auto, or remove textField",
    ),
    Pair(
        accept=minimal(model={"config": None, "pretrained": {"uri": "s3://bucket/gpt2"}}),
        refuse=minimal(model={"pretrained": {"uri": "s3://bucket/gpt2"}}),
        at="spec.model",
        sentence="model needs exactly one of config (a new model) and pretrained (one to go on "
        "from): set one",
    ),
    Pair(
        accept=minimal(model={"config": None, "pretrained": {"uri": "s3://bucket/gpt2"}}),
        refuse=minimal(
            model={
                "task": "backward-lm",
                "config": None,
                "pretrained": {"uri": "s3://bucket/gpt2"},
            }
        ),
        at="spec.model.pretrained",
        sentence="pretrained is for task causal-lm: choose that, or set config, as task "
        "backward-lm begins with a new model",
    ),
    Pair(
        accept=minimal(data={"tokenizer": {"vocabSize": 300}}),
        refuse=minimal(
            model={"config": None, "pretrained": {"uri": "s3://bucket/gpt2"}},
            data={"tokenizer": {"vocabSize": 300}},
        ),
        at="spec.data.tokenizer.vocabSize",
        sentence="data.tokenizer.vocabSize 300 has no effect beside model.pretrained, which brings "
        "its own tokenizer: remove data.tokenizer",
    ),
    Pair(
        accept=weighted(9, 1),
        refuse=weighted(9, None),
        at="spec.data.train",
        sentence="train has sources with a weight and sources without: give each a weight, or none",
    ),
    Pair(
        accept=weighted(None),
        refuse=weighted(1),
        at="spec.data.train",
        sentence="weight has no effect on the only source of train: remove weight",
    ),
    Pair(
        accept=data("s3://b/1", "s3://b/2"),
        refuse=data("s3://b/1", "s3://b/1"),
        at="spec.data.train",
        sentence="train names a uri twice: list each source once",
    ),
    Pair(
        accept=data("s3://b/1", validation=("s3://b/2",)),
        refuse=data("s3://b/1", validation=("s3://b/1",)),
        at="spec.data.validation",
        sentence="a validation uri is also in train, so the validation loss would measure memory: "
        "remove it from one of them",
    ),
    Pair(
        accept=data("s3://b/1", validationFraction=0.02),
        refuse=data("s3://b/1", validation=("s3://b/2",), validationFraction=0.02),
        at="spec.data.validationFraction",
        sentence="validationFraction has no effect beside validation sources: remove one of them",
    ),
    # training
    *(
        Pair(
            accept=optimizer(fitting, **{option: 0.5}),
            refuse=optimizer(other, **{option: 0.5}),
            at=f"spec.training.optimizer.{option}",
            sentence=f"{option} has no effect on optimizer {other}: remove it, or choose {choices}",
        )
        for option, fitting, other, choices in (
            ("momentum", "sgd", "adamw", "sgd or muon"),
            ("beta1", "muon", "adagrad", "adamw, adabelief, lion or muon"),
            ("beta2", "lion", "adafactor", "adamw, adabelief, lion or muon"),
            ("epsilon", "ftrl", "lion", "adamw, adagrad, adabelief, ftrl or muon"),
            ("l1", "ftrl", "sgd", "ftrl"),
        )
    ),
    Pair(
        accept=minimal(training={"budget": {"steps": None, "tokens": 640}}),
        refuse=minimal(training={"budget": {"epochs": 2}}),
        at="spec.training.budget",
        sentence="budget needs exactly one of steps, tokens and epochs: keep one of them",
    ),
    Pair(
        accept=schedule("wsd", decayFraction=0.5),
        refuse=schedule("linear", decayFraction=0.5),
        at="spec.training.schedule.decayFraction",
        sentence="decayFraction has no effect on schedule linear: remove it, or choose wsd",
    ),
    Pair(
        accept=schedule("linear", finalFraction=0.0),
        refuse=schedule("constant", finalFraction=0.0),
        at="spec.training.schedule.finalFraction",
        sentence="finalFraction has no effect on schedule constant: remove it, or choose cosine, "
        "linear or wsd",
    ),
    Pair(
        accept=schedule("wsd", warmupFraction=0.5, decayFraction=0.5),
        refuse=schedule("wsd", warmupFraction=0.5, decayFraction=0.625),
        at="spec.training.schedule.decayFraction",
        sentence="warmupFraction and decayFraction are together more than 1, the whole run: lower "
        "one of them",
    ),
    # training
    Pair(
        accept=minimal(training={"budget": {"steps": None, "tokens": 6_400_000_000}}),
        refuse=minimal(training={"budget": {"steps": None, "tokens": 6_400_000_001}}),
        at="spec.training.budget.tokens",
        sentence="budget.tokens 6400000001 is 100000001 steps of batchTokens 64, and a run has at "
        "most 100000000: lower it, or raise batchTokens",
    ),
    Pair(
        accept=minimal(training={"optimizer": {"name": "ftrl", "l1": 0.5}}),
        refuse=minimal(
            training={"optimizer": {"name": "ftrl"}, "regularisation": {"proximalL1": 0.5}}
        ),
        at="spec.training.regularisation.proximalL1",
        sentence="regularisation.proximalL1 is undone by optimizer ftrl, whose weights follow "
        "from its sums of gradients: set optimizer.l1 instead",
    ),
    Pair(
        accept=minimal(training={"fineTuning": {"lora": {}}, "regularisation": {"l1": 0.5}}),
        refuse=minimal(
            training={"fineTuning": {"lora": {}}, "regularisation": {"proximalL1": 0.5}}
        ),
        at="spec.training.regularisation.proximalL1",
        sentence="regularisation.proximalL1 would make adapters of fineTuning.lora zero, and "
        "no weight of the export: remove one of them",
    ),
    Pair(
        accept=minimal(
            training={
                "budget": {"steps": None, "tokens": 577},
                "earlyStopping": {"patience": 1},
                "evaluation": {"everySteps": 10},
            }
        ),
        refuse=minimal(
            training={
                "budget": {"steps": None, "tokens": 577},
                "earlyStopping": {"patience": 1},
                "evaluation": {"everySteps": 11},
            }
        ),
        at="spec.training.evaluation.everySteps",
        sentence="earlyStopping has no effect where evaluation.everySteps 11 is more than the 10 "
        "steps of the budget: lower it, or remove earlyStopping",
    ),
    Pair(
        accept=minimal(training={"fineTuning": {"unfreezeEverySteps": 9}}),
        refuse=minimal(training={"fineTuning": {"unfreezeEverySteps": 10}}),
        at="spec.training.fineTuning.unfreezeEverySteps",
        sentence="fineTuning.unfreezeEverySteps 10 unfreezes nothing within the 10 steps of the "
        "budget: lower it, or name what is never to be trained in fineTuning.freeze",
    ),
    # training over model
    Pair(
        accept=minimal(training={"regularisation": {"dropout": 0.25}}),
        refuse=minimal(
            model={"config": {"dropout": 0.5}}, training={"regularisation": {"dropout": 0.25}}
        ),
        at="spec.training.regularisation.dropout",
        sentence="training.regularisation.dropout takes the place of model.config.dropout: "
        "remove one of them",
    ),
    # training over workers
    Pair(
        accept=minimal(
            training={"batchTokens": 96, "gradientAccumulation": 2},
            workers={"replicas": 2, "ranksPerReplica": 3},
        ),
        refuse=minimal(
            training={"batchTokens": 100, "gradientAccumulation": 2},
            workers={"replicas": 2, "ranksPerReplica": 3},
        ),
        at="spec.training.batchTokens",
        sentence="training.batchTokens 100 is not a multiple of 96, one sequence on every rank "
        "(data.sequenceLength 8 x 6 ranks x training.gradientAccumulation 2): choose 192 or "
        "another multiple",
    ),
    Pair(
        accept=LONGEST_ROW,
        refuse=changed(LONGEST_ROW, training={"gradientAccumulation": 61_036}),
        at="spec.training.batchTokens",
        sentence="one sequence on every rank is 1000013824 tokens (data.sequenceLength 8192 x 2 "
        "ranks x training.gradientAccumulation 61036), and training.batchTokens ends at "
        "1000000000: lower one of the three",
    ),
    # workers
    Pair(
        accept=workers(accelerator=DEVICES, ranksPerReplica=2),
        refuse=workers(accelerator=DEVICES, ranksPerReplica=4),
        at="spec.workers.ranksPerReplica",
        sentence="ranksPerReplica 4 differs from accelerator.count 2, and each device gets one "
        "rank: remove ranksPerReplica",
    ),
    Pair(
        accept=workers(image="localhost:5000/team/lmtraining-trainer:1.0@sha256:" + "a" * 64),
        refuse=workers(image="Team/Trainer v1"),
        at="spec.workers.image",
        sentence="image Team/Trainer v1 is not the name of an image: write host/path:tag, with a "
        "lower-case path and without spaces",
    ),
    Pair(
        accept=workers(resources={"cpu": "0.5"}),
        refuse=workers(resources={"cpu": 0}),
        at="spec.workers.resources.cpu",
        sentence="cpu 0 is not a quantity from 1m to 1024: write cores, such as 2 or 500m",
    ),
    Pair(
        accept=workers(resources={"memory": 2**31}),
        refuse=workers(resources={"memory": 2}),
        at="spec.workers.resources.memory",
        sentence="memory 2 is not a quantity from 16Mi to 64Ti: write a size with its unit, such "
        "as 2Gi",
    ),
    Pair(
        accept=workers(sharedMemory="1Mi"),
        refuse=workers(sharedMemory="512m"),
        at="spec.workers.sharedMemory",
        sentence="sharedMemory 512m is not a quantity from 1Mi to 64Ti: write 512M or 512Mi",
    ),
    Pair(
        accept=workers(sharedMemory="1024Mi", resources={"memory": "1Gi"}),
        refuse=workers(sharedMemory="1.1Gi", resources={"memory": "1Gi"}),
        at="spec.workers.sharedMemory",
        sentence="sharedMemory 1.1Gi is larger than resources.memory 1Gi, in which it counts: "
        "lower it or raise resources.memory",
    ),
    # checkpoint
    Pair(
        accept=minimal(checkpoint={"existingRun": "Resume", "path": "team/run-1"}),
        refuse=minimal(checkpoint={"existingRun": "Resume"}),
        at="spec.checkpoint.existingRun",
        sentence="existingRun Resume needs path, the run directory to go on from: set path",
    ),
    Pair(
        accept=minimal(checkpoint={"storage": {"existingClaim": "shelf"}}),
        refuse=store("gs://bucket", existingClaim="shelf"),
        at="spec.checkpoint.storage",
        sentence="storage needs exactly one of claim, existingClaim and uri: keep one of them",
    ),
    Pair(
        accept=store("abfs://runs@account.dfs.core.windows.net/team/runs"),
        refuse=store("s3://bucket/*/runs"),
        at=STORE_URI,
        sentence="uri is not one place in an object store: write s3://bucket/path, "
        "gs://bucket/path or another fsspec URI, without wildcards",
    ),
    Pair(
        accept=changed(store("s3://file/memory"), workers={"replicas": 4}),
        refuse=store("file:///mnt/runs"),
        at=STORE_URI,
        sentence="uri names what not every pod can write: write s3://bucket/path or "
        "gs://bucket/path, or use claim for a volume",
    ),
    Pair(
        accept=store("s3://bucket/..a/b..c"),
        refuse=store("s3://bucket/../other"),
        at=STORE_URI,
        sentence="uri climbs with '..': write the path it ends at",
    ),
    Pair(
        accept=store("s3://bucket/team"),
        refuse=store("s3://key:secret@bucket/team"),
        at=STORE_URI,
        sentence="uri holds a password, which everyone who may read the job would see: put it in "
        "a Secret and name that in credentials.secretRef",
    ),
    Pair(
        accept=told_to("https://example.org/mlflow", credentials=SECRET),
        refuse=told_to("mlflow.tools:5000"),
        at=TRACKER_URI,
        sentence="uri is not the address of a server: write http://host:port or https://host/path, "
        "without a query",
    ),
    Pair(
        accept=told_to("http://mlflow.tools:5000"),
        refuse=told_to("http://ada:secret@mlflow.tools:5000"),
        at=TRACKER_URI,
        sentence="uri holds a password, which everyone who may read the job would see: put it in "
        "a Secret and name that in credentials.secretRef",
    ),
    Pair(
        accept=minimal(tracking={"wandb": {"project": "Tiny models", "entity": "team_1"}}),
        refuse=told_to("wandb.tools", by="wandb"),
        at="spec.tracking.wandb.uri",
        sentence="uri is not the address of a server: write http://host:port or https://host/path, "
        "without a query",
    ),
    Pair(
        accept=told_to("https://wandb.tools", by="wandb", credentials=SECRET),
        refuse=told_to("https://ada:secret@wandb.tools", by="wandb"),
        at="spec.tracking.wandb.uri",
        sentence="uri holds a password, which everyone who may read the job would see: put it in "
        "a Secret and name that in credentials.secretRef",
    ),
    Pair(
        accept=store("s3://bucket/team", credentials=SECRET),
        refuse=minimal(checkpoint={"storage": {"claim": {}, "credentials": SECRET}}),
        at="spec.checkpoint.storage.credentials",
        sentence="credentials has no effect on a claim: remove credentials, or set uri",
    ),
    Pair(
        accept=minimal(checkpoint={"storage": {"claim": {"size": "1Mi"}}}),
        refuse=minimal(checkpoint={"storage": {"claim": {"size": 10}}}),
        at="spec.checkpoint.storage.claim.size",
        sentence="size 10 is not a quantity from 1Mi to 64Ti: write a size with its unit, such as "
        "10Gi",
    ),
    Pair(
        accept=minimal(workers={"replicas": 2}, checkpoint={"storage": {"claim": {}}}),
        refuse=minimal(
            workers={"replicas": 2},
            checkpoint={"storage": {"claim": {"accessMode": "ReadWriteOnce"}}},
        ),
        at="spec.checkpoint.storage.claim.accessMode",
        sentence="workers.replicas 2 needs storage that all pods can write: set "
        "checkpoint.storage.claim.accessMode to ReadWriteMany, or workers.replicas to 1",
    ),
    # parallelism over training
    Pair(
        accept=changed(optimizer("ftrl"), parallelism={"layout": "fsdp"}),
        refuse=changed(optimizer("adafactor"), parallelism={"layout": "fsdp"}),
        at="spec.training.optimizer.name",
        sentence="training.optimizer.name adafactor looks at whole matrices, of which "
        "parallelism.layout fsdp leaves each rank a part: choose adamw, lion or another optimizer "
        "that does not, or set parallelism.layout to ddp",
    ),
    Pair(
        accept=minimal(training={"fineTuning": {"lora": {"rank": 4}}}),
        refuse=minimal(
            training={"fineTuning": {"lora": {"rank": 4}}}, parallelism={"layout": "fsdp"}
        ),
        at="spec.training.fineTuning.lora",
        sentence="training.fineTuning.lora has no merge for weights that parallelism.layout fsdp "
        "leaves in parts: set parallelism.layout to ddp, which trains adapters in little more "
        "memory than the weights take",
    ),
    # training over data and workers
    Pair(
        accept=minimal(training={"batchTokens": 16, "regularisation": {"mixup": 0.5}}),
        refuse=minimal(training={"batchTokens": 8, "regularisation": {"mixup": 0.5}}),
        at="spec.training.regularisation.mixup",
        sentence="training.regularisation.mixup mixes two sequences of a micro-batch, and each has "
        "only one of data.sequenceLength 8: double training.batchTokens 8, or lower "
        "training.gradientAccumulation",
    ),
    Pair(
        accept=minimal(training={"regularisation": {"mixup": 0.5}}),
        refuse=changed(MASKED, training={"regularisation": {"mixup": 0.5}}),
        at="spec.training.regularisation.mixup",
        sentence="training.regularisation.mixup is not for model.task masked-lm: set it to 0, or "
        "choose causal-lm or backward-lm",
    ),
    Pair(
        accept=changed(MASKED, data={"tokenizer": {"vocabSize": 259}}),
        refuse=changed(MASKED, data={"tokenizer": {"vocabSize": 258}}),
        at="spec.data.tokenizer.vocabSize",
        sentence="data.tokenizer.vocabSize 258 has no room for the special tokens of model.task "
        "masked-lm beside 256 bytes: set it to 259 or more",
    ),
    *(
        Pair(
            accept=changed(LABELLED, data={side: [{"uri": "s3://b/1", "format": "jsonl"}]}),
            refuse=changed(LABELLED, data={side: [{"uri": "s3://b/1", "format": "csv"}]}),
            at=f"spec.data.{side}",
            sentence=f"data.{side} needs JSON lines for model.task sequence-classification, each "
            "with a text and its label: set format of each source to jsonl",
        )
        for side in ("train", "validation")
    ),
    Pair(
        accept=changed(LABELLED, data={"train": [JSON_LINES, STARS]}),
        refuse=changed(
            LABELLED, data={"train": [{**JSON_LINES, "weight": 1.0}, {**STARS, "weight": 2.0}]}
        ),
        at="spec.data.train",
        sentence="weight of data.train is for tasks that read running text: remove it, or choose "
        "another model.task than sequence-classification",
    ),
    Pair(
        accept=changed(MASKED, data={"deduplicate": "exact"}),
        refuse=changed(LABELLED, data={"deduplicate": "exact"}),
        at="spec.data.deduplicate",
        sentence="data.deduplicate is for tasks that read running text: remove it, or choose "
        "another model.task than sequence-classification",
    ),
    *(
        Pair(
            accept=changed(LABELLED, data={side: [STARS]}),
            refuse=minimal(data={side: [STARS]}),
            at=f"spec.data.{side}",
            sentence=f"labelField of data.{side} has no effect on model.task causal-lm: remove it, "
            "or choose a task with labels",
        )
        for side in ("train", "validation")
    ),
    Pair(
        accept=changed(MASKED, training={"evaluation": {"robustness": {"seeds": 1}}}),
        refuse=changed(LABELLED, training={"evaluation": {"robustness": {"seeds": 1}}}),
        at="spec.training.evaluation.robustness",
        sentence="training.evaluation.robustness is for tasks that read running text: remove it, "
        "or choose another model.task than sequence-classification",
    ),
    # parallelism over checkpoint
    Pair(
        accept=changed(store("s3://bucket/team"), parallelism={"layout": "ddp"}),
        refuse=changed(store("s3://bucket/team"), parallelism={"layout": "fsdp"}),
        at="spec.parallelism.layout",
        sentence="parallelism.layout fsdp needs a volume that all ranks write their part of a "
        "checkpoint to: use checkpoint.storage.claim or existingClaim instead of uri, or set "
        "parallelism.layout to ddp",
    ),
    # recovery
    Pair(
        accept=minimal(recovery={"backoffSeconds": 60}),
        refuse=minimal(recovery={"backoffSeconds": 61}),
        at="spec.recovery.backoffSeconds",
        sentence="backoffSeconds 61 is above backoffSecondsMax 60: lower it or raise the limit",
    ),
    Pair(
        accept=minimal(recovery={"rules": [{**CRASH_RULE, "action": "Retry"}]}),
        refuse=minimal(recovery={"rules": [{**CRASH_RULE, "action": "Fail"}]}),
        at="spec.recovery.rules[0].restartsMax",
        sentence="restartsMax 2 has no effect with action Fail: remove it, or set action to Retry",
    ),
)

CHANGES = (
    Change(
        allow={"model": {"task": "causal-lm"}},
        refuse={"model": {"config": {"layers": 2}}},
        at="spec.model",
    ),
    Change(
        allow={"data": {"validation": []}},
        refuse={"data": {"train": [{"uri": "file:///other.txt"}]}},
        at="spec.data",
    ),
    Change(
        allow={"training": {"seed": 1}},
        refuse={"training": {"optimizer": {"learningRate": 0.01}}},
        at="spec.training",
        sentence="{at} cannot be changed once the job exists, but for training.budget: make "
        "a new job, or undo the change",
    ),
    Change(
        allow={"training": {"budget": {"steps": 10}}},
        refuse={"training": {"budget": {"steps": 9}}},
        at="spec.training.budget",
        sentence="{at} can only be raised once the job exists, in steps or tokens as it was made, "
        "since steps that are done cannot be taken back: put the old value back, or set a larger "
        "one",
    ),
    Change(
        allow={"parallelism": {"layout": "ddp"}},
        refuse={"parallelism": {"layout": "fsdp"}},
        at="spec.parallelism",
    ),
    Change(
        allow={"precision": {"compute": "auto"}},
        refuse={"precision": {"compute": "fp32"}},
        at="spec.precision",
    ),
    Change(
        allow={"stability": {"skippedStepsMax": 10}},
        refuse={"stability": {"skippedStepsMax": 11}},
        at="spec.stability",
    ),
    Change(
        allow={"workers": {"resources": {"memory": "2Gi"}}},
        refuse={"workers": {"resources": {"memory": "3Gi"}}},
        at="spec.workers",
    ),
    Change(
        allow={"checkpoint": {"storage": {"claim": {"size": "10Gi"}}}},
        refuse={"checkpoint": {"keepLast": 4, "everySteps": 5}},
        at="spec.checkpoint",
        sentence="{at} cannot be changed once the job exists, but for checkpoint.everySteps: make "
        "a new job, or undo the change",
    ),
    Change(
        allow={"tracking": {}},
        refuse={"tracking": {"mlflow": {"uri": "http://mlflow:5000"}}},
        at="spec.tracking",
    ),
    Change(
        allow={"queue": None},
        refuse={"queue": {"name": "team"}},
        at="spec.queue",
        sentence="{at} cannot be changed once the job exists, but for its priorityClass: make a "
        "new job, or undo the change",
    ),
)

#: Batches that do not divide into rows, and the batch that is advised.
BATCH_ADVICE: tuple[tuple[Document, int], ...] = (
    # smaller than one sequence on every rank
    (minimal(training={"batchTokens": 8}, workers={"replicas": 3}), 24),
    (changed(LONGEST_ROW, training={"batchTokens": 8}), ROW_TOKENS_MAX),
    # the next multiple would be out of bounds
    (minimal(training={"batchTokens": 999_999_999}, workers={"ranksPerReplica": 3}), 999_999_984),
    (changed(LONGEST_ROW, training={"batchTokens": 10**9}), ROW_TOKENS_MAX),
)

#: What people write for two gigabytes; Kubernetes knows none of it.
SIZE_MISTAKES = ("2GB", "2GiB", "2gb", "2gib", "2Gb", "2g", "2gi")

#: What may change in a job that exists: everything else is immutable.
MUTABLE = {
    "podTemplate": {"nodeSelector": {"pool": "b"}, "priorityClassName": "high"},
    "recovery": {"restartsMax": 9},
    "suspend": True,
    "keepPodsSeconds": 0,
    "requests": {"checkpoint": "a", "rollback": {"name": "b", "toStep": 0}},
    "training": {"budget": {"steps": 11}},
    "checkpoint": {"everySteps": 5},
    "deadlines": {"startSeconds": 60, "runSeconds": 3600},
}

#: A job that breaks the bounds of one field, and that field.
OUT_OF_BOUNDS: tuple[tuple[Document, str], ...] = (
    (minimal(training={"budget": None}), "spec.training.budget"),
    (minimal(training={"budget": {"steps": 0}}), "spec.training.budget.steps"),
    (minimal(training={"budget": {"steps": "many"}}), "spec.training.budget.steps"),
    (minimal(training={"evaluation": {"sequences": 0}}), "spec.training.evaluation.sequences"),
    (minimal(training={"schedule": {"warmupFraction": 1}}), "spec.training.schedule"),
    (minimal(training={"optimizer": {"learningRate": 0}}), "spec.training.optimizer"),
    (minimal(training={"optimizer": {"beta2": 1}}), "spec.training.optimizer.beta2"),
    (minimal(data={"train": []}), "spec.data.train"),
    (minimal(data={"validationFraction": 0}), "spec.data.validationFraction"),
    (minimal(data={"tokenizer": {"vocabSize": 257}}), "spec.data.tokenizer.vocabSize"),
    (config(architecture="gpt3"), "spec.model.config.architecture"),
    (minimal(parallelism={"layout": "zero3"}), "spec.parallelism.layout"),
    (source(textField=""), "spec.data.train[0].textField"),
    (workers(replicas=0), "spec.workers.replicas"),
    (workers(accelerator={}), "spec.workers.accelerator.count"),
    (workers(resources={"cpu": 0.5}), "spec.workers.resources.cpu"),
    (workers(resources={"memory": "10GB"}), "spec.workers.resources.memory"),
    (workers(serviceAccountName="a..b"), "spec.workers.serviceAccountName"),
    (minimal(checkpoint={"path": ".."}), "spec.checkpoint.path"),
    (minimal(checkpoint={"path": "a/./b"}), "spec.checkpoint.path"),
    (minimal(checkpoint={"path": "/a"}), "spec.checkpoint.path"),
    (minimal(checkpoint={"path": "a/"}), "spec.checkpoint.path"),
    (minimal(checkpoint={"keepLast": 0}), "spec.checkpoint.keepLast"),
    (minimal(checkpoint={"writerShare": 0}), "spec.checkpoint.writerShare"),
    (minimal(suspend="maybe"), "spec.suspend"),
    # a text is no number and no truth
    (minimal(training={"budget": {"steps": "400"}}), "spec.training.budget.steps"),
    (minimal(training={"optimizer": {"learningRate": "6e-4"}}), "spec.training.optimizer"),
    (minimal(suspend="true"), "spec.suspend"),
    (workers(accelerator={"count": "2"}), "spec.workers.accelerator.count"),
    (minimal(podTemplate={"labels": {"team": 1}}), "spec.podTemplate.labels"),
    (named("Not_A_Name"), "metadata.name"),
)
