"""`validate`: the rules of the API server, without one.

Promise: the same models that the CRD is made from; every problem of every job of a file at once,
with the nearest field for a misspelt one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmtraining_api import problems_of
from lmtraining_api.names import API_VERSION, GROUP, KIND

FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One document of a file."""

    name: str
    """Of the job; or the kind, where it is none."""
    is_job: bool
    problems: tuple[str, ...] = ()


def checked(path: Path) -> list[Checked]:
    """Every document; a file that cannot be read, or holds no job, is one problem, which the caller
    says with the path before it."""
    try:
        documents = list(_documents(path))
    except OSError as error:
        return [_broken(f"it cannot be read: {error.strerror}")]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return [_broken(f"{where}this is not YAML: {error.problem}")]
    except (yaml.YAMLError, ValueError) as error:
        return [_broken(f"it is not YAML: {' '.join(str(error).split())}")]
    found = [_checked(document) for document in documents]
    if not any(one.is_job for one in found):
        wanted = f"write apiVersion: {API_VERSION} and kind: {KIND}"
        found.append(_broken(f"it holds no LMTrainingJob: {wanted}"))
    return found


def _broken(problem: str) -> Checked:
    return Checked(name="", is_job=True, problems=(problem,))


def _documents(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
    yield from (one for one in yaml.safe_load_all(content) if one is not None)


def _checked(document: Any) -> Checked:
    fields = document if isinstance(document, dict) else {}
    kind, version = str(fields.get("kind", "")), str(fields.get("apiVersion", ""))
    if kind and kind != KIND and not version.startswith(f"{GROUP}/"):
        return Checked(name=kind, is_job=False)
    metadata = fields.get("metadata")
    name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
    return Checked(name=name, is_job=True, problems=tuple(problems_of(document)))
