"""`lmtraining supervise`: the supervisor as PID 1 of a pod.

Promise: whatever is wrong, also before there is anything to supervise, the pod ends with a code of
the contract and a record in its termination log. The report is answered from the first moment.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lmtraining_api import ExitCode, ExitRecord, FailureClass, JobFile, names
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.supervisor.assignment import RANK_FUNCTION, Assignment
from lmtraining_trainer.supervisor.exit_record import (
    record_of,
    write_termination_log,
    write_to_run_directory,
)
from lmtraining_trainer.supervisor.failure import end_of_supervisor, print_unless_known
from lmtraining_trainer.supervisor.identity import Identity, identity_from, read_job_file
from lmtraining_trainer.supervisor.intent import read_intent_file
from lmtraining_trainer.supervisor.life import Supervisor
from lmtraining_trainer.supervisor.rounds import FIRST_ROUND
from lmtraining_trainer.supervisor.serving import served

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PodFiles:
    """Where a pod finds what the operator gave it, and leaves its record."""

    job: Path = Path(names.JOB_FILE_PATH)
    intent: Path = Path(names.INTENT_FILE_PATH)
    termination_log: Path = Path(names.TERMINATION_LOG_PATH)


@dataclass(frozen=True, kw_only=True)
class PodPorts:
    """What a pod listens on."""

    report_host: str = "0.0.0.0"  # noqa: S104 - the operator and Prometheus ask from outside
    report: int = names.REPORT_PORT
    rendezvous: int = names.RENDEZVOUS_PORT


def supervise_pod(
    environment: Mapping[str, str],
    *,
    files: PodFiles,
    ports: PodPorts,
    rank_function: str = RANK_FUNCTION,
) -> ExitCode:
    """The whole life of a pod; the code it is to exit with."""
    identity: Identity | None = None
    job: JobFile | None = None
    try:
        identity = identity_from(environment)
        job = read_job_file(files.job)
        _check_place(identity, job)
        record = _live(identity, job, files=files, ports=ports, rank_function=rank_function)
    except Exception as error:  # whatever it is, the pod leaves a record
        print_unless_known(error)
        record = record_of(
            end_of_supervisor(error, now=time.monotonic()),
            identity=identity,
            job=job,
            round_number=FIRST_ROUND,
            time=datetime.now(UTC),
        )
    write_termination_log(record, files.termination_log)
    if job is not None:
        write_to_run_directory(record, Path(job.run_directory))
    logger.info("%s: %s (exit code %d)", record.reason, record.message, record.exit_code)
    return record.exit_code


def _live(
    identity: Identity, job: JobFile, *, files: PodFiles, ports: PodPorts, rank_function: str
) -> ExitRecord:
    supervisor = Supervisor(
        Assignment(
            identity=identity,
            job=job,
            read_intent=lambda: read_intent_file(files.intent),
            rank_function=rank_function,
            rendezvous_port=ports.rendezvous,
            report_port=ports.report,
        )
    )
    with served(supervisor, job, host=ports.report_host, port=ports.report):
        return supervisor.run()


def _check_place(identity: Identity, job: JobFile) -> None:
    replicas = job.spec.workers.replicas
    if identity.replica >= replicas:
        raise TrainerError(
            FailureClass.CONFIGURATION,
            "IdentityInvalid",
            f"{names.ENV_REPLICA} is {identity.replica}, but the job has {replicas} replicas",
        )
