"""A model that others have trained, as a Hugging Face checkpoint directory.

Promise: it is fetched once into the data cache, and a run goes on with the weights it began with,
by the SHA-256 of what was fetched, or not at all. Whether the cache still holds it is told by sizes
alone, since a start that reads all of a large model again is slow; the hashes are in its manifest
for who doubts. Only safetensors are read and no code from the directory
is run.
Trap avoided: a config.json leaves out what is its architecture's default, so it is read by
transformers (imported here where it is used: listing and fetching go without).
"""
# ruff: noqa: PLC0415

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lmtraining_api import FailureClass
from lmtraining_api.job import DataSource, Pretrained, TrainingSpec
from lmtraining_trainer.data.cache import make_in_cache
from lmtraining_trainer.data.source_errors import data_error
from lmtraining_trainer.data.sources import SourceFile, files_of, opened, version_of
from lmtraining_trainer.data.tokenizer import load_tokenizer
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import json_bytes, nothing, read_json, sha256_of, write_json
from lmtraining_trainer.heartbeat import while_alive

FIELD = "model.pretrained.uri"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: What a tokenizer of transformers is made of; an export carries it on.
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
#: Sizes that the rest of the trainer reads.
_SIZES = ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads")
_ALSO = ("generation_config.json", *TOKENIZER_FILES)
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A model in the cache, ready to be loaded."""

    directory: Path
    sha256: str
    """Of the names and the SHA-256 of all its files."""
    architecture: str
    """Its model_type in transformers."""
    vocab_size: int
    """Rows of its embedding."""
    positions: int | None
    """Tokens of the longest sequence it can read; None where it has no limit."""
    end_of_text_id: int
    tokenizer_json: str


def fetch_model(
    wanted: Pretrained,
    *,
    cache: Path,
    credentials: Path,
    owner: str,
    progress: Callable[[str], None],
    check: Callable[[], None] = nothing,
    fetch: Callable[[str], None] = lambda _: None,
) -> str:
    """The key of the model in `cache`, where it is afterwards; arguments as those of `prepare`.

    Raises TrainerError(DATA) for what a person can mend, TrainerError(STORAGE) where the source
    does not answer or `cache` cannot be written.
    """
    files, key = while_alive(
        "list the model's files",
        lambda: _listed(wanted, credentials),
        lambda: progress("listing the model's files"),
    )
    fetch(key)
    if content_of(cache, key) is None:
        make_in_cache(
            cache,
            key,
            owner=owner,
            write=lambda directory: _download(files, directory, progress),
            is_whole=lambda: content_of(cache, key) is not None,
            check=check,
        )
    return key


def _listed(wanted: Pretrained, credentials: Path) -> tuple[dict[str, SourceFile], str]:
    """The files that are needed, by name, and the key of what they are."""
    source = DataSource(uri=wanted.uri, credentials=wanted.credentials)
    files = needed_files(files_of(source, credentials, field=FIELD))
    identity = [[file.name, file.size_bytes, version_of(file)] for file in files.values()]
    return files, "model-" + sha256_of(json_bytes([FORMAT_VERSION, *sorted(identity)]))


def content_of(cache: Path, key: str) -> str | None:
    """The SHA-256 of the model under `key`; None where it is absent, or its files have not the
    sizes of its manifest."""
    manifest = read_json(cache / key / MANIFEST)
    if manifest is None or manifest.get("format_version") != FORMAT_VERSION:
        return None
    try:
        sizes = {name: (cache / key / name).stat().st_size for name in manifest["files"]}
    except OSError:
        return None
    is_whole = all(sizes[name] == file["size"] for name, file in manifest["files"].items())
    return str(manifest["sha256"]) if is_whole else None


def open_model(cache: Path, key: str, spec: TrainingSpec) -> BaseModel:
    """The model under `key`. Raises TrainerError where it is not whole, transformers does not know
    it, or `spec` asks for what it cannot do."""
    sha256 = content_of(cache, key)
    if sha256 is None:
        raise TrainerError(
            FailureClass.STORAGE,
            "ModelUnreadable",
            f"the model {cache / key} is not readable here though rank 0 has it: check that all "
            "pods see the same storage",
        )
    directory = cache / key
    config = _config_of(directory)
    tokenizer_json = (directory / TOKENIZER).read_text(encoding="utf-8")
    base = BaseModel(
        directory=directory,
        sha256=sha256,
        architecture=str(config.model_type),
        vocab_size=int(config.vocab_size),
        positions=getattr(config, "max_position_embeddings", None),
        end_of_text_id=_end_of_text(directory, config, tokenizer_json),
        tokenizer_json=tokenizer_json,
    )
    _check_fits(base, spec)
    return base


def needed_files(found: Sequence[SourceFile]) -> dict[str, SourceFile]:
    """Of the files of a directory those that are fetched, by name. Raises TrainerError(DATA)."""
    paths = [PurePosixPath(file.path) for file in found]
    configs = [path for path in paths if path.name == CONFIG]
    if not configs:
        raise _refused(
            f"has no {CONFIG}: name the directory of a Hugging Face checkpoint, of files that its "
            "storage can list"
        )
    root = min(configs, key=lambda path: len(path.parts)).parent
    there = {
        path.name: file for path, file in zip(paths, found, strict=True) if path.parent == root
    }
    if TOKENIZER not in there:
        raise _refused(
            f"has no {TOKENIZER}: make one by "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers"
        )
    also = {name: there[name] for name in (CONFIG, *_ALSO) if name in there}
    return also | {name: there[name] for name in _weights(there)}


def _weights(there: Mapping[str, SourceFile]) -> list[str]:
    if INDEX in there:
        index = b"".join(_chunks(there[INDEX]))
        try:
            named = sorted(set(json.loads(index)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _refused(f"has an {INDEX} that names no shards: write the model anew") from None
        missing = [name for name in named if name not in there]
        if missing:
            raise _refused(f"has no {missing[0]}, which its {INDEX} names: put all shards there")
        return [INDEX, *named]
    if WEIGHTS in there:
        return [WEIGHTS]
    if any(PurePosixPath(name).suffix in (".bin", ".pt", ".pth") for name in there):
        raise _refused(
            "has its weights as a pickle, which may run code when it is read: convert it by "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) of transformers, which "
            f"writes {WEIGHTS}"
        )
    raise _refused(f"has neither {WEIGHTS} nor {INDEX}: put the weights there")


def _download(
    files: Mapping[str, SourceFile], directory: Path, progress: Callable[[str], None]
) -> None:
    total = sum(file.size_bytes or 0 for file in files.values())
    done, entries = 0, {}
    for name, file in sorted(files.items()):
        digest, size = hashlib.sha256(), 0
        with (directory / name).open("wb") as copy:
            for chunk in _chunks(file):
                copy.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                done += len(chunk)
                progress(f"fetching the model, {round(done / 1e6)} of {round(total / 1e6)} MB")
        entries[name] = {"size": size, "sha256": digest.hexdigest()}
    content = sha256_of(json_bytes({name: entry["sha256"] for name, entry in entries.items()}))
    manifest = {"format_version": FORMAT_VERSION, "sha256": content, "files": entries}
    write_json(directory / MANIFEST, manifest)


def _chunks(file: SourceFile) -> Iterator[bytes]:
    """Its bytes; what reading them raises is about the source, what writing them is not."""
    with opened(file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _config_of(directory: Path) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # each field of a config has a validator of its own
        raise _refused(
            f"has a {CONFIG} that this version of transformers does not know "
            f"(model_type {_model_type(directory)}), and code from the directory is never run: "
            "choose another checkpoint"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refused(
            f"is of model_type {config.model_type}, which has no causal language model in "
            "transformers: choose a checkpoint that AutoModelForCausalLM loads"
        )
    if config.get_text_config() is not config:
        raise _refused(
            f"is of model_type {config.model_type}, a language model beside models of images or "
            "sound: choose a checkpoint of the language model alone, which has a model_type of its "
            "own"
        )
    lacking = [name for name in _SIZES if not _is_known(config, name)]
    if lacking:
        raise _refused(
            f"is of model_type {config.model_type}, which has no single {' and '.join(lacking)}: "
            "choose a checkpoint of a transformer whose blocks are alike"
        )
    return config


def _is_known(config: Any, name: str) -> bool:
    try:
        return isinstance(getattr(config, name, None), int)
    except RuntimeError:  # each block has one of its own
        return False


def _model_type(directory: Path) -> object:
    try:
        return (read_json(directory / CONFIG) or {}).get("model_type")
    except ValueError:
        return None


def _end_of_text(directory: Path, config: Any, tokenizer_json: str) -> int:
    """The token that parts documents: the end of sequence of the tokenizer, else of the model."""
    name = (read_json(directory / "tokenizer_config.json") or {}).get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    found = load_tokenizer(tokenizer_json).token_to_id(name) if name else None
    if found is None:
        of_model = config.eos_token_id
        found = of_model[0] if isinstance(of_model, list) else of_model
    if found is None:
        raise _refused(
            f"names no end-of-text token: set eos_token in its tokenizer_config.json, or "
            f"eos_token_id in its {CONFIG}"
        )
    return int(found)


def _check_fits(base: BaseModel, spec: TrainingSpec) -> None:
    length = spec.data.sequence_length
    if base.positions is not None and length > base.positions:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "SequenceTooLong",
            f"data.sequenceLength {length} is more than the {base.positions} positions of "
            f"model.pretrained: set it to {base.positions} or less",
        )
    tokens = max(load_tokenizer(base.tokenizer_json).get_vocab().values(), default=-1) + 1
    tokens = max(tokens, base.end_of_text_id + 1)
    if tokens > base.vocab_size:
        raise _refused(
            f"has a tokenizer of {tokens} tokens, but its model knows {base.vocab_size}: put "
            "there the tokenizer that belongs to the model, or resize its embeddings"
        )


def _refused(what: str) -> TrainerError:
    return data_error("PretrainedUnusable", f"{FIELD} {what}")
