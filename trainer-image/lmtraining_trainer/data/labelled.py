"""Labelled texts to tokens on disk: an example is a record with a text and a label, or with words
and a tag for each.

Promise: the label map is the sorted labels of the training text; an example is on the same side of
the split wherever it lies, by the content of its text (`holdout`); every message names the file,
the line and the labels that would do, and never a text (P11).
Traps avoided: a word that is split into several tokens has one tag, on its first token; the others
have none. A label that validation has and training does not cannot be learnt, and would look like a
bad model: it is refused before anything is trained. Where labelField names the field of the text,
what looks like a label is text: what does not fit is told by its place alone, and labels of which
most stand once are refused.
"""

import re
import threading
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors

from lmtraining_api.job import Data
from lmtraining_api.report_parts import labels_shown
from lmtraining_trainer.data import prepared
from lmtraining_trainer.data.documents import encodable, missing_column, records, text_of
from lmtraining_trainer.data.form import Form
from lmtraining_trainer.data.holdout import draw_of, held_out_below
from lmtraining_trainer.data.packing import CHUNK_CHARACTERS, unigram_loss
from lmtraining_trainer.data.source_errors import data_error
from lmtraining_trainer.data.sources import SourceFile, no_text
from lmtraining_trainer.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, train_tokenizer
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import write_json
from lmtraining_trainer.heartbeat import while_alive

LABELS_MAX = 1000
#: The tag of a token that does not begin a word; torch's cross-entropy leaves it out.
NO_TAG = -100

_BIO = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record that was read."""

    texts: tuple[str, ...]
    """One text, or its words."""
    labels: tuple[str, ...]
    """One label for each of them."""
    line: int

    @property
    def content(self) -> str:
        """What decides the side of the split."""
        return " ".join(self.texts)


def examples(file: SourceFile, form: Form) -> Generator[Example]:
    """The examples of a file in order. Raises TrainerError."""
    for line, record in records(file):
        if form is Form.TAGGED_TEXT:
            texts, labels = _tagged(file, record, line)
        else:
            texts = (text_of(file, record, line),)
            labels = (_label_of(file, record, line),)
        yield Example(texts=texts, labels=labels, line=line)


def _tagged(
    file: SourceFile, record: dict[str, Any], line: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a record and their tags."""
    names = (file.source.text_field, file.source.label_field)
    words, tags = (_list_of(file, record, line, name) for name in names)
    if len(words) != len(tags) or not words:
        raise data_error(
            "TagsDoNotFit",
            f'{file.name} line {line} has {len(words)} words in "{names[0]}" and {len(tags)} tags '
            f'in "{names[1]}": give each word a tag, and at least one',
        )
    odd = next((place for place, tag in enumerate(tags, 1) if not _BIO.fullmatch(tag)), None)
    if odd is not None:
        raise data_error(
            "NotATag",
            f'{file.name} line {line}: tag {odd} of "{names[1]}" is not O, B-name or I-name: mend '
            f'that line, or, where "{names[1]}" holds the words, exchange textField and labelField',
        )
    return words, tags


def _list_of(file: SourceFile, record: dict[str, Any], line: int, name: str) -> tuple[str, ...]:
    found = record.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise data_error(
            "NotAList",
            f'{file.name} line {line} has no list of texts "{name}": mend that line, or set '
            "textField to the field with the words and labelField to that with the tags",
        )
    return tuple(encodable(file, one, line) for one in found)


def _label_of(file: SourceFile, record: dict[str, Any], line: int) -> str:
    name = file.source.label_field
    if name not in record:
        raise missing_column(file, f" line {line}", "field", list(record), of="label")
    label = record[name]
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise data_error(
            "NotALabel",
            f'{file.name} line {line}: field "{name}" is not a text or a whole number: mend that '
            "line",
        )
    return encodable(file, str(label), line)


def with_start_token(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, that puts the token whose state is classified before a text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    return tokenizer


@dataclass
class LabelledPreparation:
    """One preparation: a pass over the text for the tokenizer and the labels, one for the
    tokens."""

    data: Data
    form: Form
    train: Sequence[SourceFile]
    validation: Sequence[SourceFile]
    progress: Callable[[str], None]
    held_below: float = 0.0
    """Examples of the training text that draw less are held out."""
    labels: dict[str, int] = field(default_factory=dict)
    """The number of each label."""
    read: int = 0
    """Examples of the first pass."""
    labelled: int = 0
    """Their labels: one each, or one a word."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def write(self, directory: Path) -> None:
        """Fill an empty directory. Raises TrainerError(DATA), OSError."""
        if not self.validation:
            draws = (draw_of(each.content) for each in self._examples())
            self.held_below = held_out_below(draws, self.data.validation_fraction)
        vocab_size, special = self.data.tokenizer.vocab_size, self.form.special_tokens
        try:
            tokenizer = while_alive(
                "train the tokenizer",
                lambda: train_tokenizer(self._first_pass(), vocab_size, special),
                lambda: self.progress(f"training the tokenizer, {self.read} examples read"),
            )
        finally:
            self.cancelled.set()
        with_start_token(tokenizer)
        (directory / prepared.TOKENIZER).write_text(tokenizer.to_str())
        train = _Writer(directory / prepared.TRAIN, tokenizer, self)
        held = _Writer(directory / prepared.VALIDATION, tokenizer, self)
        with train.file, held.file:
            for each in self._examples():
                is_held = draw_of(each.content) < self.held_below
                numbers = [self.labels[label] for label in each.labels]
                (held if is_held else train).add(each.texts, numbers)
            for file in self.validation:
                for each in examples(file, self.form):
                    held.add(each.texts, self._known(file, each))
            train.flush()
            held.flush()
        self._write_manifest(directory, train, held)

    def _examples(self) -> Iterator[Example]:
        """Those of the training text."""
        return (each for file in self.train for each in examples(file, self.form))

    def _first_pass(self) -> Iterator[str]:
        """The texts that are trained on; the labels are numbered once all are read."""
        found: set[str] = set()
        for file in self.train:
            for each in examples(file, self.form):
                if self.cancelled.is_set():
                    raise InterruptedError("the preparation was ended")
                self.read += 1
                self.labelled += len(each.labels)
                found.update(each.labels)
                if len(found) > LABELS_MAX:
                    raise data_error(
                        "TooManyLabels",
                        f'{file.name} line {each.line}: field "{file.source.label_field}" has more '
                        f"than {LABELS_MAX} different labels: set labelField to the field that "
                        "holds the label",
                    )
                if draw_of(each.content) >= self.held_below:
                    yield from each.texts
        if not self.read:
            raise no_text("data.train", self.train)
        if len(found) == 1:
            raise data_error(
                "OneLabel",
                f"all {self.read} examples of data.train have the same label: add examples of "
                "another one",
            )
        if 2 * len(found) > self.labelled:
            raise data_error(
                "LabelsStandOnce",
                f"{self.labelled} examples of data.train have {len(found)} different labels, so "
                "most could not be learnt: set labelField to the field that holds the label, or "
                "add examples",
            )
        self.labels = {label: number for number, label in enumerate(sorted(found))}

    def _known(self, file: SourceFile, each: Example) -> list[int]:
        """The numbers of the labels of an example of the validation text."""
        if any(label not in self.labels for label in each.labels):
            raise _unseen(file, each.line, list(self.labels))
        return [self.labels[label] for label in each.labels]

    def _write_manifest(self, directory: Path, train: "_Writer", held: "_Writer") -> None:
        for writer, name in (
            (train, prepared.TRAIN_EXAMPLES),
            (held, prepared.VALIDATION_EXAMPLES),
        ):
            (directory / name).write_bytes(writer.table.tobytes())
        names = [
            prepared.TOKENIZER,
            prepared.TRAIN,
            prepared.VALIDATION,
            prepared.TRAIN_EXAMPLES,
            prepared.VALIDATION_EXAMPLES,
        ]
        if self.form is Form.TAGGED_TEXT:
            for writer, name in ((train, prepared.TRAIN_TAGS), (held, prepared.VALIDATION_TAGS)):
                (directory / name).write_bytes(writer.tags.tobytes())
                names.append(name)
        counts = [writer.label_counts(len(self.labels)) for writer in (train, held)]
        manifest = {
            "format_version": prepared.FORMAT_VERSION,
            "vocab_size": self.data.tokenizer.vocab_size,
            "labels": list(self.labels),
            "train_examples": train.count,
            "validation_examples": held.count,
            "unigram_loss": unigram_loss(*counts),
            "files": prepared.described(directory, names, self.progress),
        }
        write_json(directory / prepared.MANIFEST, manifest)


def _unseen(file: SourceFile, line: int, known: Sequence[str]) -> TrainerError:
    return data_error(
        "UnseenLabel",
        f'{file.name} line {line}: its "{file.source.label_field}" is a label of no example of '
        f"data.train, which has {', '.join(labels_shown(known))}: correct it, or add examples of "
        "it to data.train",
    )


class _Writer:
    """Writes the tokens of one split, and remembers where each example ends and its label."""

    def __init__(self, path: Path, tokenizer: Tokenizer, of: LabelledPreparation) -> None:
        self.file = path.open("wb")
        self.table = array("q")
        """Of each example where its tokens end, and its label."""
        self.tags = array("h")
        """Of each token the label of the word that it begins, NO_TAG where it begins none."""
        self._is_tagged = of.form is Form.TAGGED_TEXT
        self._tokenizer = tokenizer
        self._dtype = prepared.token_dtype(of.data.tokenizer.vocab_size)
        self._progress = of.progress
        self._total = of.read
        self._tokens = 0
        self._texts: list[tuple[str, ...]] = []
        self._labels: list[list[int]] = []
        self._characters = 0

    @property
    def count(self) -> int:
        """Examples that were written."""
        return len(self.table) // 2

    def add(self, texts: tuple[str, ...], labels: list[int]) -> None:
        """Append an example."""
        self._texts.append(texts)
        self._labels.append(labels)
        self._characters += sum(map(len, texts))
        if self._characters >= CHUNK_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        encodings = self._tokenizer.encode_batch(self._texts, is_pretokenized=True)
        ids: list[int] = []
        for encoding, labels in zip(encodings, self._labels, strict=True):
            ids.extend(encoding.ids)
            self.table.extend((self._tokens + len(ids), 0 if self._is_tagged else labels[0]))
            if self._is_tagged:
                self.tags.extend(_on_first_tokens(encoding.word_ids, labels))
        self.file.write(np.array(ids, dtype=self._dtype).tobytes())
        self._tokens += len(ids)
        self._texts, self._labels, self._characters = [], [], 0
        self._progress(f"tokenised {self.count} of {self._total} examples")

    def label_counts(self, labels: int) -> NDArray[np.int64]:
        """How often each label was written, [labels]."""
        numbers = np.array(self.tags if self._is_tagged else self.table[1::2])
        return np.bincount(numbers[numbers >= 0], minlength=labels).astype(np.int64)


def _on_first_tokens(words: Sequence[int | None], labels: Sequence[int]) -> Iterator[int]:
    """For each token the label of its word where it is the first of that; `words` are the places of
    their words."""
    before: int | None = None
    for word in words:
        yield NO_TAG if word is None or word == before else labels[word]
        before = word
