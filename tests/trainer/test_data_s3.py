"""Sources in S3: a real client against a server on loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from lmtraining_api import FailureClass
from lmtraining_api.job import DataSource
from lmtraining_trainer.data.documents import documents
from lmtraining_trainer.data.sources import list_files
from lmtraining_trainer.errors import TrainerError

pytestmark = pytest.mark.trainer

LOGIN = {"key": "reader", "secret": "hunter2"}


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def read(uri: str, credentials: Path, **options: str) -> list[str]:
    """The documents at `uri`, by the options of a mounted Secret."""
    secret = credentials / "bucket-reader"
    secret.mkdir(exist_ok=True)
    for name, value in options.items():
        (secret / name).write_text(value)
    source = DataSource.model_validate(
        {"uri": uri, "credentials": {"secretRef": {"name": "bucket-reader"}}}
    )
    files = list_files([source], credentials, field="data.train")
    return [text for file in files for text in documents(file)]


def test_text_from_a_bucket_with_the_options_of_a_secret(tmp_path: Path, endpoint: str) -> None:
    bucket = fsspec.filesystem("s3", endpoint_url=endpoint, **LOGIN)
    bucket.mkdir("texts")
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        bucket.pipe(f"texts/{name}", name.encode())
    options = {"endpoint_url": endpoint, **LOGIN}
    assert read("s3://texts/*.txt", tmp_path, **options) == ["a.txt", "b.txt"]
    assert read("s3://texts/deep", tmp_path, **options) == ["deep/c.txt"]
    assert read("s3://texts/b.txt", tmp_path, **options) == ["b.txt"]


@pytest.mark.parametrize("uri", ["s3://absent/a.txt", "s3://absent/*.txt"])
def test_a_bucket_that_is_absent_is_final(tmp_path: Path, endpoint: str, uri: str) -> None:
    with pytest.raises(TrainerError) as raised:
        read(uri, tmp_path, endpoint_url=endpoint, **LOGIN)
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, "NoSuchFile")
    assert uri in raised.value.message


def test_a_secret_without_a_login_is_final(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
    with pytest.raises(TrainerError) as raised:
        read("s3://texts/a.txt", tmp_path, endpoint_url=endpoint)
    assert (raised.value.failure_class, raised.value.reason) == (FailureClass.DATA, "NotAllowed")
    assert "credentials.secretRef" in raised.value.message


@pytest.mark.parametrize("uri", ["s3://texts/a.txt", "s3://texts/*.txt"])
def test_a_server_out_of_reach_is_tried_again(tmp_path: Path, uri: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(TrainerError) as raised:
        read(uri, tmp_path, endpoint_url=f"http://127.0.0.1:{port}", **LOGIN)
    failure = raised.value
    assert (failure.failure_class, failure.reason) == (FailureClass.STORAGE, "SourceUnreachable")
    assert "data.train[0].uri" in failure.message
    assert "hunter2" not in failure.message
