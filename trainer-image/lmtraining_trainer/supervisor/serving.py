"""What a supervisor serves over HTTP.

Promise: read-only, from memory; a port that cannot be had is said in one sentence, since a trainer
that nobody can ask looks dead.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.metrics import exposition
from lmtraining_trainer.report import report_json
from lmtraining_trainer.report_server import JSON, PROMETHEUS, TEXT, Page, ReportServer
from lmtraining_trainer.supervisor.life import Supervisor


@contextmanager
def served(supervisor: Supervisor, job: JobFile, *, host: str, port: int) -> Iterator[None]:
    """Answer /report, /metrics and /healthz meanwhile. Raises TrainerError where it cannot."""

    def metrics() -> bytes:
        return exposition(
            supervisor.report(),
            leads=supervisor.snapshot.leads,
            job_name=job.job_name,
            namespace=job.namespace,
        )

    pages = {
        "/report": Page(body=lambda: report_json(supervisor.report()), content_type=JSON),
        "/metrics": Page(body=metrics, content_type=PROMETHEUS),
        "/healthz": Page(body=lambda: b"ok\n", content_type=TEXT),
    }
    server = ReportServer(host=host, port=port, pages=pages)
    try:
        server.start()
    except OSError as error:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "ReportPortInUse",
            f"port {port} of {host} cannot be served ({os.strerror(error.errno or 0)}): free it or "
            "choose another",
        ) from error
    try:
        yield
    finally:
        server.stop()
