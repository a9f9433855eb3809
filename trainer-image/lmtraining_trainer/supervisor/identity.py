"""Who this supervisor is, and what it was given.

Promise: a pod whose environment or job file is wrong says so in one sentence and ends with the code
for a bad configuration, which is never tried again as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lmtraining_api import BEGUN, FailureClass, JobFile, names
from lmtraining_trainer.errors import TrainerError


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One pod, in one attempt."""

    pod_uid: str
    pod_name: str
    attempt: int
    replica: int
    grace_seconds: int | None = None
    """How long the pod lives after it was told to stop; None where nobody ends it."""


def identity_from(environment: Mapping[str, str]) -> Identity:
    """The identity that the operator put into the pod's environment."""
    return Identity(
        pod_uid=_text(environment, names.ENV_POD_UID),
        pod_name=_text(environment, names.ENV_POD_NAME),
        attempt=_number(environment, names.ENV_ATTEMPT, least=1),
        replica=_number(environment, names.ENV_REPLICA, least=0),
        grace_seconds=_number(environment, names.ENV_GRACE_SECONDS, least=1)
        if names.ENV_GRACE_SECONDS in environment  # an older operator does not say
        else None,
    )


def read_job_file(path: Path) -> JobFile:
    """The job file, parsed by the same models as the job itself, but for their rules: of those the
    operator has asked the ones that the job began with."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _configuration(
            "JobFileMissing", f"the job file {path} cannot be read ({type(error).__name__})"
        ) from error
    try:
        return JobFile.model_validate_json(text, context=BEGUN)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _configuration(
            "JobFileInvalid",
            f"the job file {path} is not one that this trainer understands: {where}: "
            f"{first['msg']}; use a trainer image of the operator's version",
        ) from error


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise _configuration(
            "IdentityMissing",
            f"{name} is not set: `lmtraining supervise` is for pods made by the operator; "
            "use `lmtraining run job.yaml` without one",
        )
    return value


def _number(environment: Mapping[str, str], name: str, *, least: int) -> int:
    value = _text(environment, name)
    if not value.isascii() or not value.isdigit() or int(value) < least:
        raise _configuration(
            "IdentityInvalid", f"{name} is {value!r}: it must be a whole number from {least}"
        )
    return int(value)


def _configuration(reason: str, message: str) -> TrainerError:
    return TrainerError(FailureClass.CONFIGURATION, reason, message)
