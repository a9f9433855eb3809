"""The jobs of a YAML file, judged by the models that the CRD is made from.

Promise: what is wrong is said in sentences, one per problem, all at once and each with its file, as
an API server would refuse it; a file that holds no job at all says that too. `lmtraining validate`,
`kubectl lmtrain validate` and `lmtraining run` say the same and end with the same exit code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import yaml

from lmtraining_api import ExitCode, LMTrainingJob, problems_of
from lmtraining_api.fields import one_line
from lmtraining_api.names import API_VERSION, GROUP, KIND
from lmtraining_manifests.yaml_documents import Document, documents

JOB_FILE_BYTES_MAX = 1024 * 1024
KEY_LENGTH_MAX = 60
_CLEAN = one_line(KEY_LENGTH_MAX)
_NO_OBJECT = f"this is no Kubernetes object: write apiVersion: {API_VERSION} and kind: {KIND}"


class BadJobError(Exception):
    """The file holds no job that can be run; one sentence per problem, each with the file."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One document of a file: a good job, or problems, or neither for an object of another kind.

    Problems without a document are those of the file.
    """

    where: str = ""
    """The file, and which document of it where there are more."""
    document: object = None
    job: LMTrainingJob | None = None
    problems: Sequence[str] = ()
    """Sentences, each with the file before it."""

    @property
    def kind(self) -> str:
        """The kind that the document names; "" where it names none."""
        return _kind(self.document)

    @property
    def verdict(self) -> str:
        """What is said of a document that is not wrong; "" of another."""
        if self.problems:
            return ""
        if self.job is not None:
            return f"{self.where} is valid: {_summary(self.job)}"
        return f"{self.where} is skipped: kind {self.kind} is not checked"


def validate(paths: Sequence[Path], *, output: TextIO, errors: TextIO) -> ExitCode:
    """Say of each document of these files what is wrong with it; whether anything is."""
    code = ExitCode.FINISHED
    for checked in (one for path in paths for one in check_file(path)):
        errors.writelines(f"{problem}\n" for problem in checked.problems)
        output.writelines(f"{line}\n" for line in (checked.verdict,) if line)
        code = ExitCode.CONFIGURATION if checked.problems else code
    return code


def read_job(path: Path) -> LMTrainingJob:
    """The one LMTrainingJob in a YAML file. Raises BadJobError."""
    found = list(_documents(path))
    jobs = [one for one in found if _is_job(one.content)]
    if len(jobs) != 1:
        raise BadJobError([_not_one(path, [one.content for one in found], len(jobs))])
    checked = _checked(path, jobs[0], where=str(path))
    if checked.job is None:
        raise BadJobError(checked.problems)
    return checked.job


def check_file(path: Path) -> list[Checked]:
    """Every document of a YAML file, and last what keeps the rest from being read."""
    found: list[Document] = []
    broken: list[Checked] = []
    try:
        found.extend(_documents(path))
    except BadJobError as error:
        broken.append(Checked(problems=error.problems))
    many = len(found) + len(broken) > 1
    checked = [
        _checked(path, one, where=f"{path} document {number}" if many else str(path))
        for number, one in enumerate(found, start=1)
    ] + broken
    if not any(one.job or one.problems for one in checked):
        nothing = _not_one(path, [one.content for one in found], 0)
        checked.append(Checked(problems=[nothing]))
    return checked


def _checked(path: Path, document: Document, *, where: str) -> Checked:
    content = document.content
    twice = [
        f'{path}, line {one.line}: key "{_CLEAN(one.key)}" is there already, in line '
        f"{one.first_line}: keep one of them"
        for one in document.repeated
    ]
    if not _kind(content):
        return Checked(where=where, document=content, problems=[*twice, f"{where}: {_NO_OBJECT}"])
    if not _is_job(content):
        return Checked(where=where, document=content)
    problems = [*twice, *(f"{where}: {problem}" for problem in problems_of(content))]
    job = None if problems else LMTrainingJob.from_document(content)
    return Checked(where=where, document=content, job=job, problems=problems)


def _is_job(document: object) -> bool:
    """Ours by its kind, or by its group where the kind is misspelt."""
    is_of_our_group = isinstance(document, dict) and str(document.get("apiVersion")).startswith(
        f"{GROUP}/"
    )
    return is_of_our_group or _kind(document) == KIND


def _kind(document: object) -> str:
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def _documents(path: Path) -> Iterator[Document]:
    """The documents that are not empty, up to the first that is not YAML. Raises BadJobError."""
    try:
        with path.open("rb") as file:
            text = file.read(JOB_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadJobError([f"{path} cannot be read: {error.strerror}"]) from error
    if len(text) > JOB_FILE_BYTES_MAX:
        raise BadJobError([f"{path} has more than {JOB_FILE_BYTES_MAX} bytes: it is no job file"])
    try:
        yield from documents(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadJobError([f"{path}{where}: this is not YAML: {error.problem}"]) from error
    except RecursionError as error:
        raise BadJobError(
            [f"{path} has blocks in blocks without end: it is no job file"]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadJobError([f"{path} is not YAML: it holds characters that are not text"]) from error


def _not_one(path: Path, contents: Sequence[object], jobs: int) -> str:
    if jobs > 1:
        return f"{path} holds {jobs} jobs: keep one per file"
    kinds = sorted(set(filter(None, map(_kind, contents))))
    found = f"kind {', '.join(kinds)}" if kinds else "no Kubernetes object"
    return f"{path} holds {found}: write apiVersion: {API_VERSION} and kind: {KIND}"


def _summary(job: LMTrainingJob) -> str:
    ranks = job.spec.workers.world_size
    budget = job.spec.training.budget.model_dump(exclude_none=True)
    length = ", ".join(f"{value:g} {unit}" for unit, value in budget.items())
    return f"{job.metadata.name}, {length}, {ranks} rank{'s' if ranks > 1 else ''}"
