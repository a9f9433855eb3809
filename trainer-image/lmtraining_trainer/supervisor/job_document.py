"""A job's YAML file, read by the same models as the API server's.

Promise: what is wrong is said in sentences, one per problem, as `kubectl apply` would refuse it; a
file that is no job at all says that too.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lmtraining_api import LMTrainingJob, explain_validation_error
from lmtraining_api.names import API_VERSION, KIND

JOB_FILE_BYTES_MAX = 1024 * 1024


class BadJobError(Exception):
    """The file holds no job that can be run; one sentence per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def read_job(path: Path) -> LMTrainingJob:
    """The one LMTrainingJob in a YAML file. Raises BadJobError."""
    documents = [document for document in _documents(path) if document is not None]
    jobs = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(jobs) != 1:
        raise BadJobError([_not_one(path, documents, len(jobs))])
    try:
        return LMTrainingJob.from_document(jobs[0])
    except ValidationError as error:
        raise BadJobError(explain_validation_error(error)) from error


def _documents(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            text = file.read(JOB_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadJobError([f"{path} cannot be read: {error.strerror}"]) from error
    if len(text) > JOB_FILE_BYTES_MAX:
        raise BadJobError([f"{path} has more than {JOB_FILE_BYTES_MAX} bytes: it is no job file"])
    try:
        return list(yaml.safe_load_all(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadJobError([f"{path}{where}: this is not YAML: {error.problem}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadJobError([f"{path} is not YAML: it holds characters that are not text"]) from error


def _not_one(path: Path, documents: list[Any], jobs: int) -> str:
    if jobs > 1:
        return f"{path} holds {jobs} jobs: keep one per file"
    kinds = sorted({str(d.get("kind")) for d in documents if isinstance(d, dict)})
    found = f"kind {', '.join(kinds)}" if kinds else "no Kubernetes object"
    return f"{path} holds {found}: write apiVersion: {API_VERSION} and kind: {KIND}"
