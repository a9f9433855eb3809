"""Prepared data: what it holds, and that it is whole or absent."""

import json
import threading
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtraining_api import FailureClass, TrainingSpec
from lmtraining_api.job import Data
from lmtraining_trainer.data import open_prepared, packing, prepare, repeats
from lmtraining_trainer.data.packing import unigram_loss
from lmtraining_trainer.data.prepared import PreparedData, check_enough
from lmtraining_trainer.data.repeats import find_repeats
from lmtraining_trainer.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from lmtraining_trainer.errors import Preempted, TrainerError
from tests.trainer.rank_support import tiny_spec, write_text

pytestmark = pytest.mark.trainer

prepare_module = import_module("lmtraining_trainer.data.prepare")

DOCUMENTS = [
    "plain words and more words, again and again",
    "<|endoftext|> spelt out is text",
    "ünïcödé, emoji \N{GRINNING FACE}, tabs\t and\r\n line ends\n\n\n   ",
    "x" * 100 + "\n" + "long " * 20_000,
]


def data(uri: str, **fields: object) -> Data:
    base = {"train": [{"uri": uri, "format": "jsonl"}], "tokenizer": {"vocabSize": 270}}
    return Data.model_validate({**base, "sequenceLength": 16, **fields})


def write(path: Path, texts: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path.as_uri()


def prose(seed: int, *, characters: int) -> str:
    """Lines that are all different."""
    lines = (f"line {number} of {seed} says {number * 7919}\n" for number in range(characters))
    return "".join(islice(lines, characters // 24))


def prepared(tmp_path: Path, wanted: Data, messages: list[str] | None = None) -> PreparedData:
    said = messages if messages is not None else []
    key = prepare(
        wanted,
        cache=tmp_path / "cache",
        credentials=tmp_path,
        owner="uid",
        progress=said.append,
    )
    found = open_prepared(tmp_path / "cache", key)
    assert found is not None
    return found


def split(tokens: np.ndarray, tokenizer_json: str) -> list[str]:
    tokenizer = load_tokenizer(tokenizer_json)
    ends = np.flatnonzero(tokens == END_OF_TEXT_ID)
    assert ends[-1] == len(tokens) - 1
    parts = np.split(tokens, ends + 1)[:-1]
    return [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts]


def test_every_document_comes_back_unchanged(tmp_path: Path) -> None:
    """Also the one that spells out the end-of-text token, and one longer than a chunk's piece."""
    held = write(tmp_path / "v.jsonl", ["held out words"])
    uri = write(tmp_path / "t.jsonl", DOCUMENTS)
    found = prepared(tmp_path, data(uri, validation=[{"uri": held, "format": "jsonl"}]))
    assert found.train.dtype == np.uint16
    assert split(found.train, found.tokenizer_json) == DOCUMENTS
    assert split(found.validation, found.tokenizer_json) == ["held out words"]


def test_the_tokens_do_not_depend_on_the_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    whole = prepared(tmp_path / "a", data(uri))
    monkeypatch.setattr(packing, "CHUNK_CHARACTERS", 100)
    chunked = prepared(tmp_path / "b", data(uri))
    assert whole.key == chunked.key
    assert np.array_equal(whole.train, chunked.train)


def test_held_out_documents_are_chosen_by_content(tmp_path: Path) -> None:
    texts = [f"document number {index} says {index * 7919}" for index in range(400)]
    one = prepared(tmp_path, data(write(tmp_path / "a.jsonl", texts), validationFraction=0.2))
    held = set(split(one.validation, one.tokenizer_json))
    assert 40 < len(held) < 120
    backwards = write(tmp_path / "b.jsonl", texts[::-1] + texts)
    two = prepared(tmp_path, data(backwards, validationFraction=0.2))
    assert set(split(two.validation, two.tokenizer_json)) == held
    assert held.isdisjoint(split(two.train, two.tokenizer_json))


def test_documents_that_repeat_are_left_out_and_counted(tmp_path: Path) -> None:
    """Also across sources; the first one stays, where it stands."""
    first = write(tmp_path / "a.jsonl", ["one one", "two two", "one one", "three three"])
    second = write(tmp_path / "b.jsonl", ["two two", "four four", "one one "])
    held = write(tmp_path / "v.jsonl", ["held out", "held out"])
    wanted = data(
        first,
        train=[{"uri": first, "format": "jsonl"}, {"uri": second, "format": "jsonl"}],
        validation=[{"uri": held, "format": "jsonl"}],
        tokenizer={"vocabSize": 258},
    )
    plain = prepared(tmp_path, wanted)
    said: list[str] = []
    found = prepared(tmp_path, wanted.model_copy(update={"deduplicate": "exact"}), said)
    assert found.key != plain.key
    assert len(split(plain.train, plain.tokenizer_json)) == 7
    assert split(found.train, found.tokenizer_json) == [
        "one one", "two two", "three three", "four four", "one one ",
    ]  # fmt: skip
    assert found.source_tokens[1] == len(found.train) - found.source_tokens[0]
    assert split(found.validation, found.tokenizer_json) == ["held out"] * 2
    assert any("2 of 7 documents left out" in message for message in said)
    directory = tmp_path / "cache" / found.key
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["documents"], manifest["repeated_documents"]) == (7, 2)
    assert {path.name for path in directory.iterdir()} == {"manifest.json", *manifest["files"]}


def test_repeats_are_those_that_a_set_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "CHUNK_DOCUMENTS", 7)
    texts = [str(number * number % 311) for number in range(1000)]
    seen: set[str] = set()
    expected = [text in seen or seen.add(text) is not None for text in texts]
    found = find_repeats(iter(texts), tmp_path)
    assert [number in found for number in range(found.documents)] == expected
    assert found.count == sum(expected)
    mapped = Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in mapped, "what is in use cannot be deleted on NFS"
    assert find_repeats(iter([]), tmp_path).documents == 0


@pytest.mark.parametrize("documents", [1, 2, 5])
def test_a_few_long_documents_can_be_trained_with_the_default_fraction(
    tmp_path: Path, documents: int
) -> None:
    """Also as one file each; the held-out text is not among the training text, and nothing is
    lost."""
    texts = [prose(seed, characters=100_000) for seed in range(documents)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    source = {"uri": f"{tmp_path.as_uri()}/*.txt"}
    spec = tiny_spec("file:///x", data={"train": [source], "validationFraction": 0.01})
    found = prepared(tmp_path, spec.data)
    check_enough(found, spec)
    train = split(found.train, found.tokenizer_json)
    held = split(found.validation, found.tokenizer_json)
    assert sum(map(len, train)) + sum(map(len, held)) == sum(map(len, texts))
    for run in [*train, *held]:
        assert any(run in text for text in texts)
    lines = {line for run in train for line in run.splitlines()}
    assert lines.isdisjoint(line for run in held for line in run.splitlines())


def test_a_change_of_anything_that_matters_is_another_key(tmp_path: Path) -> None:
    uri, held = write_text(tmp_path / "t.jsonl"), write(tmp_path / "v.jsonl", ["held out"])
    keys = {
        prepared(tmp_path, wanted).key
        for wanted in (
            data(uri),
            data(uri, tokenizer={"vocabSize": 271}),
            data(uri, validationFraction=0.3),
            data(uri, validation=[{"uri": held, "format": "jsonl"}]),
        )
    }
    same = prepared(tmp_path, data(uri, sequenceLength=8)).key  # not cut into sequences yet
    write_text(tmp_path / "t.jsonl", documents=61)
    assert len(keys | {prepared(tmp_path, data(uri)).key}) == 5
    assert same in keys


def test_preparing_twice_reads_nothing_and_damage_is_noticed(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    said_first: list[str] = []
    said_again: list[str] = []
    first = prepared(tmp_path, data(uri), said_first)
    prepared(tmp_path, data(uri), said_again)
    assert any(message.startswith("tokenised") for message in said_first)
    assert set(said_again) <= {"listing the files"}
    path = tmp_path / "cache" / first.key / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert open_prepared(tmp_path / "cache", first.key) is None
    assert np.array_equal(prepared(tmp_path, data(uri)).validation, first.validation)


def test_an_interrupted_preparation_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "t.jsonl")

    def interrupt(message: str) -> None:
        if message.startswith("tokenised"):
            raise Preempted(0)

    with pytest.raises(Preempted):
        prepare(
            data(uri), cache=tmp_path / "cache", credentials=tmp_path, owner="u", progress=interrupt
        )
    assert list((tmp_path / "cache").iterdir()) == []
    # A killed one leaves its temporary directory; the job's next attempt removes it.
    (tmp_path / "cache" / ".preparing-uid-abc").mkdir()
    (tmp_path / "cache" / ".preparing-other-abc").mkdir()
    key = prepared(tmp_path, data(uri)).key
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {key, ".preparing-other-abc"}


def test_a_long_listing_says_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of objects, or a server that must be read whole for want of versions."""
    uri = write_text(tmp_path / "t.jsonl")
    real, spoke = prepare_module.list_sources, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert spoke.wait(60)
        return real(*arguments)

    monkeypatch.setattr(prepare_module, "list_sources", slow)
    prepare(
        data(uri),
        cache=tmp_path / "cache",
        credentials=tmp_path,
        owner="u",
        progress=lambda _: spoke.set(),
    )


def test_p1_a_replaced_gang_neither_publishes_data_nor_removes_its_successors(
    tmp_path: Path,
) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    successors = tmp_path / "cache" / ".preparing-u-successor"
    successors.mkdir(parents=True)

    def fenced() -> None:
        raise TrainerError(FailureClass.PEER_LOST, "Fenced", "replaced")

    with pytest.raises(TrainerError, match="replaced"):
        prepare(
            data(uri),
            cache=tmp_path / "cache",
            credentials=tmp_path,
            owner="u",
            progress=lambda _: None,
            check=fenced,
        )
    assert list((tmp_path / "cache").iterdir()) == [successors]


def test_two_preparers_at_once_are_harmless(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    both = threading.Barrier(2, timeout=60)
    keys: list[str] = []

    def work(owner: str) -> None:
        waited: list[bool] = []

        def progress(message: str) -> None:
            if message.startswith("tokenised") and not waited:
                waited.append(True)
                both.wait()  # both have begun to write before either publishes

        keys.append(
            prepare(
                data(uri),
                cache=tmp_path / "cache",
                credentials=tmp_path,
                owner=owner,
                progress=progress,
            )
        )

    threads = [threading.Thread(target=work, args=(owner,)) for owner in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [keys[0]]
    assert open_prepared(tmp_path / "cache", keys[0]) is not None


@pytest.mark.parametrize(
    ("texts", "fields", "reason", "parts"),
    [
        (["few words"], {"tokenizer": {"vocabSize": 5000}}, "VocabularyTooLarge", ["5000", "is 2"]),
        ([""], {}, "NoText", ["data.train"]),
    ],
)
def test_text_that_is_not_enough_is_refused_with_numbers(
    tmp_path: Path, texts: list[str], fields: dict[str, object], reason: str, parts: list[str]
) -> None:
    uri = write(tmp_path / "t.jsonl", texts)
    held = write(tmp_path / "v.jsonl", ["held out"])
    with pytest.raises(TrainerError) as raised:
        prepared(tmp_path, data(uri, validation=[{"uri": held, "format": "jsonl"}], **fields))
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, reason)
    assert all(part in raised.value.message for part in parts), raised.value.message


def test_too_few_tokens_for_a_batch_or_a_validation(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    spec: TrainingSpec = tiny_spec(uri, training={"batchTokens": 16 * 4096})
    found = prepared(tmp_path, spec.data)
    with pytest.raises(TrainerError, match=rf"has {len(found.train)} training .* 4096 .*65536"):
        check_enough(found, spec)
    write_text(tmp_path / "t.jsonl", documents=1)
    short = tiny_spec(uri, training={"batchTokens": 16})
    with pytest.raises(TrainerError, match=r"data.train is too little .*data.validationFraction"):
        check_enough(prepared(tmp_path, short.data), short)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "t.jsonl")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(TrainerError) as raised:
        prepared(tmp_path, data(uri))
    assert raised.value.failure_class is FailureClass.STORAGE
    assert str(tmp_path / "cache") in raised.value.message


def test_unigram_loss_is_that_of_smoothed_counts() -> None:
    train, validation = np.array([8, 0, 0]), np.array([1, 1, 0])
    expected = -(np.log(9 / 11) + np.log(1 / 11)) / 2
    assert unigram_loss(train, validation) == pytest.approx(expected)
