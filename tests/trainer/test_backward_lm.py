"""The backward language model reads a text from its end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmtraining_api import JobFile
from lmtraining_trainer.data import PreparedData, open_prepared
from lmtraining_trainer.data.batches import BatchPlan
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID
from lmtraining_trainer.generate import sample
from tests.trainer.rank_support import job_of, run_alone, tiny_spec, write_text

pytestmark = pytest.mark.trainer

MODEL = {"task": "backward-lm", "config": {"layers": 1, "hiddenSize": 32, "heads": 2}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobFile, float]:
    """A finished job, and the validation loss that it reported."""
    directory = tmp_path_factory.mktemp("backward")
    training = {
        "budget": {"steps": 60},
        "optimizer": {"learningRate": 1e-2},
        "evaluation": {"everySteps": 60, "sequences": 8},
    }
    spec = tiny_spec(write_text(directory / "text.jsonl"), model=MODEL, training=training)
    job = job_of(spec, directory)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    return job, outcome.link.report["validation_loss"]


def test_it_reads_the_same_tokens_from_right_to_left() -> None:
    text = np.arange(2000, dtype=np.uint16)
    data = PreparedData(
        key="k",
        train=text,
        validation=text,
        tokenizer_json="",
        tokenizer_sha256="",
        unigram_loss=0.0,
    )
    read = {}
    for task in ("causal-lm", "backward-lm"):
        spec = tiny_spec("file:///x", model=MODEL | {"task": task})
        plan = BatchPlan.of(spec, data, rank=0, world_size=1, device=torch.device("cpu"))
        (read[task],) = plan.batch(8)
    backward, forward = read["backward-lm"], read["causal-lm"]
    assert torch.equal(backward.inputs, forward.targets.flip(1))
    assert torch.equal(backward.targets, forward.inputs.flip(1))


def prepared(job: JobFile) -> PreparedData:
    """The data of a finished job."""
    cache = Path(job.data_cache_directory)
    (key,) = (path.parent.name for path in cache.glob("*/manifest.json"))
    data = open_prepared(cache, key)
    assert data is not None
    return data


def test_the_export_alone_gives_the_validation_loss_that_was_reported(
    trained: tuple[JobFile, float],
) -> None:
    """Plain transformers on the reversed text, and not on the text as it stands."""
    job, reported = trained
    model = AutoModelForCausalLM.from_pretrained(Path(job.run_directory) / "export").eval()
    assert model.config.reading_direction == "right-to-left"
    text = torch.from_numpy(prepared(job).validation.astype(np.int64))
    rows = torch.stack([text[start : start + 17] for start in starts(len(text), job)])
    losses = {}
    for name, tokens in (("reversed", rows.flip(1)), ("as it stands", rows)):
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits
        losses[name] = functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten()
        ).item()
    assert losses["reversed"] == pytest.approx(reported, rel=1e-5)
    assert losses["as it stands"] > losses["reversed"] + 0.1


def starts(tokens: int, job: JobFile) -> list[int]:
    """Where the validation sequences begin: spread evenly over the text."""
    there, wanted = (tokens - 1) // 16, job.spec.training.evaluation.sequences
    count = min(there, wanted)
    return [number * there // count * 16 for number in range(count)]


def test_a_sample_ends_with_the_prompt(trained: tuple[JobFile, float]) -> None:
    directory = Path(trained[0].run_directory) / "export"
    one, same, other = (sample(directory, "the cat", 24, seed) for seed in (1, 1, 2))
    assert one.endswith("the cat") and len(one) > len("the cat")
    assert one == same != other
    assert sample(directory, "", 5, 1)  # the end of a document
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.bos_token_id == END_OF_TEXT_ID
