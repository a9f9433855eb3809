"""Sequence classification: labels, padding, what validation measures, the export."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lmtraining_api import FailureClass, JobFile
from lmtraining_api.job import Lora
from lmtraining_api.report_parts import LABELS_SHOWN_MAX
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.evaluation import ValidationPlan
from lmtraining_trainer.lora import add_adapters
from lmtraining_trainer.model import build_model
from lmtraining_trainer.tasks import task_of
from tests.trainer.rank_support import Outcome, job_of, run_alone, tiny_spec
from tests.trainer.test_backward_lm import prepared

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")
CONFIG = {"architecture": "bert", "layers": 1, "hiddenSize": 32, "heads": 2}
MODEL = {"task": "sequence-classification", "config": CONFIG}
WORDS = {"animal": ("cat", "dog", "cow"), "colour": ("red", "blue", "green"), "none": ("by", "of")}


def write_labelled(path: Path, examples: int = 400, **more: str) -> str:
    """Texts of 2 to 30 words, of which some are of one kind, which is the label; its URI."""
    draw = random.Random(7)
    lines = []
    for _ in range(examples):
        label = draw.choice(list(WORDS))
        texts = [draw.choice(("they", "see", "we", *WORDS[label] * 3)) for _ in range(2)]
        texts += [draw.choice(WORDS[label]) for _ in range(draw.randrange(29))]
        lines.append(json.dumps({"text": " ".join(texts), "label": label} | more))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path.as_uri()


def job_in(directory: Path, *, uri: str | None = None, steps: int = 12, **data: Any) -> JobFile:
    uri = uri or write_labelled(directory / "labelled.jsonl")
    training = {
        "budget": {"steps": steps},
        "optimizer": {"learningRate": 3e-3},
        "evaluation": {"everySteps": steps, "sequences": 64},
    }
    source = {"train": [{"uri": uri, "format": "jsonl"}], "validationFraction": 0.2}
    return job_of(
        tiny_spec("file:///x", model=MODEL, training=training, data=source | data), directory
    )


def refused(directory: Path, **fields: Any) -> str:
    outcome = run_alone(job_in(directory, **fields))
    assert (outcome.end, outcome.failure_class) == ("error", FailureClass.DATA), outcome
    return outcome.message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobFile, Outcome]:
    job = job_in(tmp_path_factory.mktemp("labels"), steps=240)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    return job, outcome


def test_it_learns_and_says_how_well(trained: tuple[JobFile, Outcome]) -> None:
    report = trained[1].link.report
    assert report["validation_loss"] < report["unigram_loss"] - 0.5
    assert report["validation_accuracy"] > 0.8
    assert report["validation_f1"] > 0.8
    assert report["labels"] == ["animal", "colour", "none"]  # in sorted order


def test_the_export_alone_gives_the_figures_that_were_reported(
    trained: tuple[JobFile, Outcome],
) -> None:
    """Plain transformers, from the texts themselves."""
    job, outcome = trained
    directory, report = Path(job.run_directory) / "export", outcome.link.report
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert model.config.id2label == {0: "animal", 1: "colour", 2: "none"}
    data = prepared(job)
    assert data.validation_examples is not None
    ends, numbers = data.validation_examples.T
    starts = [0, *ends[:-1]]
    texts = [
        tokenizer.decode(data.validation[start:end].astype(int), skip_special_tokens=True)
        for start, end in zip(starts, ends, strict=True)
    ]
    plan = ValidationPlan.of(job.spec, data)
    chosen = [texts[number] for number in plan.numbers]
    labels = torch.from_numpy(numbers[plan.numbers])
    inputs = tokenizer(chosen, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        logits = model(**inputs).logits
    said = logits.argmax(-1)
    assert report["validation_loss"] == pytest.approx(
        functional.cross_entropy(logits, labels).item(), rel=1e-4
    )
    assert report["validation_accuracy"] == pytest.approx((said == labels).float().mean().item())
    scores = []
    for label in range(3):
        right = int(((said == label) & (labels == label)).sum())
        scores.append(2 * right / int((said == label).sum() + (labels == label).sum()))
    assert report["validation_f1"] == pytest.approx(np.mean(scores))


def test_a_longer_text_is_cut_and_counted(trained: tuple[JobFile, Outcome]) -> None:
    data = prepared(trained[0])
    assert data.train_examples is not None and data.validation_examples is not None
    sizes = np.concatenate(
        [np.diff(t[:, 0], prepend=0) for t in (data.train_examples, data.validation_examples)]
    )
    assert trained[1].link.report["cut_examples"] == int((sizes > 16).sum()) > 0


def test_padding_is_never_attended_to_and_company_changes_nothing(
    trained: tuple[JobFile, Outcome],
) -> None:
    job, data = trained[0], prepared(trained[0])
    examples = task_of(job.spec).training(job.spec, data)
    numbers = np.arange(32)
    together = examples.read(numbers, numbers, CPU)
    attended = together.more[0]
    assert (attended == 0).any() and (attended == 1).all(dim=1).any()
    spec = job.spec
    model = build_model(spec, data.labels).eval()
    with torch.no_grad():
        logits = model(input_ids=together.inputs, attention_mask=attended).logits
        noise = torch.where(attended == 0, 77, together.inputs)
        assert torch.allclose(
            model(input_ids=noise, attention_mask=attended).logits, logits, atol=1e-6
        )
        for number in (0, 7, 31):
            one = examples.read(numbers[number : number + 1], numbers[:1], CPU)
            alone = model(input_ids=one.inputs, attention_mask=one.more[0]).logits
            assert torch.allclose(alone[0], logits[number], atol=1e-5)


def test_every_world_size_reads_the_same_examples_of_a_step(
    trained: tuple[JobFile, Outcome],
) -> None:
    job, data = trained[0], prepared(trained[0])

    def rows(world_size: int) -> list[tuple[list[int], int]]:
        plans = [
            BatchPlan.of(job.spec, data, rank=rank, world_size=world_size, device=CPU)
            for rank in range(world_size)
        ]
        return sorted(
            (row[there.bool()].tolist(), int(label))
            for plan in plans
            for batch in plan.batch(8)
            for row, label, there in zip(*batch.tensors, strict=True)
        )

    assert rows(1) == rows(2) == rows(4)
    assert len(rows(1)) == 8


def test_adapters_leave_the_classifier_to_be_trained() -> None:
    """It is new: frozen, it would stay as random as it was drawn."""
    model = build_model(job_in_nowhere().spec, ("a", "b"))
    add_adapters(model, Lora(rank=2), seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"classifier.weight", "classifier.bias"} < trained
    assert all("lora_" in name or name.startswith("classifier.") for name in trained)


def job_in_nowhere() -> JobFile:
    return job_in(Path("/nowhere"), uri="file:///nowhere.jsonl")


class TestBadInput:
    def test_an_unseen_label_is_named_with_its_place_and_the_known_ones(
        self, tmp_path: Path
    ) -> None:
        odd = write_labelled(tmp_path / "odd.jsonl", 3, label="plant")
        said = refused(tmp_path, validation=[{"uri": odd, "format": "jsonl"}],
                       validationFraction=0.01)  # fmt: skip
        assert 'odd.jsonl line 1: its "label" is a label of no example of data.train' in said
        assert "which has animal, colour, none: correct it" in said
        assert "plant" not in said, "P11: it may be a text"

    def test_a_label_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text('{"text": "a", "label": "b"}\n{"text": "a"}\n')
        assert (
            'line 2 has no field "label", but the fields text: set data.train[0].labelField'
            in refused(tmp_path, uri=path.as_uri())
        )

    @pytest.mark.parametrize("label", ["null", "[1]", "1.5", "true", '""'])
    def test_what_is_no_label(self, tmp_path: Path, label: str) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text(f'{{"text": "a", "label": {label}}}\n')
        assert 'line 1: field "label" is not a text or a whole number' in refused(
            tmp_path, uri=path.as_uri()
        )

    def test_one_label_tells_nothing_apart(self, tmp_path: Path) -> None:
        uri = write_labelled(tmp_path / "x.jsonl", 5, label="a")
        assert "all 5 examples of data.train have the same label" in refused(tmp_path, uri=uri)

    def test_a_field_that_is_no_label_has_too_many_values(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text("".join(f'{{"text": "a{n}", "label": {n}}}\n' for n in range(1100)))
        assert 'field "label" has more than 1000 different labels' in refused(
            tmp_path, uri=path.as_uri()
        )

    def test_p11_a_field_of_texts_is_not_taken_for_labels(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        lines = [json.dumps({"text": f"patient {n} is ill", "stars": n % 3}) for n in range(40)]
        path.write_text("\n".join(lines + lines[:10]))
        source = {"uri": path.as_uri(), "format": "jsonl", "labelField": "text"}
        said = refused(tmp_path, train=[source])
        assert "50 examples of data.train have 40 different labels" in said
        assert "set labelField" in said
        assert "patient" not in said

    def test_too_few_examples_for_a_batch(self, tmp_path: Path) -> None:
        uri = write_labelled(tmp_path / "x.jsonl", 8)
        said = refused(tmp_path, uri=uri, tokenizer={"vocabSize": 259})
        assert "but one batch takes 8" in said


def test_p11_status_is_told_a_bounded_list_of_short_labels(tmp_path: Path) -> None:
    """One of two of the labels could be a sentence."""
    path = tmp_path / "many.jsonl"
    lines = [
        json.dumps(
            {"text": f"word {n % 120} of {n}", "label": f"{n % 120:03} {'x' * (n % 2 * 30)}"}
        )
        for n in range(480)
    ]
    path.write_text("\n".join(lines))
    outcome = run_alone(job_in(tmp_path, uri=path.as_uri(), steps=2))
    assert outcome.end == "finished", outcome
    labels = outcome.link.report["labels"]
    assert len(labels) == LABELS_SHOWN_MAX + 1
    assert labels[:2] == ["000 ", "002 "]
    assert labels[-1] == "and 70 more"
    assert not any("x" in label for label in labels)
