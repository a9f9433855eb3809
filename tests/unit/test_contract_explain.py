"""What a person reads when a document is wrong: the path, the value, the fix, and no secret."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from lmtraining_api import (
    ExitRecord,
    JobFile,
    LMTrainingJob,
    explain_validation_error,
    problems_of,
)
from lmtraining_api.explain import PROBLEMS_MAX
from lmtraining_api.job import TrainingSpec
from lmtraining_api.paths import field_paths
from lmtraining_api.synonyms import PATH_OF_SYNONYM
from tests.contract_cases import MINIMAL, Document, config, merged, minimal, source, workers

pytestmark = pytest.mark.unit


def explained(document: Any) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        LMTrainingJob.from_document(document)
    return explain_validation_error(refused.value)


def test_a_required_field_that_is_misspelt_is_one_problem() -> None:
    document = minimal(training={"batchTokens": None, "batchTokns": 64})
    sentence = "spec.training.batchTokns is not a field of spec.training: did you mean batchTokens?"
    assert problems_of(document) == [sentence]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        # keys that are free
        (
            minimal(podTemplate={"labels": {"-a": "x"}}),
            'spec.podTemplate.labels: key "-a" is not one that Kubernetes takes: write at most 63 '
            "letters, digits and . _ - with a letter or digit at each end, after an optional "
            "domain and a slash",
        ),
        # misspelt fields
        (
            minimal(trainng={"seed": 1}),
            "spec.trainng is not a field of spec: did you mean training?",
        ),
        (
            minimal(training={"optimizer": {"LearningRate": 1}}),
            "spec.training.optimizer.LearningRate is not a field of spec.training.optimizer: did "
            "you mean learningRate?",
        ),
        (
            minimal(training={"batch_tokens": 64}),
            "spec.training.batch_tokens is not a field of spec.training: did you mean batchTokens?",
        ),
        (
            minimal(learningRate=1),
            "spec.learningRate is not a field of spec: did you mean "
            "spec.training.optimizer.learningRate?",
        ),
        # what other trainers call it
        (
            minimal(training={"optimizer": {"lr": 1e-3}}),
            "spec.training.optimizer.lr is not a field of spec.training.optimizer: did you mean "
            "learningRate (Peak learning rate; adafactor's is relative to the size of a weight)?",
        ),
        (
            minimal(training={"batchTokens": None, "batch_size": 32}),
            "spec.training.batch_size is not a field of spec.training: did you mean batchTokens "
            "(Tokens in one optimizer step, over all ranks and accumulated micro-batches)?",
        ),
        (
            minimal(n_embd=128),
            "spec.n_embd is not a field of spec: did you mean spec.model.config.hiddenSize (Width "
            "of the residual stream)?",
        ),
        (
            minimal(training={"budget": {"wallClock": "1h"}}),
            "spec.training.budget.wallClock is not a field of spec.training.budget: remove it, or "
            "use one of steps, tokens, epochs",
        ),
        (
            source(passwrd="hunter2"),
            "spec.data.train[0].passwrd is not a field of spec.data.train[0]: remove it, or use "
            "one of uri, format, textField, labelField, credentials, weight",
        ),
        (
            merged(MINIMAL, {"sepc": {}}),
            "sepc is not a field of this document: did you mean spec?",
        ),
        # missing fields
        (
            minimal(training={"batchTokens": None}),
            "spec.training.batchTokens is missing: set it (Tokens in one optimizer step, over all "
            "ranks and accumulated micro-batches)",
        ),
        (merged(MINIMAL, {"spec": None}), "spec is missing: set it (What the job should be)"),
        # wrong values
        (config(layers=0), "spec.model.config.layers is 0: choose 1 or more"),
        (config(layers=257), "spec.model.config.layers is 257: choose 256 or less"),
        (
            minimal(training={"optimizer": {"learningRate": 0}}),
            "spec.training.optimizer.learningRate is 0: choose more than 0.0",
        ),
        (
            minimal(training={"optimizer": {"beta1": 1}}),
            "spec.training.optimizer.beta1 is 1: choose less than 1.0",
        ),
        (
            config(architecture="gpt3"),
            "spec.model.config.architecture is \"gpt3\": choose 'gpt2', 'llama' or 'bert'",
        ),
        (config(layers="many"), 'spec.model.config.layers is "many": write a whole number'),
        (
            config(layers="4"),
            'spec.model.config.layers is "4": write a whole number, without quotes',
        ),
        (
            minimal(training={"gradientClipNorm": "1e-1"}),
            'spec.training.gradientClipNorm is "1e-1": write a number, without quotes',
        ),
        (minimal(suspend="True"), 'spec.suspend is "True": write true or false, without quotes'),
        (config(layers=1.5), "spec.model.config.layers is 1.5: write a whole number"),
        (
            minimal(training={"gradientClipNorm": "big"}),
            'spec.training.gradientClipNorm is "big": write a number',
        ),
        (
            minimal(training={"gradientClipNorm": float("nan")}),
            "spec.training.gradientClipNorm is NaN: write a finite number",
        ),
        (minimal(suspend="maybe"), 'spec.suspend is "maybe": write true or false'),
        (
            workers(serviceAccountName=7),
            "spec.workers.serviceAccountName is 7: write text (put it in quotes)",
        ),
        (minimal(workers=[]), "spec.workers is a list: write a block of fields"),
        (
            minimal(data={"train": {"uri": "x"}}),
            "spec.data.train is a block of fields: write a list",
        ),
        (minimal(data={"train": []}), "spec.data.train has 0 entries: give 1 or more"),
        (
            minimal(data={"train": [{"uri": f"s3://b/{n}"} for n in range(65)]}),
            "spec.data.train has too many entries: give 64 or fewer",
        ),
        (source(""), "spec.data.train[0].uri is too short: write 1 or more characters"),
        (
            source("s3://" + "x" * 1020),
            "spec.data.train[0].uri is too long: write 1024 characters or fewer",
        ),
        (
            workers(resources={"memory": "10GB"}),
            "spec.workers.resources.memory: memory 10GB is not a quantity from 16Mi to 64Ti: write "
            "10G or 10Gi",
        ),
        (
            workers(resources={"cpu": 0.5}),
            'spec.workers.resources.cpu is 0.5: write it as text, "0.5"',
        ),
        (
            minimal(checkpoint={"path": "../x"}),
            'spec.checkpoint.path is "../x": write a relative path such as team/run-1 of letters, '
            "digits and . _ -",
        ),
        (
            merged(MINIMAL, {"kind": "Job"}),
            "kind is \"Job\": choose 'LMTrainingJob'",
        ),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_one_mistake_gives_one_sentence(document: Document, sentence: str) -> None:
    assert explained(document) == [sentence]


def test_each_name_from_elsewhere_leads_to_a_field_of_ours() -> None:
    paths = set(field_paths(LMTrainingJob))
    assert set(PATH_OF_SYNONYM.values()) <= paths
    ours = {path.rpartition(".")[2].lower() for path in paths}
    assert set(PATH_OF_SYNONYM) & ours <= {"steps"}, "a name of ours needs no synonym"


@pytest.mark.parametrize("document", [[], "text", None, 3], ids=str)
def test_what_is_no_document_at_all(document: Any) -> None:
    (sentence,) = explained(document)
    assert sentence.startswith("the document is ")
    assert sentence.endswith(": write a block of fields")


def test_every_mistake_is_told_at_once() -> None:
    document = minimal(trainng={}, suspend="maybe", model={"config": {"heads": 3}})
    assert [sentence.split()[0] for sentence in explained(document)] == [
        "spec.model.config.heads:",
        "spec.suspend",
        "spec.trainng",
    ]


def test_there_is_a_limit() -> None:
    document = minimal(**{f"field{n}": n for n in range(PROBLEMS_MAX + 5)})
    sentences = explained(document)
    assert len(sentences) == PROBLEMS_MAX + 1
    assert sentences[-1] == "and 5 more problems"


@pytest.mark.parametrize(
    "document",
    [
        source(secretKey="hunter2"),
        source("s3://key:hunter2@bucket/a"),
        source(credentials="hunter2"),
        source(credentials={"secretRef": "hunter2"}),
        source(credentials={"secretRef": {"name": "hunter2/"}}),
        source("s3://key:hunter2@" + "x" * 1024),
        minimal(data={"train": "s3://key:hunter2@bucket/a"}),
        minimal(data={"train": [["hunter2"]]}),
    ],
    ids=lambda document: str(document["spec"]["data"])[:60],
)
def test_no_secret_is_repeated(document: Document) -> None:
    """P11: the sentences reach status and logs."""
    assert "hunter2" not in "".join(explained(document) + problems_of(document))


def test_a_spec_in_a_job_file_is_as_strict_as_in_a_job() -> None:
    spec = LMTrainingJob.from_document(MINIMAL).spec.model_dump(
        include=set(TrainingSpec.model_fields)
    )
    document = {
        "jobName": "tiny",
        "namespace": "default",
        "jobUid": "u",
        "runDirectory": "/storage/runs/tiny",
        "dataCacheDirectory": "/storage/data-cache",
        "spec": spec,
        "fromANewerOperator": 1,
    }
    JobFile.model_validate(document)
    with pytest.raises(ValidationError) as refused:
        JobFile.model_validate(merged(document, {"spec": {"training": {"newField": 1}}}))
    (sentence,) = explain_validation_error(refused.value)
    assert sentence.startswith("spec.training.newField is not a field of spec.training: remove it")


def test_a_record_and_a_model_from_elsewhere_are_explained_too() -> None:
    with pytest.raises(ValidationError) as refused:
        ExitRecord.model_validate({})
    assert "exitCode is missing: set it" in explain_validation_error(refused.value)
    with pytest.raises(ValidationError) as foreign:
        TypeAdapter(int).validate_python("x")
    assert explain_validation_error(foreign.value) == ['the document is "x": write a whole number']
