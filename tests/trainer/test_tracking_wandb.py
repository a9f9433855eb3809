"""A run as Weights & Biases has it: whole, in one run, and never at the cost of the training.

There is no server of theirs here: what their client writes is read by their own reader, and what it
sends goes to servers that refuse or are silent.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode, JobFile
from lmtraining_trainer.supervisor.trackers import Trackers
from lmtraining_trainer.tracking.__main__ import Telling, run_of
from tests.trainer.supervisor_pods import pods, until
from tests.trainer.tracked_runs import PRIVATE_MODEL, counting, ended, losses, tracked_job, trained

pytestmark = pytest.mark.trainer

KEY = "5ec2e7" * 6 + "0000"
"""As long as theirs."""


def records(run_directory: Path) -> list[dict[str, Any]]:
    """What lies in wandb/ of a run, in the order in which it was written."""
    found = []
    for file in sorted((run_directory / "wandb").glob("*run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
        read = subprocess.run(command, capture_output=True, text=True, check=True)
        found += [json.loads(line) for line in read.stdout.splitlines()]
    return found


def curve(run_directory: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of everything that was told, in that order."""
    items = [one["history"]["item"] for one in records(run_directory) if one["type"] == "history"]
    return [(item["step"], item[name]) for item in items if name in item]


def telling(made: JobFile, credentials: Path = Path("/nonexistent"), now: float = 0.0) -> Telling:
    run = run_of("wandb", made, credentials)
    assert run is not None
    return Telling(name="wandb", run=run, directory=Path(made.run_directory), clock=lambda: now)


def with_key(directory: Path, uri: str) -> tuple[JobFile, Path]:
    """A job that sends, and where its Secret is mounted."""
    (directory / "credentials" / "login").mkdir(parents=True)
    (directory / "credentials" / "login" / "token").write_text(KEY)
    login = {"secretRef": {"name": "login"}}
    made = tracked_job(directory, wandb={"uri": uri, "credentials": login})
    return made, directory / "credentials"


def in_a_process(made: JobFile) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lmtraining_trainer.tracking", "wandb"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(f"{made.model_dump_json(by_alias=True)}\n")
    process.stdin.flush()
    return process


def test_all_attempts_are_one_run_and_each_step_is_told_once(tmp_path: Path) -> None:
    made = tracked_job(tmp_path, wandb={"project": "Tiny models"})
    run = tmp_path / "run"
    for steps, code in ((100, ExitCode.CRASH), (150, ExitCode.PREEMPTED), (170, ExitCode.FINISHED)):
        trained(tmp_path, steps)
        attempt = Trackers(made)
        attempt.start()
        until(lambda n=steps: len(curve(run, "loss")) >= n, f"{steps} steps")
        attempt.close(ended(code))
    assert curve(run, "loss") == losses(range(1, 171))
    assert curve(run, "validation_loss") == [(20, 2.5)]
    found = records(run)
    runs = [one["run"] for one in found if one["type"] == "run"]
    assert {(one["run_id"], one["project"], one["display_name"]) for one in runs} == {
        (made.job_uid, "Tiny models", "tiny")
    }
    assert all(one["resume"] for one in runs)
    assert runs[0]["config"]["update"]["model.config.layers"] == "1"
    ends = [one["exit"].get("exit_code", 0) for one in found if one["type"] == "exit"]
    assert ends == [1, 1, 0]
    assert [one["type"] for one in found].count("preempting") == 1
    sync = [sys.executable, "-m", "wandb", "sync", "--dry-run", run / "wandb"]
    would = subprocess.run(sync, capture_output=True, text=True, check=True)
    assert "Would sync 3 run(s)" in would.stdout + would.stderr


def test_a_kill_of_everything_loses_no_step(tmp_path: Path) -> None:
    made = tracked_job(tmp_path, wandb={})
    trained(tmp_path, 100)
    process = in_a_process(made)
    until(lambda: len(curve(tmp_path / "run", "loss")) >= 100, "the first 100 steps")
    for victim in (process.pid, *clients_of(process.pid)):
        os.kill(victim, signal.SIGKILL)
    process.communicate()
    trained(tmp_path, 130)
    assert telling(made).look("FINISHED", is_last=True)
    assert sorted(set(curve(tmp_path / "run", "loss"))) == losses(range(1, 131))


def clients_of(process: int) -> list[int]:
    """The programs of wandb that serve this process."""
    mark = f"\0--pid\0{process}\0".encode()
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (one / "cmdline").read_bytes():
                found.append(int(one.name))
    return found


def test_a_client_that_dies_is_started_again(tmp_path: Path) -> None:
    run = telling(tracked_job(tmp_path, wandb={}))
    trained(tmp_path, 20)
    assert run.look("RUNNING")
    until(lambda: curve(tmp_path / "run", "loss"), "the first 20 steps")
    for victim in clients_of(os.getpid()):
        os.kill(victim, signal.SIGKILL)
    until(lambda: not clients_of(os.getpid()), "its end")
    for now, steps in enumerate(range(30, 60, 10)):
        run.clock = lambda now=now: 1000.0 * now  # type: ignore[misc]
        trained(tmp_path, steps)
        run.look("RUNNING")
    assert run.look("FINISHED", is_last=True)
    assert sorted(set(curve(tmp_path / "run", "loss"))) == losses(range(1, 51))


def test_steps_after_a_rewind_are_told_beside_those_before(tmp_path: Path) -> None:
    run = telling(tracked_job(tmp_path, wandb={}))
    trained(tmp_path, 30)
    assert run.look("RUNNING")
    trained(tmp_path, 35, redone_from=26)
    assert run.look("FINISHED", is_last=True)
    others = [(step, 20.0 / step) for step in range(26, 36)]
    assert curve(tmp_path / "run", "loss") == losses(range(1, 31)) + others


class Refusing(BaseHTTPRequestHandler):
    """Sends everyone on to another host, where everyone is refused, and remembers who comes."""

    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(401 if self.path == "/elsewhere" else 307)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def refusing() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Its address, and who came."""
    handler = type("Handler", (Refusing,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.seen
        server.shutdown()
        thread.join()


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P11"""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # to see what it wrote
    with refusing() as (uri, seen):
        made, credentials = with_key(tmp_path, uri)
        trained(tmp_path, 10)
        run = telling(made, credentials)
        assert not run.look("FINISHED", is_last=True)
    signed = f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"
    assert {said for path, said in seen if path != "/elsewhere"} == {signed}
    assert {said for path, said in seen if path == "/elsewhere"} <= {None}
    assert "tracking.wandb.uri: not told (HTTP 401)" in caplog.text
    told = capfd.readouterr()
    kept = b"".join(one.read_bytes() for one in (tmp_path / "run").rglob("*") if one.is_file())
    assert b"config:" in kept
    for place in (told.out, told.err, caplog.text, repr(run), kept.decode(errors="replace")):
        assert KEY not in place


def test_neither_text_nor_a_place_nor_the_machine_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P11"""
    monkeypatch.setenv("PRIVATE_SETTING", "only-of-this-machine")
    run = telling(tracked_job(tmp_path, PRIVATE_MODEL, wandb={}))
    trained(tmp_path, 10)
    assert run.look("FINISHED", is_last=True)
    known = json.dumps(records(tmp_path / "run"))
    for private in (
        "private-", "file:", str(tmp_path), socket.gethostname(), "only-of-this-machine",
        str(Path.cwd()), Path(sys.argv[0]).name,
    ):  # fmt: skip
        assert private not in known


def test_an_outage_is_one_line_and_leaves_nothing_lying_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        made, credentials = with_key(tmp_path, uri)
        trained(tmp_path, 10)
        run = telling(made, credentials)
        for now in (0.0, 5.0, 10.0):
            run.clock = lambda now=now: now  # type: ignore[misc]
            assert not run.look("RUNNING")
    ours = [one for one in caplog.records if one.name.startswith("lmtraining_trainer")]
    assert [one.getMessage() for one in ours] == [
        "tracking.wandb.uri: not told (CommError): the training goes on, trying again"
    ]
    assert not clients_of(os.getpid())
    assert not list((tmp_path / "run").glob("wandb/*run-*"))


def test_an_image_without_the_client_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "lmtraining_trainer.tracking.wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_of("wandb", tracked_job(tmp_path, wandb={}), tmp_path) is None
    assert "this trainer image is without the package wandb" in caplog.text


def test_a_secret_without_a_token_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, credentials = with_key(tmp_path, "http://127.0.0.1:9")
    (credentials / "login" / "token").rename(credentials / "login" / "apiKey")
    trained(tmp_path, 10)
    assert not telling(made, credentials).look("RUNNING")
    assert "the Secret of credentials has no key token" in caplog.text


def test_a_run_is_told_whole_and_at_its_end(tmp_path: Path) -> None:
    pod = counting(tmp_path, wandb={})
    with pods(pod):
        pod.intend()
        assert pod.wait() == ExitCode.FINISHED
    assert curve(pod.run_directory, "loss") == losses(range(1, 21))
    told = json.dumps(records(pod.run_directory))
    assert "torch" not in told, "P11: its client tells what its process has loaded"


def test_its_client_ends_with_it(tmp_path: Path) -> None:
    made = tracked_job(tmp_path, wandb={})
    trained(tmp_path, 10)
    process = in_a_process(made)
    until(lambda: curve(tmp_path / "run", "loss"), "a step")
    assert clients_of(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not clients_of(process.pid), "its end")
