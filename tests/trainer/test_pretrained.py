"""A job that goes on from a Hugging Face checkpoint directory."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lmtraining_api import FailureClass, JobFile
from lmtraining_api.job import Pretrained
from lmtraining_trainer import startup
from lmtraining_trainer.data.pretrained import content_of, fetch_model, open_model
from lmtraining_trainer.data.tokenizer import train_tokenizer
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import read_json
from lmtraining_trainer.generate import sample
from lmtraining_trainer.loss import ModelLoss, has_plain_head
from lmtraining_trainer.model import build_model
from tests.trainer.rank_support import (
    WORDS,
    Faults,
    LocalLink,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

VOCABULARY = 280
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


def made(architecture: str) -> PreTrainedModel:
    """A tiny model of transformers' own making."""
    torch.manual_seed(3)
    llama = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32, **SIZES,
    }  # fmt: skip
    match architecture:
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=32, **SIZES)
            )
        case "llama":  # fewer heads of keys than of queries, a head of its own
            return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **llama))
        case "phi":  # a bias on its logits
            return PhiForCausalLM(PhiConfig(**llama))
        case _:
            return GPTNeoXForCausalLM(GPTNeoXConfig(**llama))


def tokenizer(size: int) -> Tokenizer:
    texts = (" ".join(WORDS[at:] + WORDS[:at]) for at in range(len(WORDS)))
    return train_tokenizer(texts, size)


def save(directory: Path, architecture: str = "gpt2", **options: Any) -> Path:
    made(architecture).save_pretrained(directory, **options)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(270), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(directory)
    return directory


def job_on(base: Path, directory: Path, *, world_size: int = 1, **blocks: Any) -> JobFile:
    uri = write_text(directory.parent / "text.jsonl")
    data = {
        "train": [{"uri": uri, "format": "jsonl"}], "validationFraction": 0.1, "sequenceLength": 16,
    }  # fmt: skip
    spec = tiny_spec(uri, world_size=world_size, **blocks).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    spec |= {"model": {"pretrained": {"uri": base.as_uri()}}, "data": data | blocks.get("data", {})}
    return job_of(type(tiny_spec(uri)).model_validate(spec), directory)


def fetched(base: Path, cache: Path) -> str:
    return fetch_model(
        Pretrained(uri=base.as_uri()), cache=cache, credentials=cache, owner="u",
        progress=lambda _: None,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "phi", "gpt_neox"])
def test_the_loss_before_the_first_step_is_that_of_the_checkpoint(
    tmp_path: Path, architecture: str
) -> None:
    """Also where a bias is added to the logits, and where weights lie in shards."""
    base = save(tmp_path / "base", architecture, max_shard_size="20KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    spec = job_on(base, tmp_path / "job").spec
    model = build_model(spec, base=open_model(tmp_path, fetched(base, tmp_path), spec)).eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    tokens = torch.randint(VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
    ours = ModelLoss(model, is_sliced=has_plain_head(model)).eval()(tokens[:, :-1], tokens[:, 1:])
    assert has_plain_head(model) == (architecture != "phi")
    with torch.no_grad():
        logits = plain(tokens[:, :-1]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "phi"])
def test_training_goes_on_from_it_and_the_export_is_plain(
    tmp_path: Path, architecture: str
) -> None:
    base = save(tmp_path / "base", architecture)
    job = job_on(base, tmp_path / "job", training={"budget": {"steps": 4}})
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    first = load_file(Path(job.run_directory) / "checkpoints/step-00000000/model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.items())
    directory = Path(job.run_directory) / "export"
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert any(not torch.equal(t, theirs[n]) for n, t in model.state_dict().items())
    last = load_file(Path(job.run_directory) / "checkpoints/step-00000004/model.safetensors")
    trained = made(architecture)
    trained.load_state_dict(last, strict=False)
    trained.tie_weights()
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, trained.eval()(tokens).logits)
    text = "some words <|endoftext|> and more"
    ours, its = (AutoTokenizer.from_pretrained(path) for path in (directory, base))
    assert ours(text).input_ids == its(text).input_ids
    assert ours.eos_token == its.eos_token == "<|endoftext|>"


@pytest.mark.parametrize("special", [{"eos_token": "<|endoftext|>"}, {}])
@pytest.mark.parametrize("prompt", ["", "the red cat " * 40])
def test_text_is_drawn_where_its_tokenizer_names_no_beginning_and_no_limit(
    tmp_path: Path, special: dict[str, str], prompt: str
) -> None:
    """Also after a prompt longer than its positions."""
    base = save(tmp_path / "base")
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer(270), **special)
    plain.save_pretrained(base)
    assert AutoTokenizer.from_pretrained(base).bos_token is None
    texts = [sample(base, prompt, tokens=4, seed=seed) for seed in range(5)]
    assert all(text.startswith(prompt) for text in texts)
    assert any(len(text) > len(prompt) for text in texts), "some do not end at once"


def test_lora_and_freezing_train_beside_its_weights(tmp_path: Path) -> None:
    base = save(tmp_path / "base", "llama")
    theirs = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, tuning, moved in (
        ("lora", {"lora": {"targets": ["q_proj"]}}, "q_proj"),
        ("freeze", {"freeze": ["model.embed*", "model.layers.0.*", "model.layers.1.*"]}, "head"),
    ):
        training = {
            "budget": {"steps": 4}, "batchTokens": 128, "fineTuning": tuning,
            "optimizer": {"learningRate": 0.01},
        }  # fmt: skip
        job = job_on(base, tmp_path / name, training=training)
        outcome = run_alone(job)
        assert outcome.end == "finished", outcome
        weights = exported(job)
        changed = {n for n in weights if not torch.equal(weights[n], theirs[n])}
        assert changed
        assert all(moved in n or n == "model.norm.weight" for n in changed), changed


def test_a_sharded_gang_trains_it_as_one_rank_does(tmp_path: Path) -> None:
    base = save(tmp_path / "base", "llama")
    alone = job_on(base, tmp_path / "one")
    both = job_on(base, tmp_path / "two", world_size=2, parallelism={"layout": "fsdp"})
    outcomes = [run_alone(alone), *run_gang(both, 2)]
    assert [outcome.end for outcome in outcomes] == ["finished"] * 3, outcomes
    assert exported(alone).keys() == exported(both).keys()
    losses = [outcome.link.report["validation_loss"] for outcome in outcomes]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


def test_p3_a_run_does_not_go_on_from_other_weights(tmp_path: Path) -> None:
    base = save(tmp_path / "base")
    job = job_on(base, tmp_path / "job")
    assert run_alone(job, faults=Faults(stop_at={0: 6})).end == "preempted"
    record = read_json(Path(job.run_directory) / "run.json")
    assert record is not None
    journal = (Path(job.run_directory) / "journal.jsonl").read_text()
    assert record["pretrained_sha256"] in journal
    key = record["pretrained_key"]
    assert content_of(Path(job.data_cache_directory), key) == record["pretrained_sha256"]
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    moved = tmp_path / "moved"
    shutil.move(Path(job.data_cache_directory) / key, moved)
    refused = run_alone(job, attempt=2)
    assert (refused.reason, refused.failure_class) == (
        "PretrainedChanged", FailureClass.CONFIGURATION,
    )  # fmt: skip
    assert record["pretrained_sha256"] in refused.message
    shutil.move(moved, Path(job.data_cache_directory) / key)  # the copy is still here
    assert run_alone(job, attempt=3).end == "finished"
    other = run_alone(job_on(base, tmp_path / "another"))
    assert other.end == "finished"  # a new run begins with what is there


def no_weights(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def no_config(base: Path) -> None:
    (base / "config.json").unlink()


def no_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()


def lacks_a_weight(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def cut_short(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[: len(content) // 2])


def unknown(base: Path) -> None:
    _config(base, model_type="nonesuch", auto_map={"AutoConfig": "evil.Config"})
    (base / "evil.py").write_text("raise SystemExit('code from the directory was run')")


def no_language_model(base: Path) -> None:
    _config(base, model_type="t5")


def beside_images(base: Path) -> None:
    _config(base, model_type="gemma3")


def without_heads(base: Path) -> None:
    _config(base, model_type="mamba")


def blocks_of_their_own(base: Path) -> None:
    _config(base, model_type="dots3_note_text")


def another_tokenizer(base: Path) -> None:
    tokenizer(VOCABULARY + 5).save(str(base / "tokenizer.json"))


def lacks_a_shard(base: Path) -> None:
    shutil.rmtree(base)
    save(base, max_shard_size="20KB")
    next(base.glob("model-*.safetensors")).unlink()


def broken_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text("{}")


def _config(base: Path, **changes: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (no_weights, ["pickle", "save_pretrained"]),
        (no_config, ["config.json"]),
        (no_tokenizer, ["tokenizer.json", "AutoTokenizer"]),
        (lacks_a_weight, ["lacks 1 weights", "h.1.mlp.c_fc.weight"]),
        (cut_short, ["does not load"]),
        (unknown, ["model_type nonesuch", "never run"]),
        (no_language_model, ["model_type t5", "AutoModelForCausalLM"]),
        (beside_images, ["model_type gemma3", "the language model alone"]),
        (without_heads, ["model_type mamba", "no single num_attention_heads"]),
        (blocks_of_their_own, ["model_type dots3_note_text", "no single num_attention_heads"]),
        (another_tokenizer, [f"{VOCABULARY + 5} tokens", f"knows {VOCABULARY}"]),
        (broken_index, ["model.safetensors.index.json", "names no shards"]),
        (lacks_a_shard, ["model-0000", "model.safetensors.index.json"]),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_with_the_fix(
    tmp_path: Path, spoil: Any, parts: list[str]
) -> None:
    base = save(tmp_path / "base")
    spoil(base)
    spec = job_on(base, tmp_path / "job").spec
    with pytest.raises(TrainerError) as raised:
        build_model(spec, base=open_model(tmp_path / "c", fetched(base, tmp_path / "c"), spec))
    failure = raised.value
    assert (failure.failure_class, failure.reason) == (FailureClass.DATA, "PretrainedUnusable")
    assert all(part in failure.message for part in ["model.pretrained", *parts]), failure.message


def test_a_sequence_longer_than_its_positions_is_refused_with_both_numbers(tmp_path: Path) -> None:
    base = save(tmp_path / "base")
    spec = job_on(base, tmp_path / "job", data={"sequenceLength": 64}).spec
    with pytest.raises(TrainerError, match=r"data.sequenceLength 64 .* 32 positions"):
        open_model(tmp_path / "c", fetched(base, tmp_path / "c"), spec)


def test_it_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(tmp_path / "base")
    key = fetched(base, tmp_path / "c")

    def none(*_: object) -> Iterator[bytes]:
        raise AssertionError("it is there")

    monkeypatch.setattr("lmtraining_trainer.data.pretrained._download", none)
    assert fetched(base, tmp_path / "c") == key
    (tmp_path / "c" / key / "model.safetensors").write_bytes(b"cut")
    assert content_of(tmp_path / "c", key) is None


def test_a_large_model_is_loaded_while_the_rank_says_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of silence are a hang."""
    real, spoke = startup.build_model, threading.Event()
    monkeypatch.setattr(LocalLink, "say", _telling(spoke))

    def slow(*arguments: Any) -> PreTrainedModel:
        spoke.clear()
        assert spoke.wait(60)
        return real(*arguments)

    monkeypatch.setattr(startup, "build_model", slow)
    outcome = run_alone(job_on(save(tmp_path / "base"), tmp_path / "job"))
    assert outcome.end == "finished", outcome


def _telling(event: threading.Event) -> Callable[..., None]:
    say = LocalLink.say

    def told(link: LocalLink, *state: Any, **fields: Any) -> None:
        event.set()
        say(link, *state, **fields)

    return told
