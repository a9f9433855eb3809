"""Sources: what a person can mend is named with file, line and fix, and never quoted (P11)."""

import csv
import gzip
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmtraining_api import FailureClass
from lmtraining_api.job import Data, DataSource
from lmtraining_trainer.data.documents import check_sources, documents
from lmtraining_trainer.data.parquet import parquet_texts
from lmtraining_trainer.data.sources import (
    list_files,
    redacted,
    storage_options,
)
from lmtraining_trainer.errors import TrainerError

pytestmark = pytest.mark.trainer

SECRET_TEXT = "the-quick-brown-secret"


def source(uri: str, **fields: object) -> DataSource:
    return DataSource.model_validate({"uri": uri, **fields})


def read(tmp_path: Path, *sources: DataSource) -> list[str]:
    files = list_files(sources, tmp_path, field="data.train")
    return [text for file in files for text in documents(file)]


def test_files_by_uri_glob_and_directory_in_order_of_path(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "2.txt").write_text("two")
    (tmp_path / "b" / "1.txt").write_text("one")
    (tmp_path / "b" / "0.txt").write_text("")  # an empty document is none
    root = tmp_path.as_uri()
    assert read(tmp_path, source(f"{root}/b/1.txt")) == ["one"]
    assert read(tmp_path, source(f"{root}/b/**/*.txt")) == ["one", "two"]
    assert read(tmp_path, source(f"{root}/b")) == ["one", "two"]
    with fsspec.open("memory://here/x.txt", "wb") as file:
        file.write(b"in memory")
    assert read(tmp_path, source("memory://here/*.txt")) == ["in memory"]


def test_jsonl_plain_and_compressed(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"d{index}"}) for index in range(3)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    uri = f"{tmp_path.as_uri()}/*"
    assert read(tmp_path, source(uri, format="jsonl", textField="body")) == ["d0", "d1", "d2"] * 2


@pytest.mark.parametrize(
    ("content", "fields", "reason", "line"),
    [
        (b"fine\nfine\n\xff\xfe" + SECRET_TEXT.encode(), {}, "NotUtf8", 3),
        (b'{"text": "x"}\n{"text": ' + SECRET_TEXT.encode(), {"format": "jsonl"}, "NotJson", 2),
        (b'{"text": "x"}\n\n{"t": "' + SECRET_TEXT.encode() + b'"}', {"format": "jsonl"},
         "MissingField", 3),
        (b'["' + SECRET_TEXT.encode() + b'"]', {"format": "jsonl"}, "NotAnObject", 1),
        (b'{"text": 5}', {"format": "jsonl"}, "NotText", 1),
        (b'{"text": "x"}\n{"text": "\xff"}', {"format": "jsonl"}, "NotUtf8", 2),
        (b'{"text": "\\ud800"}', {"format": "jsonl"}, "NotUtf8", 1),
    ],
)  # fmt: skip
def test_p11_bad_content_is_named_and_not_quoted(
    tmp_path: Path, content: bytes, fields: dict[str, object], reason: str, line: int
) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    uri = f"{tmp_path.as_uri()}/bad.txt"
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(uri, **fields))
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, reason)
    assert f"{uri} line {line}" in raised.value.message
    assert SECRET_TEXT not in raised.value.message


@pytest.mark.parametrize(
    ("uri", "reason", "failure_class"),
    [
        ("file:///nowhere/at/all.txt", "NoSuchFile", FailureClass.DATA),
        ("file:///nowhere/**/*.txt", "NoSuchFile", FailureClass.DATA),
        ("nosuchprotocol://x/y", "BadUri", FailureClass.DATA),
        ("abfs://container/x", "NoSuchProtocol", FailureClass.DATA),
    ],
)
def test_what_cannot_be_opened_is_named(
    tmp_path: Path, uri: str, reason: str, failure_class: FailureClass
) -> None:
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(uri))
    assert (raised.value.failure_class, raised.value.reason) == (failure_class, reason)
    assert f"data.train[0].uri {uri}" in raised.value.message


def test_a_source_that_does_not_answer_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")

    def unreachable(*_: object, **__: object) -> None:
        raise TimeoutError("password=hunter2")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", unreachable)
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(f"{tmp_path.as_uri()}/a.txt"))
    assert raised.value.failure_class is FailureClass.STORAGE
    assert raised.value.failure_class.may_retry
    assert "hunter2" not in raised.value.message


class Answers(BaseHTTPRequestHandler):
    """/503 is answered 503, /404/x 404, /403/x 403, anything else with a line of text;
    /stream/x does not say how long it is."""

    def do_GET(self) -> None:
        asked = self.path.split("/")[1]
        body = b"a line of text\n"
        self.send_response(int(asked) if asked.isdigit() else 200)
        if asked != "stream":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_text_over_http(tmp_path: Path, server: str) -> None:
    assert read(tmp_path, source(f"{server}/a.txt")) == ["a line of text\n"]
    assert read(tmp_path, source(f"{server}/a.txt?part=1")) == ["a line of text\n"]


@pytest.mark.parametrize(
    ("path", "reason", "retried"),
    [
        ("/404/a.txt", "NoSuchFile", False),
        ("/404/*.txt", "NoSuchFile", False),
        ("/403/a.txt", "NotAllowed", False),
        ("/403/*.txt", "NotAllowed", False),
        ("/401/a.txt", "NotAllowed", False),
        ("/503/a.txt", "SourceUnreadable", True),
        ("/429/a.txt", "SourceUnreadable", True),
    ],
)
def test_what_a_server_answers_is_final_or_not(
    tmp_path: Path, server: str, path: str, reason: str, retried: bool
) -> None:
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(server + path))
    assert (raised.value.reason, raised.value.failure_class.may_retry) == (reason, retried)
    assert server + path in raised.value.message


@pytest.mark.parametrize("path", ["/a.txt", "/*.txt", "/**/a.txt", "/a.txt?part=1"])
@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1"])
def test_a_server_out_of_reach_is_tried_again_and_named(
    tmp_path: Path, host: str, path: str
) -> None:
    """A name that does not resolve, and a port that refuses."""
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(f"http://{host}:{free_port()}{path}"))
    failure = raised.value
    assert (failure.failure_class, failure.reason) == (FailureClass.STORAGE, "SourceUnreachable")
    assert failure.failure_class.may_retry
    for part in ("data.train[0].uri", f"host {host}", "DNS", "NetworkPolicy"):
        assert part in failure.message


def data(**fields: object) -> Data:
    return Data.model_validate(fields)


def test_a_file_that_is_trained_and_validated_on_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    root = tmp_path.as_uri()
    apart = data(train=[{"uri": f"{root}/a.txt"}], validation=[{"uri": f"{root}/b.txt"}])
    check_sources(apart, tmp_path)
    both = data(train=[{"uri": f"{root}/*.txt"}], validation=[{"uri": f"{root}/b.txt"}])
    with pytest.raises(TrainerError) as raised:
        check_sources(both, tmp_path)
    assert raised.value.failure_class is FailureClass.DATA
    for part in (f"{root}/b.txt", "data.train", "data.validation[0].uri"):
        assert part in raised.value.message


def test_empty_files_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(TrainerError) as raised:
        check_sources(data(train=[{"uri": f"{tmp_path.as_uri()}/*.txt"}]), tmp_path)
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, "NoText")
    assert f"{tmp_path.as_uri()}/a.txt" in raised.value.message


def test_sources_are_checked_and_data_prepared_without_torch() -> None:
    """So that a missing file need not wait for the import."""
    code = (
        "import sys, lmtraining_trainer.data;"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_credentials_are_one_option_per_key_of_the_secret(tmp_path: Path) -> None:
    secret = tmp_path / "bucket-reader"
    (secret / "..2026").mkdir(parents=True)
    (secret / "key").write_text("abc\n")
    (secret / "endpoint_url").write_text("http://minio")
    with_secret = source("s3://b/x", credentials={"secretRef": {"name": "bucket-reader"}})
    assert storage_options(with_secret, tmp_path) == {"key": "abc", "endpoint_url": "http://minio"}
    without = source("s3://b/x", credentials={"secretRef": {"name": "absent"}})
    with pytest.raises(TrainerError) as raised:
        storage_options(without, tmp_path)
    assert "Secret absent" in raised.value.message


def test_p11_no_secret_of_a_uri_reaches_a_message() -> None:
    assert redacted("https://me:pw@host/a.txt?sig=abc") == "https://host/a.txt"
    assert redacted("https://me:p@ss@host/a.txt") == "https://host/a.txt"
    for uri in (
        "simplecache::https://host/x?sig=SECRET",
        "zip://a.txt::https://me:SECRET@host/x.zip?token=SECRET",
        "file:///a?SECRET::https://host/x",
    ):
        assert "SECRET" not in redacted(uri)
    assert redacted("file:///data/part-?.txt") == "file:///data/part-?.txt"


TEXTS = ["one", 'two, with "quotes"\nand a line', "", "drei \N{GREEK SMALL LETTER ALPHA}"]
BODY = {"textField": "body"}


def write_csv(path: Path, texts: list[str] = TEXTS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "body"])
        writer.writerows([index, text] for index, text in enumerate(texts))
    return path


def write_parquet(
    path: Path, texts: object = TEXTS, *, kind: pa.DataType | None = None, **options: object
) -> Path:
    """Two rows to a row group, columns id and body."""
    body = pa.array(texts, type=kind)
    table = pa.table({"id": pa.array(range(len(body))), "body": body})
    pq.write_table(table, path, row_group_size=2, **options)
    return path


def test_csv_and_parquet_give_the_documents_that_jsonl_gives(tmp_path: Path) -> None:
    """Also compressed, with a mark of byte order, with windows' line ends, and as categories."""
    there = [text for text in TEXTS if text]
    plain = write_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    for name in ("a.csv", "b.csv", "c.csv.gz"):
        found = read(tmp_path, source(f"{tmp_path.as_uri()}/{name}", format="csv", **BODY))
        assert found == there, name
    for number, kind in enumerate((pa.string(), pa.large_string(), pa.string_view())):
        write_parquet(tmp_path / f"{number}.parquet", kind=kind)
    pq.write_table(
        pa.table({"body": pa.array(TEXTS).dictionary_encode(), "id": [[1]] * len(TEXTS)}),
        tmp_path / "3.parquet",
    )
    uri = f"{tmp_path.as_uri()}/*.parquet"
    assert read(tmp_path, source(uri, format="parquet", **BODY)) == there * 4


def test_format_auto_goes_by_the_suffix_of_each_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["csv"])
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "c.jsonl").write_text('{"body": "jsonl"}')
    write_parquet(tmp_path / "d.parquet", ["parquet"])
    (tmp_path / "e.txt").write_text("text")
    (tmp_path / "f").write_text("id,body\n")
    files = list_files([source(tmp_path.as_uri(), format="auto", **BODY)], tmp_path, field="f")
    found = [text for file in files for text in documents(file)]
    assert found == ["csv", "csv", "jsonl", "parquet", "text", "id,body\n"]


def refusal(tmp_path: Path, name: str, **fields: object) -> TrainerError:
    """What is said of a file of `tmp_path`, before anything else is read."""
    wanted = data(train=[{"uri": f"{tmp_path.as_uri()}/{name}", **fields}])
    with pytest.raises(TrainerError) as raised:
        check_sources(wanted, tmp_path)
    assert raised.value.failure_class is FailureClass.DATA
    assert f"{tmp_path.as_uri()}/{name}" in raised.value.message
    return raised.value


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_column_that_is_not_in_the_file_is_told_with_those_that_are(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    match suffix:
        case "csv":
            write_csv(path)
        case "parquet":
            write_parquet(path)
        case _:
            path.write_text('{"id": 1, "body": "x"}')
    refused = refusal(tmp_path, path.name, format="auto")
    assert refused.reason == "MissingField"
    for part in ('"text"', "id, body", "data.train[0].textField"):
        assert part in refused.message


@pytest.mark.parametrize(
    "line",
    [
        "the quick brown secret,an ordinary word,secret",
        "secret@example.com,4111111111111111,secret",
        "secret,2026-12-01,secret",
        "geheim,größe,secret",
    ],
)
def test_p11_the_first_line_of_a_file_without_a_header_is_not_quoted(
    tmp_path: Path, line: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{line}\n")
    refused = refusal(tmp_path, "a.csv", format="csv")
    assert refused.reason == "MissingField"
    assert "but 3 columns, not all with names of letters, digits" in refused.message
    for word in line.split(","):
        assert word not in refused.message


@pytest.mark.parametrize(
    ("content", "reason", "parts"),
    [
        (b"id,body\n1,a,secret words\n", "UnevenRow", ["line 2", "3 cells", "header 2"]),
        (b"id,body\n\n1\n", "UnevenRow", ["line 3", "1 cells"]),
        (b'id,body\n1,a\n2,"secret words\n\n', "NotCsv", ["line 3"]),
        (b'id,body\n1,"a"secret\n', "NotCsv", ["line 2"]),
        (b"id,body\r1,secret\r", "NotCsv", ["line 1", "line ends"]),
        (b"id,body\n1,a\n2,\xff\xfesecret\n", "NotUtf8", ["line 3"]),
        (b"body,body\n1,a\n", "AmbiguousField", ['2 columns "body"']),
    ],
)
def test_p11_bad_csv_is_named_by_line_and_not_quoted(
    tmp_path: Path, content: bytes, reason: str, parts: list[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    uri = f"{tmp_path.as_uri()}/a.csv"
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(uri, format="csv", **BODY))
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, reason)
    assert all(part in raised.value.message for part in [uri, *parts]), raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    ("texts", "kind", "reason", "parts"),
    [
        ([1, 2], pa.int64(), "NotText", ["holds int64", "no column at all"]),
        ([b"a"], pa.binary(), "NotText", ["holds binary"]),
        (["a", "b", None], pa.string(), "NotText", ["row 3", '"body" is null']),
        (["a", "b", "\xff"], None, "NotUtf8", ["row 3"]),
    ],
)
def test_parquet_that_holds_no_text_is_named_by_column_or_row(
    tmp_path: Path, texts: list[object], kind: pa.DataType, reason: str, parts: list[str]
) -> None:
    if kind is None:  # bytes that another program called a string
        packed = pa.array([str(text).encode("latin-1") for text in texts], pa.binary())
        texts, kind = pa.Array.from_buffers(pa.string(), len(packed), packed.buffers()), None
    write_parquet(tmp_path / "a.parquet", texts, kind=kind)
    uri = f"{tmp_path.as_uri()}/a.parquet"
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(uri, format="parquet", **BODY))
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, reason)
    assert all(part in raised.value.message for part in [uri, *parts]), raised.value.message


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_a_corrupt_page_names_the_file_and_the_row_group(tmp_path: Path, codec: str) -> None:
    texts = [f"document {index} " + "words " * 40 for index in range(6)]
    path = write_parquet(
        tmp_path / "a.parquet", texts, compression=codec, write_page_checksum=True,
        use_dictionary=False,
    )  # fmt: skip
    uri = path.as_uri()
    read(tmp_path, source(uri, format="parquet", **BODY))
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(uri, format="parquet", **BODY))
    assert raised.value.reason == "CorruptRowGroup"
    assert f"{uri} row group 1 (of 0 to 2)" in raised.value.message


@pytest.mark.parametrize("content", [b"PAR1 and no more", b"{}"])
def test_what_is_not_parquet_is_said_to_be_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert refusal(tmp_path, "a.parquet", format="auto").reason == "NotParquet"


def test_parquet_on_a_server_without_ranges_is_refused(tmp_path: Path, server: str) -> None:
    with pytest.raises(TrainerError) as raised:
        read(tmp_path, source(f"{server}/stream/a.parquet", format="parquet"))
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, "NotSeekable")
    assert f"{server}/stream/a.parquet" in raised.value.message


class Watched(io.FileIO):
    """A file that remembers the most that was asked of it at once."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        answer = super().read(-1 if size is None else size) or b""
        self.most = max(self.most, len(answer))
        return answer


def test_a_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    """One of 64 MB comes into memory neither as bytes nor as rows."""
    rows = [os.urandom(16 * 1024).hex() for _ in range(2048)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": rows}), path, use_dictionary=False, write_batch_size=16)
    assert pq.read_metadata(path).num_row_groups == 1
    [file] = list_files([source(path.as_uri(), format="parquet")], tmp_path, field="data.train")
    before = pa.total_allocated_bytes()
    with Watched(path) as stream:
        held = [pa.total_allocated_bytes() - before for _ in parquet_texts(file, stream)]
        assert stream.most < 2 * 2**20
    assert len(held) == len(rows)
    assert max(held) < 16 * 2**20
