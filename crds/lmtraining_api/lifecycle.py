"""What a person may still ask of a job that exists: by when, and what to do now.

Promise: whatever is here may be changed while the job runs, and no change of it restarts a pod.
Trap avoided: a wish that is carried out again after each restart. What counts is in status, or has
a name that the run remembers.
"""

from typing import Annotated

from pydantic import Field

from lmtraining_api.base import SpecModel
from lmtraining_api.fields import NAME_PATTERN
from lmtraining_api.optimization import STEPS_MAX
from lmtraining_api.wishes import REQUEST_LENGTH_MAX

YEAR_SECONDS = 31_536_000


class Deadlines(SpecModel):
    """By when the job must have come somewhere; else it ends, with reason DeadlineExceeded.
    Both go on counting while the job is suspended, but end it only once it is not. Both may be
    changed while it runs."""

    start_seconds: int | None = Field(default=None, ge=1, le=YEAR_SECONDS)
    """From the moment the job is accepted (status.startTime) to its first optimizer step. Left out:
    no limit."""
    run_seconds: int | None = Field(default=None, ge=1, le=YEAR_SECONDS)
    """From the moment all pods first ran (status.firstRunTime), whatever happens since. The pods
    then save a checkpoint and stop, within recovery.graceSeconds. Left out: no limit."""


RequestName = Annotated[
    str, Field(pattern=NAME_PATTERN, min_length=1, max_length=REQUEST_LENGTH_MAX)
]


class Rollback(SpecModel):
    """Go back to an intact checkpoint, once, and train on from there. The newer ones are moved
    aside; the steps are taken again, of the same data."""

    name: RequestName
    """Of your choice; another one asks anew, the same one never again."""
    to_step: int = Field(ge=0, le=STEPS_MAX)
    """Step of the checkpoint. Where there is none, status.applied.refusal names those there are."""


class Requests(SpecModel):
    """What is to be done once, after the step that is being taken, or when the job runs next; what
    became of it is in status.applied. No pod is restarted."""

    checkpoint: RequestName | None = None
    """Save a checkpoint. A name of your choice; another one asks anew, the same one never again."""
    rollback: Rollback | None = None
    """Go back to a checkpoint; after the checkpoint that is asked for beside it."""
