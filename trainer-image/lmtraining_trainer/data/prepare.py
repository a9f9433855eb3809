"""From sources to prepared data, once for all jobs that ask for the same.

Promise: the key covers everything that shapes the content of the directory <cache>/<key>, and
memory does not grow with the text.
Trap avoided: training a tokenizer is one long call, so it runs in a thread of its own while this
one goes on saying that it lives.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lmtraining_api.job import Data
from lmtraining_trainer.data import prepared
from lmtraining_trainer.data.cache import make_in_cache
from lmtraining_trainer.data.documents import Reader, check_records, documents
from lmtraining_trainer.data.form import Form
from lmtraining_trainer.data.holdout import draw_of, held_out_below, parts_of, pieces_of
from lmtraining_trainer.data.labelled import LabelledPreparation, examples
from lmtraining_trainer.data.packing import PackedWriter, unigram_loss
from lmtraining_trainer.data.pretrained import BaseModel
from lmtraining_trainer.data.repeats import Repeats, find_repeats
from lmtraining_trainer.data.sources import SourceFile, list_sources, no_text, version_of
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID, load_tokenizer, train_tokenizer
from lmtraining_trainer.files import (
    json_bytes,
    nothing,
    sha256_of,
    write_json,
)
from lmtraining_trainer.heartbeat import while_alive

#: Text the tokenizer is trained on at most; beyond it, pieces are drawn by their hash.
TOKENIZER_TEXT_BYTES_MAX = 256 * 1024 * 1024

Progress = Callable[[str], None]


def prepare(
    data: Data,
    *,
    cache: Path,
    credentials: Path,
    owner: str,
    progress: Progress,
    form: Form = Form.TEXT,
    check: Callable[[], None] = nothing,
    fetch: Callable[[str], None] = lambda _: None,
    base: BaseModel | None = None,
) -> str:
    """The key of the prepared data of `data`, which afterwards exists in `cache`; in the tokens of
    `base`, where there is one.

    `form` is what the job's task reads. `owner` is the job's UID: what it left half done in an
    earlier attempt is removed. `progress` is called with a sentence at least every second or so and
    may raise to end it; `check` before anything is removed or published, and may raise too; `fetch`
    with a key, to bring what somebody else has prepared elsewhere. Raises TrainerError(DATA) for
    what a person can mend, TrainerError(STORAGE) where `cache` is unusable.
    """
    train, validation, key = while_alive(
        "list the files",
        lambda: _listed(data, credentials, form, base),
        lambda: progress("listing the files"),
    )
    fetch(key)
    if prepared.open_prepared(cache, key) is not None:
        return key
    while_alive(
        "look into the files",
        lambda: check_records((*train, *validation), reader_of(form)),
        lambda: progress("looking into the files"),
    )
    preparation: LabelledPreparation | _Preparation = (
        LabelledPreparation(data, form, train, validation, progress)
        if form.has_labels
        else _Preparation(data, form, train, validation, progress, base=base)
    )
    make_in_cache(
        cache,
        key,
        owner=owner,
        write=preparation.write,
        is_whole=lambda: prepared.open_prepared(cache, key) is not None,
        check=check,
    )
    return key


def reader_of(form: Form) -> Reader:
    """What reads the files of a source that are prepared to `form`."""
    return partial(examples, form=form) if form.has_labels else documents


def _listed(
    data: Data, credentials: Path, form: Form, base: BaseModel | None
) -> tuple[list[SourceFile], list[SourceFile], str]:
    """The files of training and of validation, and the key of what they give."""
    train, validation = list_sources(data, credentials)
    return train, validation, key_of(data, form, train, validation, base)


def key_of(
    data: Data,
    form: Form,
    train: Sequence[SourceFile],
    validation: Sequence[SourceFile],
    base: BaseModel | None,
) -> str:
    """A name for what preparing would give: equal keys, equal tokens."""
    parts: dict[str, Any] = {
        "format_version": prepared.FORMAT_VERSION,
        "tokenizer": data.tokenizer.model_dump(mode="json")
        if base is None
        else [sha256_of(base.tokenizer_json.encode()), base.vocab_size, base.end_of_text_id],
        "tokenizer_text_bytes_max": TOKENIZER_TEXT_BYTES_MAX,
        "validation_fraction": None if validation else data.validation_fraction,
        "train": [_identity(file, form) for file in train],
        "validation": [_identity(file, form) for file in validation],
    }
    if data.deduplicate != "none":
        parts["deduplicate"] = data.deduplicate
    if data.is_weighted:  # which text is whose; the weights change no token
        parts["sources"] = [len(list(files)) for _, files in groupby(train, _field)]
    if form is not Form.TEXT:
        parts["form"] = form
    return sha256_of(json_bytes(parts))


def wanted(data: Data, form: Form = Form.TEXT) -> dict[str, Any]:
    """What prepared data was asked for with: the part of `data` that decides what is in it. An
    option that is left out, or has no effect, is not in it, so that a run knows its data after an
    upgrade."""
    asked = data.model_dump(mode="json", exclude={"sequence_length"})
    if asked["deduplicate"] == "none":
        del asked["deduplicate"]
    if form is not Form.TEXT:
        asked["form"] = form
    if not form.has_labels:
        for source in (*asked["train"], *asked["validation"]):
            del source["labelField"]
    for source in asked["train"]:
        weight = source.pop("weight")
        if weight is not None:
            source["weighted"] = True
    return asked


def _field(file: SourceFile) -> str:
    return file.field


def _identity(file: SourceFile, form: Form) -> list[Any]:
    source = file.source
    field_name = None if file.format == "text" else source.text_field
    labels = [source.label_field] if form.has_labels else []
    return [file.name, file.size_bytes, version_of(file), file.format, field_name, *labels]


@dataclass
class _Preparation:
    """One preparation: two passes over the text, the first for the tokenizer."""

    data: Data
    form: Form
    train: Sequence[SourceFile]
    validation: Sequence[SourceFile]
    progress: Progress
    base: BaseModel | None
    held_below: float = 0.0
    """Pieces of training text that draw less are held out."""
    characters: int = 0
    """Of the training text: those read so far in the first pass, all of them in the second."""
    repeats: Repeats | None = None
    """Which documents repeat an earlier one; None where nobody asked."""
    told: str = ""
    """What is said of them."""
    done: int = 0
    """Of these, tokenised."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def write(self, directory: Path) -> None:
        if self.data.deduplicate == "exact":
            self._find_repeats(directory)
        tokenizer = self._trained() if self.base is None else self._given(self.base)
        tokens = {file.field: 0 for file in self.train}
        (directory / prepared.TOKENIZER).write_text(
            tokenizer.to_str() if self.base is None else self.base.tokenizer_json, encoding="utf-8"
        )
        end = END_OF_TEXT_ID if self.base is None else self.base.end_of_text_id
        train, held = (
            PackedWriter(directory / name, tokenizer, self._vocab_size, end_of_text_id=end)
            for name in (prepared.TRAIN, prepared.VALIDATION)
        )
        with train, held:
            for field_of, documents_of in groupby(self._documents(), lambda found: found[0]):
                before = train.tokens_so_far()
                self._tokenise(documents_of, train, held)
                tokens[field_of] += train.tokens_so_far() - before
            self._tokenise_validation(held)
        self._write_manifest(directory, train, held, list(tokens.values()))

    @property
    def _vocab_size(self) -> int:
        return self.data.tokenizer.vocab_size if self.base is None else self.base.vocab_size

    def _given(self, base: BaseModel) -> Tokenizer:
        """The tokenizer of `base`, when the text was read once for what is held out of it."""
        for _ in self._tokenizer_texts():
            self.progress(f"looking through the text, {_megabytes(self.characters)} MB read")
        return load_tokenizer(base.tokenizer_json)

    def _find_repeats(self, directory: Path) -> None:
        hashes = directory / "hashes"
        hashes.mkdir()
        self.repeats = find_repeats(self._hashed(), hashes)
        shutil.rmtree(hashes)
        self.told = (
            f", {self.repeats.count} of {self.repeats.documents} documents left out as they repeat "
            "an earlier one"
        )

    def _hashed(self) -> Iterator[str]:
        for number, (_, text) in enumerate(self._documents(), start=1):
            self.progress(f"looking for documents that repeat, {number} read")
            yield text

    def _trained(self) -> Tokenizer:
        """The tokenizer, trained in another thread while this one reports."""
        vocab_size = self.data.tokenizer.vocab_size
        try:
            return while_alive(
                "train the tokenizer",
                lambda: train_tokenizer(
                    self._tokenizer_texts(), vocab_size, self.form.special_tokens
                ),
                lambda: self.progress(
                    f"training the tokenizer, {_megabytes(self.characters)} MB read"
                ),
            )
        finally:
            self.cancelled.set()

    def _tokenizer_texts(self) -> Iterator[str]:
        size = sum(file.size_bytes or 0 for file in self.train)
        share = 1.0 if size <= TOKENIZER_TEXT_BYTES_MAX else TOKENIZER_TEXT_BYTES_MAX / size
        if not self.validation:
            draws = (draw_of(piece) for text in self._until_ended() for piece in pieces_of(text))
            self.held_below = held_out_below(draws, self.data.validation_fraction)
        for text in self._until_ended():
            self.characters += len(text)
            for part in parts_of(text, self.held_below):
                if not part.held_out and _second_draw(part.draw) < share:
                    yield part.text
        if not self.characters:
            raise no_text("data.train", self.train)

    def _tokenise(
        self, found: Iterator[tuple[str, str]], train: PackedWriter, held: PackedWriter
    ) -> None:
        for _, text in found:
            for part in parts_of(text, self.held_below):
                (held if part.held_out else train).add(part.text, ends_run=part.ends_run)
                self.done += len(part.text)
                self.progress(
                    f"tokenised {_megabytes(self.done)} of {_megabytes(self.characters)} MB"
                    + self.told
                )

    def _tokenise_validation(self, held: PackedWriter) -> None:
        for file in self.validation:
            for text in documents(file):
                for part in parts_of(text, held_below=1.0):
                    held.add(part.text, ends_run=part.ends_run)
                    self.progress("tokenising the validation text")

    def _until_ended(self) -> Iterator[str]:
        """The training text, for the thread that trains the tokenizer."""
        for _, text in self._documents():
            if self.cancelled.is_set():
                raise InterruptedError("the preparation was ended")
            yield text

    def _documents(self) -> Iterator[tuple[str, str]]:
        """The training text, document by document, each with the field of its source; without
        those that repeat one, once they are known."""
        numbers = count()
        for file in self.train:
            for text in documents(file):
                if self.repeats is None or next(numbers) not in self.repeats:
                    yield file.field, text

    def _write_manifest(
        self, directory: Path, train: PackedWriter, held: PackedWriter, source_tokens: list[int]
    ) -> None:
        names = (prepared.TOKENIZER, prepared.TRAIN, prepared.VALIDATION)
        manifest: dict[str, Any] = {
            "format_version": prepared.FORMAT_VERSION,
            "vocab_size": self._vocab_size,
            "train_tokens": int(train.counts.sum()),
            "source_tokens": source_tokens,
            "validation_tokens": int(held.counts.sum()),
            "unigram_loss": unigram_loss(train.counts, held.counts),
            "files": prepared.described(directory, names, self.progress),
        }
        if self.repeats is not None:
            manifest["documents"] = self.repeats.documents
            manifest["repeated_documents"] = self.repeats.count
        write_json(directory / prepared.MANIFEST, manifest)


def _second_draw(draw: float) -> float:
    """Another number in [0, 1) from the same hash, so that the two draws are independent."""
    return float(np.modf(draw * 2**20)[0])


def _megabytes(count: int) -> int:
    return round(count / 1e6)
