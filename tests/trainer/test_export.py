"""The export opens with plain transformers and is the trained model."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer import export as export_module
from lmtraining_trainer import rank as rank_module
from lmtraining_trainer.generate import sample
from lmtraining_trainer.model import build_model, empty_model
from lmtraining_trainer.run import layout
from lmtraining_trainer.state import TrainState
from lmtraining_trainer.voice import Voice
from tests.trainer.rank_support import job_of, run_alone, tiny_spec, write_text

pytestmark = pytest.mark.trainer


def finished(tmp_path: Path, architecture: str) -> JobFile:
    config = {"architecture": architecture, "layers": 2, "hiddenSize": 32, "heads": 2}
    spec = tiny_spec(write_text(tmp_path / "text.jsonl"), model={"config": config})
    job = job_of(spec, tmp_path)
    assert run_alone(job).end == "finished"
    return job


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_export_gives_the_logits_of_the_last_checkpoint(
    tmp_path: Path, architecture: str
) -> None:
    job = finished(tmp_path, architecture)
    directory = Path(job.run_directory) / "export"
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    trained = build_model(job.spec)
    checkpoint = Path(job.run_directory) / "checkpoints" / "step-00000012"
    TrainState(model=trained, optimizer=torch.optim.SGD(trained.parameters())).load_tensors(
        load_file(checkpoint / layout.MODEL), {}
    )
    tokens = torch.randint(270, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = trained.eval()(tokens).logits, loaded.eval()(tokens).logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_empty_model_that_is_filled_is_exported_as_the_one_it_is_filled_from(
    tmp_path: Path, architecture: str
) -> None:
    config = {"architecture": architecture, "layers": 2, "hiddenSize": 32, "heads": 2}
    spec = tiny_spec("file:///nowhere", model={"config": config})
    trained, copy = build_model(spec), empty_model(spec)
    weights, source = dict(copy.named_parameters()), dict(trained.named_parameters())
    assert weights.keys() == source.keys()
    with torch.no_grad():
        for name, parameter in source.items():
            weights[name].copy_(parameter)
    for name, model in (("trained", trained), ("copy", copy)):
        model.save_pretrained(tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "trained").iterdir())
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == names
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()


def test_the_tokenizer_is_exported_with_its_special_token(tmp_path: Path) -> None:
    job = finished(tmp_path, "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(Path(job.run_directory) / "export")
    assert (tokenizer.eos_token, tokenizer.bos_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.model_max_length == 16
    for text in ("they see the cat", "  ünïcödé \n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_sampling_is_a_function_of_the_seed(tmp_path: Path) -> None:
    directory = Path(finished(tmp_path, "gpt2").run_directory) / "export"
    one, same, other = (sample(directory, "they see", 24, seed) for seed in (1, 1, 2))
    assert one.startswith("they see")
    assert one == same != other
    assert sample(directory, "", 5, 1)  # a new document


def test_a_long_export_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the ranks that wait give up a lead that is only busy."""
    spoke = threading.Event()
    real = rank_module.write_export

    def slow(*arguments: Any, **fields: Any) -> Path:
        assert spoke.wait(60)
        return real(*arguments, **fields)

    monkeypatch.setattr(rank_module, "write_export", slow)
    monkeypatch.setattr(Voice, "alive", lambda voice: spoke.set())
    assert run_alone(job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)).end == (
        "finished"
    )


def test_an_export_that_fails_leaves_no_half_one_and_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "publish_directory", full)
        outcome = run_alone(job)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "ExportFailed")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names.isdisjoint({"export", ".writing-export", "finished.json"})
    again = run_alone(job, attempt=2)
    assert again.end == "finished"
    assert again.link.report["resumed_from_step"] == 12
