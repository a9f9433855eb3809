"""Pods without a cluster: the supervisor as a process, its files, and what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lmtraining_api import ExitRecord, TrainerReport, names
from tests.side_by_side import process_number

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 180.0
"""On a busy machine the import of torch alone takes a minute."""
POLL_SECONDS = 0.05
"""A question costs both sides some milliseconds, and what is waited for mostly takes seconds."""
JOB_UID = "11111111-2222-3333-4444-555555555555"
#: A PID namespace of its own, as a container has. The outer process has no part in it.
PID_1 = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
Value = TypeVar("Value")


def until(look: Callable[[], Value | None], what: str, seconds: float = WAIT_SECONDS_MAX) -> Value:
    """What `look` returns once that is true; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"not within {seconds} s: {what}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def corpus(directory: Path) -> str:
    """A little training text; its URI."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(40):
        lines = [f"the {word} of file {number} is number {word * 7 % 13}" for word in range(200)]
        (directory / f"{number}.txt").write_text("\n".join(lines))
    return f"file://{directory}/*.txt"


def spec(uri: str = "file:///nowhere/*.txt", **workers: object) -> dict[str, Any]:
    """The smallest training that has everything."""
    return {
        "model": {"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        "data": {
            "train": [{"uri": uri}],
            "validationFraction": 0.2,
            "tokenizer": {"vocabSize": 300},
            "sequenceLength": 16,
        },
        "training": {
            "budget": {"steps": 20},
            "batchTokens": 128,
            "evaluation": {"everySteps": 10, "sequences": 8},
        },
        "precision": {"compute": "fp32"},
        "workers": workers,
        "checkpoint": {"everySteps": 5},
        "stability": {"roundsMax": 0},
    }


class Pod:
    """One pod of a job: a supervisor process, and what it can be asked."""

    def __init__(  # noqa: PLR0917
        self,
        directory: Path,
        function: str | None,
        job: dict[str, Any],
        attempt: int = 1,
        replica: int = 0,
        rendezvous_port: int = 0,
        report_port: int = 0,
        replaced: int = 0,
    ) -> None:
        self.run_directory = directory / "run"
        self.name = f"job-{attempt}-{replica}-{replaced}"
        self.uid = f"uid-of-{self.name}"
        self.attempt, self.replica = attempt, replica
        self.home = directory / self.name
        self.home.mkdir(parents=True)
        self.address = f"127.{process_number()}.{1 + replaced}.{replica + 1}"
        self.port = report_port or free_port()
        self.intent_file = self.home / "intent.json"
        self.termination_log = self.home / "termination-log"
        self.termination_log.touch()
        job_file = {
            "jobName": "job",
            "namespace": "tests",
            "jobUid": JOB_UID,
            "runDirectory": str(self.run_directory),
            "dataCacheDirectory": str(directory / "data-cache"),
            "spec": job,
        }
        (self.home / "job.json").write_text(json.dumps(job_file))
        self.command = [
            *(sys.executable, "-m", "lmtraining_trainer", "supervise"),
            *("--job-file", str(self.home / "job.json")),
            *("--intent-file", str(self.intent_file)),
            *("--termination-log", str(self.termination_log)),
            *("--report-host", self.address, "--report-port", str(self.port)),
            *("--rendezvous-port", str(rendezvous_port or free_port())),
        ]
        if function:
            module = "" if ":" in function else "tests.trainer.supervisor_ranks:"
            self.command += ["--rank-function", module + function]
        self.environment: dict[str, str] = {}
        self.cgroup: Path | None = None
        self.log = self.home / "log"

    def start(self, *, as_pid_1: bool = False) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            names.ENV_POD_UID: self.uid,
            names.ENV_POD_NAME: self.name,
            names.ENV_POD_ADDRESS: self.address,
            names.ENV_ATTEMPT: str(self.attempt),
            names.ENV_REPLICA: str(self.replica),
            **self.environment,
        }
        join = f'echo $$ > {self.cgroup}/cgroup.procs; exec "$@"'
        limited = ["sh", "-c", join, "sh"] if self.cgroup else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*limited, *(PID_1 if as_pid_1 else []), *self.command],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def intend(self, *pods: "Pod", **changes: object) -> None:
        """Put an intent before this pod, as the downward API does: by a symbolic link's swap."""
        peers = [
            {"replica": p.replica, "podUid": p.uid, "address": p.address} for p in pods or [self]
        ]
        document = {"jobUid": JOB_UID, "attempt": self.attempt, "generation": 1, "peers": peers}
        self.intend_text(json.dumps(document | changes))

    def intend_text(self, text: str) -> None:
        version = self.home / f"intent-{time.monotonic_ns()}"
        version.write_text(text)
        link = self.home / ".intent-link"
        link.symlink_to(version)
        link.rename(self.intent_file)

    def get(self, path: str) -> bytes:
        url = f"http://{self.address}:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body

    def report(self) -> TrainerReport | None:
        """What /report says, or None while nobody answers."""
        try:
            body = self.get("/report")
        except OSError:
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            return None
        assert b"NaN" not in body
        assert b"Infinity" not in body
        return TrainerReport.model_validate_json(body)

    def until_state(self, *states: str) -> TrainerReport:
        def look() -> TrainerReport | None:
            report = self.report()
            return report if report is not None and report.state in states else None

        return until(look, f"{self.name} in state {states}; its log:\n{self.log.read_text()}")

    def rank_process(self, rank: int) -> int:
        """The process of a fake rank that has left its number."""
        path = self.run_directory / f"pid-{rank}"
        until(path.exists, f"the process of rank {rank}")
        return int(path.read_text())

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(WAIT_SECONDS_MAX)

    def record(self) -> ExitRecord:
        """The termination log."""
        body = self.termination_log.read_bytes()
        assert len(body) <= names.TERMINATION_LOG_BYTES_MAX
        return ExitRecord.model_validate_json(body)

    def processes(self) -> list[int]:
        """Every process of this pod that lives: its session."""
        return session_processes(self.process.pid)


def session_processes(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


@contextmanager
def pods(*started: Pod) -> Iterator[None]:
    """Start the pods; in the end nothing of them is left, whatever the test did."""
    for pod in started:
        pod.start()
    try:
        yield
        for pod in started:
            until(lambda pod=pod: not pod.processes(), f"no process of {pod.name}")
    finally:
        for pod in started:
            for process in pod.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            pod.process.wait(WAIT_SECONDS_MAX)
