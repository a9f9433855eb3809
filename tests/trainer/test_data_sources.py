"""Sources: what a person can mend is named with file, line and fix, and never quoted (P11)."""

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from lmtraining_api import FailureClass
from lmtraining_api.job import Data, DataSource
from lmtraining_trainer.data.sources import (
    check_sources,
    documents,
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
        (b'["' + SECRET_TEXT.encode() + b'"]', {"format": "jsonl"}, "MissingField", 1),
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
    """/503 is answered 503, /404/x 404, /403/x 403, anything else with a line of text."""

    def do_GET(self) -> None:
        asked = self.path.split("/")[1]
        body = b"a line of text\n"
        self.send_response(int(asked) if asked.isdigit() else 200)
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
