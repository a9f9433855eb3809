"""The jobs of a YAML file, read by the same models as the API server's.

Promise: what is wrong is said in sentences, one per problem and all at once, as `kubectl apply`
would refuse it; a file that holds no job at all says that too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lmtraining_api import LMTrainingJob, problems_of
from lmtraining_api.names import API_VERSION, GROUP, KIND

JOB_FILE_BYTES_MAX = 1024 * 1024
_NO_OBJECT = f"this is no Kubernetes object: write apiVersion: {API_VERSION} and kind: {KIND}"


class BadJobError(Exception):
    """The file holds no job that can be run; one sentence per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One document of a file: a good job, or problems, or neither for an object of another kind.

    Problems without a document are those of the file.
    """

    document: object = None
    job: LMTrainingJob | None = None
    problems: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """The kind that the document names; "" where it names none."""
        return _kind(self.document)


def read_job(path: Path) -> LMTrainingJob:
    """The one LMTrainingJob in a YAML file. Raises BadJobError."""
    documents = list(_documents(path))
    jobs = [document for document in documents if _is_job(document)]
    if len(jobs) != 1:
        raise BadJobError([_not_one(path, documents, len(jobs))])
    checked = _checked(jobs[0])
    if checked.job is None:
        raise BadJobError(list(checked.problems))
    return checked.job


def check_file(path: Path) -> list[Checked]:
    """Every document of a YAML file, and last what keeps the rest from being read."""
    checked: list[Checked] = []
    try:
        checked.extend(_checked(document) for document in _documents(path))
    except BadJobError as error:
        return [*checked, Checked(problems=error.problems)]
    if not any(one.job or one.problems for one in checked):
        checked.append(Checked(problems=[_not_one(path, [one.document for one in checked], 0)]))
    return checked


def _checked(document: object) -> Checked:
    if not _kind(document):
        return Checked(document=document, problems=[_NO_OBJECT])
    if not _is_job(document):
        return Checked(document=document)
    problems = problems_of(document)
    job = None if problems else LMTrainingJob.from_document(document)
    return Checked(document=document, job=job, problems=problems)


def _is_job(document: object) -> bool:
    """Ours by its kind, or by its group where the kind is misspelt."""
    is_of_our_group = isinstance(document, dict) and str(document.get("apiVersion")).startswith(
        f"{GROUP}/"
    )
    return is_of_our_group or _kind(document) == KIND


def _kind(document: object) -> str:
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def _documents(path: Path) -> Iterator[object]:
    """The documents that are not empty, up to the first that is not YAML. Raises BadJobError."""
    try:
        with path.open("rb") as file:
            text = file.read(JOB_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadJobError([f"{path} cannot be read: {error.strerror}"]) from error
    if len(text) > JOB_FILE_BYTES_MAX:
        raise BadJobError([f"{path} has more than {JOB_FILE_BYTES_MAX} bytes: it is no job file"])
    try:
        yield from (one for one in yaml.safe_load_all(text) if one is not None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadJobError([f"{path}{where}: this is not YAML: {error.problem}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadJobError([f"{path} is not YAML: it holds characters that are not text"]) from error


def _not_one(path: Path, documents: Sequence[object], jobs: int) -> str:
    if jobs > 1:
        return f"{path} holds {jobs} jobs: keep one per file"
    kinds = sorted(set(filter(None, map(_kind, documents))))
    found = f"kind {', '.join(kinds)}" if kinds else "no Kubernetes object"
    return f"{path} holds {found}: write apiVersion: {API_VERSION} and kind: {KIND}"
