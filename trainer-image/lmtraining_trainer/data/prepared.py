"""Prepared data: packed tokens on disk, ready to be read by any rank.

Promise: a directory with the final name is complete, and what it holds is what its manifest says.
Trap avoided: reading megabytes at every start to learn that nothing changed: sizes are always
compared, the tokenizer's hash too, and the hash of the tokens is there for who doubts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtraining_api import FailureClass
from lmtraining_api.job import TrainingSpec
from lmtraining_trainer.data.holdout import PIECE_CHARACTERS
from lmtraining_trainer.data.mixture import sequences_in
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import read_json, sha256_of_file

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TRAIN = "train.bin"
VALIDATION = "validation.bin"
TRAIN_EXAMPLES = "train.examples.bin"
VALIDATION_EXAMPLES = "validation.examples.bin"
TRAIN_TAGS = "train.tags.bin"
VALIDATION_TAGS = "validation.tags.bin"
FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Packed tokens of one tokenizer, memory-mapped."""

    key: str
    train: NDArray[np.uint16] | NDArray[np.uint32]
    """Training tokens, [train_tokens]; documents, and what is left of them where a part is held
    out, end with the end-of-text token."""
    validation: NDArray[np.uint16] | NDArray[np.uint32]
    """Held-out tokens, [validation_tokens]."""
    tokenizer_json: str
    tokenizer_sha256: str
    base: BaseModel | None = None
    """The model whose tokens they are, where the job goes on from one."""
    source_tokens: tuple[int, ...] = ()
    """Training tokens of each source of data.train, which lie one after another, [sources]; empty
    where it was prepared before that was written down."""
    unigram_loss: float
    """Validation loss of a unigram model of the training tokens, nats per token; of labelled texts
    that of a model which knows how often each label occurs, nats per example."""
    labels: tuple[str, ...] = ()
    """In the order of their numbers; empty where texts have none."""
    train_examples: NDArray[np.int64] | None = None
    """Where the tokens of each labelled training text end, and the number of its label (0 where its
    words have one each), [examples, 2]."""
    validation_examples: NDArray[np.int64] | None = None
    """The same of the validation texts."""
    train_tags: NDArray[np.int16] | None = None
    """The number of the label of the word that each training token begins, [train_tokens]; less
    than 0 where it begins none."""
    validation_tags: NDArray[np.int16] | None = None
    """The same of the validation tokens."""


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every token."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def open_prepared(cache: Path, key: str, base: BaseModel | None = None) -> PreparedData | None:
    """The prepared data under `key`, in the tokens of `base` where there is one, or None where it
    is absent or not what its manifest says."""
    directory = cache / key
    manifest = read_json(directory / MANIFEST)
    if manifest is None or manifest.get("format_version") != FORMAT_VERSION:
        return None
    try:
        files = manifest["files"]
        if any((directory / name).stat().st_size != file["size"] for name, file in files.items()):
            return None
        tokenizer_sha256 = sha256_of_file(directory / TOKENIZER)
        if tokenizer_sha256 != files[TOKENIZER]["sha256"]:
            return None
        dtype = token_dtype(manifest["vocab_size"])
        return PreparedData(
            key=key,
            base=base,
            train=_mapped(directory / TRAIN, dtype),
            validation=_mapped(directory / VALIDATION, dtype),
            tokenizer_json=(directory / TOKENIZER).read_text(),
            tokenizer_sha256=tokenizer_sha256,
            source_tokens=tuple(manifest.get("source_tokens", ())),
            unigram_loss=float(manifest["unigram_loss"]),
            labels=tuple(manifest.get("labels", ())),
            train_examples=_table(directory / TRAIN_EXAMPLES, manifest),
            validation_examples=_table(directory / VALIDATION_EXAMPLES, manifest),
            train_tags=_tags(directory / TRAIN_TAGS, manifest),
            validation_tags=_tags(directory / VALIDATION_TAGS, manifest),
        )
    except (OSError, KeyError):
        return None


def described(
    directory: Path, names: Sequence[str], progress: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """What a manifest says of the files that were written."""
    return {
        name: {
            "size": (directory / name).stat().st_size,
            "sha256": sha256_of_file(
                directory / name, lambda: progress("reading back what was written")
            ),
        }
        for name in names
    }


def check_enough(data: PreparedData, spec: TrainingSpec) -> None:
    """Raises TrainerError(DATA) where there is no batch to train on or nothing to validate on."""
    if data.train_examples is not None and data.validation_examples is not None:
        _check_examples(len(data.train_examples), len(data.validation_examples), spec)
        return
    length, train_tokens = spec.data.sequence_length, len(data.train)
    sequences = max(0, train_tokens - 1) // length
    if sequences < spec.batch_sequences:
        raise TrainerError(
            FailureClass.DATA,
            "TooLittleText",
            f"the text of data.train has {train_tokens} training tokens, {sequences} sequences of "
            f"data.sequenceLength {length}, but one batch takes {spec.batch_sequences} "
            f"(training.batchTokens {spec.training.batch_tokens}): lower batchTokens or add text",
        )
    if spec.data.is_weighted:
        _check_sources(data, length)
    if len(data.validation) < 2:
        problem = (
            f"the text of data.validation has {len(data.validation)} tokens: put more text there"
            if spec.data.validation
            else "data.train is too little text for data.validationFraction to hold out a part of "
            f"(a document is whole up to {2 * PIECE_CHARACTERS} characters): add text, or set "
            "data.validation"
        )
        raise TrainerError(FailureClass.DATA, "NoValidationText", problem)


def _check_sources(data: PreparedData, length: int) -> None:
    for number, tokens in enumerate(data.source_tokens):
        if not sequences_in(tokens, length):
            raise TrainerError(
                FailureClass.DATA,
                "TooLittleText",
                f"data.train[{number}] has {tokens} training tokens, less than one sequence of "
                f"data.sequenceLength {length}, so no weight brings it into a batch: add text to "
                "it, or remove it",
            )


def _check_examples(train: int, validation: int, spec: TrainingSpec) -> None:
    if train < spec.batch_sequences:
        raise TrainerError(
            FailureClass.DATA,
            "TooLittleText",
            f"data.train has {train} training examples, but one batch takes "
            f"{spec.batch_sequences} (training.batchTokens {spec.training.batch_tokens} / "
            f"data.sequenceLength {spec.data.sequence_length}): lower batchTokens or add examples",
        )
    if not validation:
        problem = (
            "data.validation has no examples: add some"
            if spec.data.validation
            else "data.train has too few examples for data.validationFraction to hold one out: add "
            "examples, or set data.validation"
        )
        raise TrainerError(FailureClass.DATA, "NoValidationText", problem)


def _table(path: Path, manifest: dict[str, Any]) -> NDArray[np.int64] | None:
    if path.name not in manifest["files"]:
        return None
    return np.fromfile(path, dtype=np.int64).reshape(-1, 2)


def _tags(path: Path, manifest: dict[str, Any]) -> NDArray[np.int16] | None:
    if path.name not in manifest["files"]:
        return None
    return (
        np.memmap(path, dtype=np.int16, mode="r") if path.stat().st_size else np.empty(0, np.int16)
    )


def _mapped(path: Path, dtype: type[np.uint16] | type[np.uint32]) -> NDArray[np.uint16]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
