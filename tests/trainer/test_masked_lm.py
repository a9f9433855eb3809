"""The masked language model: which tokens are hidden, the loss over them, the export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lmtraining_api import JobFile
from lmtraining_trainer.data import PreparedData
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.data.tokenizer import ENCODER_TOKENS, MASK_ID, train_tokenizer
from lmtraining_trainer.evaluation import ValidationPlan
from lmtraining_trainer.model import build_model
from lmtraining_trainer.tasks import task_of
from lmtraining_trainer.tasks.masked import SPECIAL_TOKENS, Words
from tests.trainer.rank_support import job_of, run_alone, tiny_spec, write_text
from tests.trainer.test_backward_lm import prepared

pytestmark = pytest.mark.trainer

CPU = torch.device("cpu")
CONFIG = {"architecture": "bert", "layers": 1, "hiddenSize": 32, "heads": 2}
TOKENIZER = train_tokenizer(
    iter(["they see the cat, the red cat; we lose 12 blue cats by 2026"] * 20), 285, ENCODER_TOKENS
)


def model(**masking: Any) -> dict[str, Any]:
    return {"task": "masked-lm", "config": CONFIG, "masking": masking}


def plan(world_size: int, rank: int = 0, *, length: int = 16, **masking: Any) -> BatchPlan:
    generator = np.random.default_rng(5)
    text = generator.integers(SPECIAL_TOKENS, 270, size=64 * length + 1).astype(np.uint16)
    data = PreparedData(
        key="k",
        train=text,
        validation=text,
        tokenizer_json=TOKENIZER.to_str(),
        tokenizer_sha256="",
        unigram_loss=0.0,
    )
    training = {"batchTokens": 8 * length}
    sizes = {"sequenceLength": length, "tokenizer": {"vocabSize": 285}}
    spec = tiny_spec("file:///x", model=model(**masking), training=training, data=sizes)
    return BatchPlan.of(spec, data, rank=rank, world_size=world_size, device=CPU)


def hidden_in(batch: MicroBatch) -> list[tuple[list[int], list[int]]]:
    """What each sequence shows, and where tokens are hidden in it."""
    positions, weights = batch.more
    return sorted(
        (shown.tolist(), places[weight > 0].tolist())
        for shown, places, weight in zip(batch.inputs, positions, weights, strict=True)
    )


def read(world_size: int, position: int) -> list[tuple[list[int], list[int]]]:
    parts = [plan(world_size, rank).batch(position) for rank in range(world_size)]
    return sorted(each for (batch,) in parts for each in hidden_in(batch))


def test_p7_every_world_size_hides_the_same_tokens_and_the_next_epoch_others() -> None:
    assert read(1, 8) == read(2, 8) == read(4, 8)
    epoch = plan(1).epoch_sequences
    seen: dict[bool, dict[tuple[int, ...], list[int]]] = {False: {}, True: {}}
    for position in range(0, 2 * epoch, 8):
        (batch,) = plan(1).batch(position)
        texts = batch.inputs.scatter(1, batch.more[0], batch.targets)  # nothing hidden
        for text, places in zip(texts.tolist(), batch.more[0].tolist(), strict=True):
            seen[position >= epoch][tuple(text)] = places
    first, second = seen[False], seen[True]
    assert first.keys() == second.keys()
    assert sum(first[text] != second[text] for text in first) > len(first) / 2


def test_shares_are_those_of_the_paper() -> None:
    batches = [plan(1, length=64).batch(position)[0] for position in range(0, 64, 8)]
    shown = torch.cat([each.inputs.gather(1, each.more[0]).flatten() for each in batches])
    targets = torch.cat([each.targets.flatten() for each in batches])
    assert {each.targets.shape[1] for each in batches} == {10}  # 15 % of 64
    assert (shown == MASK_ID).float().mean() == pytest.approx(0.8, abs=0.06)
    assert (shown == targets).float().mean() == pytest.approx(0.1, abs=0.04)
    assert shown[shown != MASK_ID].min() >= SPECIAL_TOKENS
    for batch in batches:  # what is not hidden is shown as it is
        untouched = torch.ones_like(batch.inputs, dtype=torch.bool).scatter(1, batch.more[0], False)
        assert not (batch.inputs[untouched] == MASK_ID).any()


def test_validation_hides_the_same_tokens_whatever_the_seed(tmp_path: Path) -> None:
    data = plan(1).data
    read_ = []
    for seed in (1, 2):
        spec = tiny_spec("file:///x", model=model(), training={"seed": seed})
        examples = ValidationPlan.of(spec, data).examples
        numbers = np.arange(4)
        read_.append(examples.read(numbers, numbers, CPU))
    assert hidden_in(read_[0]) == hidden_in(read_[1])


def test_words_are_those_of_the_pre_tokenizer_and_are_hidden_whole() -> None:
    text = "they see the cat, the red cat; we lose 12 blue cats by 2026"
    words = Words.of(TOKENIZER)
    encoding = TOKENIZER.encode(text)
    row = np.array(encoding.ids)
    assert TOKENIZER.pre_tokenizer is not None
    ends = [end for _, (_, end) in TOKENIZER.pre_tokenizer.pre_tokenize_str(text)]
    wanted = [sum(end <= start for end in ends) for start, _ in encoding.offsets]
    assert words.numbered(row).tolist() == wanted
    assert max(wanted) < len(row) - 1  # some words have several tokens
    (batch,) = plan(1, wholeWords=True, share=0.3).batch(0)
    texts = batch.inputs.scatter(1, batch.more[0], batch.targets)
    for text_, (places, weights) in zip(texts.numpy(), zip(*batch.more, strict=True), strict=True):
        hidden = set(places[weights > 0].tolist())
        assert weights.sum() == pytest.approx(1.0)
        numbers = words.numbered(text_)
        of_hidden = {numbers[place] for place in hidden}
        assert hidden == {place for place, word in enumerate(numbers) if word in of_hidden}


def test_the_loss_is_that_of_plain_transformers() -> None:
    (batch,) = plan(1).batch(0)
    spec = tiny_spec("file:///x", model=model(), data={"tokenizer": {"vocabSize": 285}})
    bert = build_model(spec)
    with_loss = task_of(spec).loss(bert, spec.training.regularisation)
    labels = torch.full_like(batch.inputs, -100).scatter(1, batch.more[0], batch.targets)
    plain = bert(input_ids=batch.inputs, labels=labels).loss
    plain.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in bert.named_parameters()}
    bert.zero_grad()
    ours = with_loss(*batch.tensors)
    ours.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, parameter in bert.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobFile, dict[str, Any]]:
    """A finished job, and its report."""
    directory = tmp_path_factory.mktemp("masked")
    training = {"evaluation": {"everySteps": 12, "sequences": 8, "robustness": {"seeds": 1}}}
    uri = write_text(directory / "text.jsonl")
    job = job_of(tiny_spec(uri, model=model(wholeWords=True), training=training), directory)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    return job, outcome.link.report


def test_the_export_alone_gives_the_validation_loss_that_was_reported(
    trained: tuple[JobFile, dict[str, Any]],
) -> None:
    job, report = trained
    directory = Path(job.run_directory) / "export"
    loaded = AutoModelForMaskedLM.from_pretrained(directory).eval()
    validation = ValidationPlan.of(job.spec, prepared(job))
    batch = validation.examples.read(validation.numbers, validation.numbers, CPU)
    positions, weights = batch.more
    with torch.no_grad():
        logits = loaded(batch.inputs).logits
    hidden = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
    losses = functional.cross_entropy(hidden.transpose(1, 2), batch.targets, reduction="none")
    assert report["validation_loss"] == pytest.approx(
        (losses * weights).sum(1).mean().item(), rel=1e-5
    )
    assert len(report["robustness"]) == 6
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 2)
