"""A run as an experiment tracker has it: whole, once, and never at the cost of the training.

Against a real MLflow server, read back by MLflow's own client.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before its client is imported

from lmtraining_api import ExitCode, JobFile
from lmtraining_api.history import HISTORY_FILE, RunHistory
from lmtraining_trainer.supervisor.trackers import Trackers
from lmtraining_trainer.tracking import server as requests
from lmtraining_trainer.tracking.__main__ import LOOK_SECONDS, Telling, run_of
from lmtraining_trainer.tracking.mlflow import POSITION_TAG, READINGS_MAX, UID_TAG, MlflowRun
from lmtraining_trainer.tracking.run import Status
from lmtraining_trainer.tracking.server import Server, TrackerError
from tests.mlflow_server import MlflowServer
from tests.trainer.supervisor_pods import pods, until
from tests.trainer.tracked_runs import (
    PRIVATE_MODEL,
    counting,
    ended,
    losses,
    tracked_job,
    trackers_of,
    trained,
)

pytestmark = pytest.mark.trainer

BEGAN = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
SECRET = "b6fe41-not-for-anyone"


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


def job(
    directory: Path, uri: str, model: dict[str, Any] | None = None, **tracker: object
) -> JobFile:
    """A job whose experiment has the name of its directory."""
    tracking = {"uri": uri, "experiment": directory.name, **tracker}
    return tracked_job(directory, model, mlflow=tracking)


def telling(made: JobFile, credentials: Path = Path("/nonexistent"), now: float = 0.0) -> Telling:
    run = run_of("mlflow", made, credentials)
    assert run is not None
    return Telling(name="mlflow", run=run, directory=Path(made.run_directory), clock=lambda: now)


def told(server: MlflowServer, experiment: str) -> list[tuple[int, float]]:
    return [one for run in server.runs(experiment) for one in server.curve(run, "loss")]


def test_an_outage_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    made = job(tmp_path, server.uri)
    trained(tmp_path, 50)
    first = Trackers(made)
    first.start()  # nobody answers there yet
    server.start()
    try:
        trained(tmp_path, 100)
        until(lambda: told(server, tmp_path.name) == losses(range(1, 101)), "the first 100 steps")
        first.close(ended(ExitCode.CRASH))
        second = Trackers(made)
        second.start()
        trained(tmp_path, 150)
        until(lambda: len(told(server, tmp_path.name)) >= 150, "the other 50 steps")
        second.close(ended())
        (run,) = server.runs(tmp_path.name)
        assert server.curve(run, "loss") == losses(range(1, 151))
        assert server.curve(run, "validation_loss") == [(20, 2.5)]
    finally:
        server.stop()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "SCHEDULED"])
def test_the_last_words_say_how_it_ended_and_what_was_not_told(
    mlflow: MlflowServer, tmp_path: Path, status: Status
) -> None:
    made = job(tmp_path, mlflow.uri)
    trained(tmp_path, 10)
    run = telling(made)
    run.look("RUNNING")
    (known,) = mlflow.runs(tmp_path.name)
    assert (known.info.status, known.info.run_name) == ("RUNNING", "tiny")
    trained(tmp_path, 15)
    run.look(status, is_last=True)
    (known,) = mlflow.runs(tmp_path.name)
    assert known.info.status == status
    assert mlflow.curve(known, "loss") == losses(range(1, 16))


def test_all_attempts_of_a_job_are_one_run_and_another_job_is_another(
    mlflow: MlflowServer, tmp_path: Path
) -> None:
    made = job(tmp_path, mlflow.uri)
    for steps in (30, 30, READINGS_MAX * 2 + 30):
        trained(tmp_path, steps)
        assert telling(made).look("RUNNING")  # each as a process that knows nothing
    (run,) = mlflow.runs(tmp_path.name)
    assert mlflow.curve(run, "loss") == losses(range(1, READINGS_MAX * 2 + 31))
    assert telling(made.model_copy(update={"job_uid": "another"})).look("RUNNING")
    uids = {one.data.tags[UID_TAG] for one in mlflow.runs(tmp_path.name)}
    assert uids == {"another", f"uid-of-{tmp_path.name}"}


def test_what_the_server_obeyed_without_an_answer_is_there_once(
    mlflow: MlflowServer, tmp_path: Path
) -> None:
    made = job(tmp_path, mlflow.uri)
    trained(tmp_path, 40)
    first = telling(made)
    assert first.look("RUNNING")
    (run,) = mlflow.runs(tmp_path.name)
    tag = {"run_id": run.info.run_id, "key": POSITION_TAG, "value": ""}
    assert isinstance(first.run, MlflowRun)
    first.run.server.post("/api/2.0/mlflow/runs/set-tag", tag)  # as if that had been lost
    assert telling(made).look("RUNNING")
    assert mlflow.curve(run, "loss") == losses(range(1, 41))


def test_steps_after_a_rewind_are_told_beside_those_before(
    mlflow: MlflowServer, tmp_path: Path
) -> None:
    made = job(tmp_path, mlflow.uri)
    trained(tmp_path, 30)
    assert telling(made).look("RUNNING")
    trained(tmp_path, 35, redone_from=26)
    assert telling(made).look("RUNNING")
    (run,) = mlflow.runs(tmp_path.name)
    others = [(step, 20.0 / step) for step in range(26, 36)]
    assert mlflow.curve(run, "loss") == sorted(losses(range(1, 31)) + others)


def test_a_raised_budget_does_not_end_the_telling(mlflow: MlflowServer, tmp_path: Path) -> None:
    made = job(tmp_path, mlflow.uri)
    trained(tmp_path, 10)
    assert telling(made).look("RUNNING")
    longer = made.spec.training.model_copy(
        update={"budget": made.spec.training.budget.model_copy(update={"steps": 99})}
    )
    spec_ = made.spec.model_copy(update={"training": longer})
    trained(tmp_path, 20)
    assert telling(made.model_copy(update={"spec": spec_})).look("RUNNING")
    (run,) = mlflow.runs(tmp_path.name)
    assert len(mlflow.curve(run, "loss")) == 20


def test_neither_text_nor_a_place_nor_a_secret_reaches_the_tracker(
    mlflow: MlflowServer, tmp_path: Path
) -> None:
    """P11"""
    (tmp_path / "credentials" / "login").mkdir(parents=True)
    (tmp_path / "credentials" / "login" / "token").write_text(SECRET)
    login: dict[str, Any] = {"credentials": {"secretRef": {"name": "login"}}}
    made = job(tmp_path, mlflow.uri, **login)
    trained(tmp_path, 10)
    assert telling(made, tmp_path / "credentials").look("RUNNING")
    (run,) = mlflow.runs(tmp_path.name)
    assert run.data.params["training.batchTokens"] == "128"
    assert run.data.params["model.config.layers"] == "1"
    tuned = job(tmp_path, mlflow.uri, model=PRIVATE_MODEL, **login)
    tuned = tuned.model_copy(update={"job_uid": "tuned"})
    assert telling(tuned, tmp_path / "credentials").look("RUNNING")
    both = mlflow.runs(tmp_path.name)
    assert {one.data.params["model.task"] for one in both} == {"causal-lm"}
    known = json.dumps([[one.data.params, one.data.tags, one.info.run_name] for one in both])
    for private in ("private-", "file:", "https:", SECRET, "login", str(tmp_path)):
        assert private not in known


def test_a_server_that_does_not_answer_is_asked_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(requests, "REQUEST_SECONDS_MAX", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.05)
        asked = telling(job(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        trained(tmp_path, 10)
        times = []
        for second in range(0, 200, 5):
            asked.clock = lambda second=second: float(second)  # type: ignore[misc]
            asked.look("RUNNING")
            try:
                silent.accept()[0].close()
                times.append(second)
            except TimeoutError:
                continue
    waits = [b - a for a, b in pairwise(times)]
    assert waits == [2 * LOOK_SECONDS, 4 * LOOK_SECONDS, 8 * LOOK_SECONDS, 60, 60]
    assert len(caplog.records) == 1, "an outage is one line of the log"
    assert "the training goes on" in caplog.text


def answer_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"hello there\r\n\r\n", "no answer (BadStatusLine)"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n{",
            "no answer (IncompleteRead)",
        ),
        (answer_of(b"<html>a proxy's page</html>"), "no answer (JSONDecodeError)"),
        (answer_of(b"{}"), "what answers there is not MLflow"),
        (answer_of(b'{"experiment": []}'), "what answers there is not MLflow"),
        (answer_of(b'{"experiment": {"experiment_id": 1}, "runs": [7]}'), "is not MLflow"),
    ],
)
def test_an_answer_that_is_none_is_an_outage_like_any_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            while True:
                connection, _ = odd.accept()
                with connection:
                    if not connection.recv(65536):
                        return
                    connection.sendall(answer)

        served = pool.submit(serve)
        uri = f"http://127.0.0.1:{odd.getsockname()[1]}"
        asked = telling(job(tmp_path, uri))
        trained(tmp_path, 10)
        told = [asked.look("RUNNING") for asked.clock in (lambda: 0.0, lambda: 100.0)]
        socket.create_connection(odd.getsockname()).close()
        served.result(10)
    assert told == [False, False]
    assert len(caplog.records) == 1
    assert said in caplog.text


class Redirecting(BaseHTTPRequestHandler):
    """Sends everyone on to `elsewhere`, and remembers who comes there."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.path} {self.headers.get('Authorization')}")
        self.send_response(302 if self.path.startswith("/here") else 200)
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("secret", "sent"),
    [
        ({"token": SECRET}, f"Bearer {SECRET}"),
        ({"username": "ada", "password": "x"}, "Basic YWRhOng="),
        ({}, "None"),
    ],
)
def test_a_secret_goes_to_the_server_and_nowhere_else(
    secret: dict[str, str], sent: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    handler = type("Handler", (Redirecting,), {"seen": []})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        server = Server(uri=f"http://127.0.0.1:{http.server_address[1]}/here/", secret=secret)
        with pytest.raises(TrackerError) as refused:
            server.get("/x", name="a b")
        http.shutdown()
        thread.join()
    assert handler.seen == [f"/here/x?name=a+b {sent}"]
    assert str(refused.value) == "HTTP 302"
    assert SECRET not in f"{refused.value!r}{server!r}{caplog.text}"


def test_a_run_is_told_whole_and_at_its_end(mlflow: MlflowServer, tmp_path: Path) -> None:
    pod = counting(tmp_path, mlflow={"uri": mlflow.uri, "experiment": tmp_path.name})
    with pods(pod):
        pod.intend()
        assert pod.wait() == ExitCode.FINISHED
    (run,) = mlflow.runs(tmp_path.name)
    assert mlflow.curve(run, "loss") == losses(range(1, 21))
    assert mlflow.curve(run, "validation_loss") == [(10, 0.5), (20, 0.25)]
    assert run.info.status == "FINISHED"
    history = RunHistory.model_validate_json((pod.run_directory / HISTORY_FILE).read_bytes())
    assert [(one.step, one.loss) for one in history.points] == losses(range(1, 21))
    assert list((pod.run_directory / "tensorboard").glob("events.out.tfevents.*"))


def test_a_tracker_that_never_answers_neither_holds_up_nor_outlives_a_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        pod = counting(tmp_path, mlflow={"uri": uri})
        with pods(pod):
            pod.intend()
            assert pod.wait() == ExitCode.FINISHED
            assert not trackers_of(pod)
