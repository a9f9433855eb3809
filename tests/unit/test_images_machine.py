"""What image building asks of the machine: disk, registry, package index, its own directory."""

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from devcluster.errors import DevclusterError
from devcluster.images import progress, request, store
from devcluster.images.progress import Step, announce, run_logged
from devcluster.images.reference import ImageRef
from devcluster.images.registry import registry_answers, registry_has
from devcluster.images.store import Store, bytes_used, clean
from devcluster.mounts import mounts_below
from devcluster.paths import Layout

pytestmark = pytest.mark.unit


class OneImage(BaseHTTPRequestHandler):
    """A registry that holds toy:1 and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/" else 404)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/v2/toy/manifests/1" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), OneImage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_registry_is_asked_for_the_manifest(registry: str) -> None:
    assert registry_answers(registry)
    assert registry_has(ImageRef(registry, "toy", "1"))
    assert not registry_has(ImageRef(registry, "toy", "2"))


def test_where_no_registry_answers_nothing_is_there() -> None:
    assert not registry_answers("127.0.0.1:1")
    assert not registry_has(ImageRef("127.0.0.1:1", "toy", "1"))
    assert not registry_has(ImageRef(None, "toy", "1"))


def test_a_full_disk_is_said_before_the_work_starts(tmp_path: Path) -> None:
    step = Step(title="trainer dependencies", usual_seconds=240, disk_bytes=10**18)
    with pytest.raises(DevclusterError) as caught:
        announce(step, tmp_path)
    assert "needs 1000000000.0 GB" in str(caught.value)
    assert "LMTRAIN_CACHE" in str(caught.value)


def test_a_long_step_says_duration_and_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    announce(Step(title="a step", usual_seconds=240, disk_bytes=10**6), tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("a step: usually 4 minutes, needs 0.0 GB of disk, ")


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    script = "print('why it broke'); raise SystemExit(3)"
    with pytest.raises(DevclusterError, match=r"code 3.*\n.*why it broke"):
        run_logged(
            [sys.executable, "-c", script],
            what="a step",
            log=tmp_path / "log",
            limit_seconds=60,
        )


def test_a_command_that_hangs_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "NEWS_SECONDS", 0.05)
    fifo = tmp_path / "held open by the child"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = '(echo started; exec sleep 1000) > "$0" & wait'
    with pytest.raises(DevclusterError, match="not finished after 2 s"):
        run_logged(
            ["sh", "-c", script, str(fifo)], what="a step", log=tmp_path / "log", limit_seconds=2
        )
    os.set_blocking(reader, True)  # the child is killed by now, and gone a moment later
    assert os.read(reader, 100) == b"started\n"
    assert os.read(reader, 1) == b"", "end of file: nobody holds the other end any more"
    os.close(reader)


def test_secrets_are_readable_by_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:it's secret@mirror.example/simple")
    written = request.write_secrets(tmp_path)[request.ENVIRONMENT_SECRET]
    assert written.stat().st_mode & 0o077 == 0
    assert """'https://me:it'"'"'s secret@mirror.example/simple'""" in written.read_text()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "cache")


def test_clean_gives_everything_back_and_may_be_repeated(layout: Layout) -> None:
    kept = Store.of(layout)
    kept.layers.mkdir(parents=True)
    (kept.layers / "layer").write_bytes(os.urandom(1_000_000))
    os.link(kept.layers / "layer", kept.layers / "hard link")
    assert 1_000_000 <= sum(bytes_used(layout).values()) < 1_500_000
    assert clean(layout) >= 1_000_000
    assert bytes_used(layout) == {}
    assert clean(layout) == 0


def test_clean_without_a_store_does_nothing(layout: Layout) -> None:
    assert clean(layout) == 0
    assert not layout.cache.exists()


def test_what_an_interrupted_build_left_is_gone_before_the_next(layout: Layout) -> None:
    kept = Store.of(layout)
    half_made = kept.temporary / "base" / "base.tar"
    half_made.parent.mkdir(parents=True)
    half_made.write_text("half")
    with kept.locked():
        assert not half_made.exists()
        assert kept.temporary.exists()


def test_two_builds_at_once_wait_for_each_other(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "BUILD_SECONDS_MAX", 0.1)
    kept = Store.of(layout)
    with (
        kept.locked(),
        pytest.raises(DevclusterError, match="the other image build"),
        kept.locked(),
    ):
        pass
    assert "another build is running" in capsys.readouterr().err


def test_mounts_are_found_innermost_first() -> None:
    found = mounts_below(Path("/"))
    assert Path("/proc") in found
    assert found.index(Path("/proc")) < found.index(Path("/"))
