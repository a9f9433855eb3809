"""The lead pod's supervisor, as far as the operator sees it, and how pods end."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lmtraining_api import names as api
from lmtraining_api.exits import CODE_OF_CLASS, ExitCode, FailureClass
from lmtraining_api.records import CheckpointReport, ExitRecord, TrainerReport
from tests.api.operator.stage import Object, label


def exit_record(pod: Object, code: int, **values: Any) -> ExitRecord:
    return ExitRecord.model_validate(
        {
            "job_uid": pod["metadata"]["labels"][api.LABEL_JOB_UID],
            "attempt": label(pod, api.LABEL_ATTEMPT),
            "round": 1,
            "replica": label(pod, api.LABEL_REPLICA),
            "exit_code": ExitCode(code),
            "reason": "Finished" if code == 0 else "Crash",
            "time": datetime.now(UTC),
        }
        | values
    )


def failure(pod: Object, failure_class: FailureClass, **values: Any) -> tuple[int, ExitRecord]:
    """Exit code and record of a failure."""
    code = CODE_OF_CLASS[failure_class]
    given = {"failure_class": failure_class, "reason": str(failure_class)} | values
    return code, exit_record(pod, code, **given)


class Trainer:
    """Answers /report at one address until closed."""

    def __init__(self, address: str, job_uid: str, attempt: int = 1) -> None:
        self._report: Object = {
            "job_uid": job_uid,
            "attempt": attempt,
            "round": 1,
            "state": "Starting",
            "total_steps": 400,
        }
        self._handler = _handler(self.content)
        self._server = ThreadingHTTPServer((address, api.REPORT_PORT), self._handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def content(self) -> bytes:
        values = self._report | {"report_time": datetime.now(UTC)}
        return TrainerReport.model_validate(values).model_dump_json(by_alias=True).encode()

    def say(self, **values: Any) -> None:
        self._report = self._report | values

    def train(self, step: int, **values: Any) -> datetime:
        """A step has just been taken."""
        now = datetime.now(UTC)
        first = self._report.get("first_step_time") or now
        self.say(
            state="Training",
            step=step,
            step_time=now,
            first_step_time=first,
            loss=3.25,
            tokens=step * 1024,
            tokens_per_second=12345.6,
            eta_seconds=4800.0,
            learning_rate=6e-4,
            **values,
        )
        return now

    def save(self, step: int) -> None:
        self.say(
            checkpoint=CheckpointReport(
                step=step,
                path=f"checkpoints/{step}",
                time=datetime.now(UTC),
                size_bytes=1000,
                sha256="a" * 64,
            )
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(content: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content() if self.path == "/report" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    return Handler
