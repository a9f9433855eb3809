"""What a person may still ask of a job that exists: by when, and what to do now.

Promise: whatever is here may be changed while the job runs, and no change of it restarts a pod.
Trap avoided: a wish that is carried out again after each restart. What counts is in status, or has
a name that the run remembers.
"""

from pydantic import Field

from lmtraining_api.base import SpecModel

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
