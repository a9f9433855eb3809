"""Token classification: tags on first tokens, entities, the export."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer.data.labelled import NO_TAG
from lmtraining_trainer.evaluation import ValidationPlan
from lmtraining_trainer.tasks.token_classification import Entity, entities
from tests.trainer.rank_support import Outcome, job_of, run_alone, tiny_spec
from tests.trainer.test_backward_lm import prepared

pytestmark = pytest.mark.trainer

CONFIG = {"architecture": "bert", "layers": 1, "hiddenSize": 32, "heads": 2}
MODEL = {"task": "token-classification", "config": CONFIG}
NAMES = ("cat", "dog", "cow")


def write_tagged(path: Path, examples: int = 200) -> str:
    """Sentences in which the name of an animal, of one or two words, is an entity; its URI."""
    draw = random.Random(7)
    lines = []
    for _ in range(examples):
        words: list[str] = []
        tags: list[str] = []
        for _ in range(draw.randrange(1, 5)):
            name = [draw.choice(NAMES) for _ in range(draw.randrange(1, 3))]
            words += [draw.choice(("they", "see", "we")), *name]
            tags += ["O", "B-animal", *["I-animal"] * (len(name) - 1)]
        lines.append(json.dumps({"text": words, "label": tags}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path.as_uri()


def job_in(directory: Path, *, uri: str | None = None, steps: int = 12) -> JobFile:
    uri = uri or write_tagged(directory / "tagged.jsonl")
    training = {
        "budget": {"steps": steps},
        "optimizer": {"learningRate": 1e-2},
        "evaluation": {"everySteps": steps, "sequences": 64},
    }
    source: dict[str, Any] = {
        "train": [{"uri": uri, "format": "jsonl"}],
        "validationFraction": 0.2,
        "tokenizer": {"vocabSize": 265},
    }
    return job_of(tiny_spec("file:///x", model=MODEL, training=training, data=source), directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobFile, Outcome]:
    job = job_in(tmp_path_factory.mktemp("tags"), steps=120)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    return job, outcome


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-a I-a O", {(0, 2, "a")}),
        ("B-a B-a I-a", {(0, 1, "a"), (1, 3, "a")}),
        ("B-a I-b", {(0, 1, "a"), (1, 2, "b")}),
        ("O I-a I-a", {(1, 3, "a")}),
        ("B-a", {(0, 1, "a")}),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, expected: set[Entity]) -> None:
    assert entities(tags.split()) == expected


def test_it_finds_the_entities(trained: tuple[JobFile, Outcome]) -> None:
    report = trained[1].link.report
    assert report["validation_loss"] < report["unigram_loss"] - 0.5
    assert report["validation_f1"] > 0.8
    assert report["labels"] == ["B-animal", "I-animal", "O"]


def test_a_tag_lies_on_the_first_token_of_its_word(trained: tuple[JobFile, Outcome]) -> None:
    job, data = trained[0], prepared(trained[0])
    tokenizer = AutoTokenizer.from_pretrained(Path(job.run_directory) / "export")
    assert data.validation_examples is not None and data.validation_tags is not None
    (end, _), *_ = data.validation_examples
    tags, tokens = data.validation_tags[:end], data.validation[:end]
    words = [
        tokenizer.decode([int(token)]) for token, tag in zip(tokens, tags, strict=True) if tag >= 0
    ]
    assert tags[0] == NO_TAG  # the start token
    assert (tags == NO_TAG).sum() > 1  # some words have several tokens
    assert {word[0] for word in words} <= set("tswcd")


def test_the_export_alone_gives_the_figures_that_were_reported(
    trained: tuple[JobFile, Outcome],
) -> None:
    """Plain transformers, from the words themselves."""
    job, outcome = trained
    directory, report = Path(job.run_directory) / "export", outcome.link.report
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForTokenClassification.from_pretrained(directory).eval()
    names = model.config.id2label
    known = {tuple(json.loads(line)["text"]): json.loads(line)["label"]
             for line in (Path(job.run_directory).parent / "tagged.jsonl").open()}  # fmt: skip
    by_tokens = {tuple(tokenizer(list(words), is_split_into_words=True).input_ids): words
                 for words in known}  # fmt: skip
    data = prepared(job)
    assert data.validation_examples is not None
    starts = [0, *data.validation_examples[:-1, 0]]
    losses, right, words_seen, found, told, there = [], 0, 0, 0, 0, 0
    for number in ValidationPlan.of(job.spec, data).numbers:
        tokens = data.validation[starts[number] : data.validation_examples[number, 0]]
        words = by_tokens[tuple(int(token) for token in tokens)]
        inputs = tokenizer(
            list(words), is_split_into_words=True, return_tensors="pt", truncation=True
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        places = inputs.word_ids()
        firsts = [
            place for place, word in enumerate(places)
            if word is not None and word != (places[place - 1] if place else None)
        ]  # fmt: skip
        wanted = [known[words][places[place]] for place in firsts]
        numbers = torch.tensor([model.config.label2id[tag] for tag in wanted])
        losses.append(functional.cross_entropy(logits[firsts], numbers).item())
        said = [names[int(one)] for one in logits[firsts].argmax(-1)]
        right += sum(one == other for one, other in zip(said, wanted, strict=True))
        words_seen += len(wanted)
        ours, theirs = entities(said), entities(wanted)
        found, told, there = found + len(ours & theirs), told + len(ours), there + len(theirs)
    assert report["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert report["validation_accuracy"] == pytest.approx(right / words_seen)
    assert report["validation_f1"] == pytest.approx(2 * found / (told + there))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, '2 words in "text" and 1 tags in "label"'),
        ({"text": [], "label": []}, "0 words"),
        ({"text": "a", "label": ["O"]}, 'no list of texts "text"'),
        ({"text": ["a"]}, 'no list of texts "label"'),
        (
            {"text": ["O", "B-x"], "label": ["O", "Liddell"]},
            'tag 2 of "label" is not O, B-name or I-name: mend that line, or, where "label" holds '
            "the words, exchange textField and labelField",
        ),
        ({"text": [""], "label": ["O"]}, 'no list of texts "text"'),
    ],
)
def test_a_bad_record_is_refused_with_its_place(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": ["a"], "label": ["O"]}\n' + json.dumps(record) + "\n")
    outcome = run_alone(job_in(tmp_path, uri=path.as_uri()))
    assert (outcome.end, outcome.failure_class) == ("error", FailureClass.DATA), outcome
    assert "x.jsonl line 2" in outcome.message
    assert "Liddell" not in outcome.message, "P11"
    assert said in outcome.message
