"""What may change while ranks train: the wish, in the intent, and what became of it, in the report.

Promise: a wish is the whole of what is wanted, not a change of it, so reading it twice is harmless;
what is to be done once has a name, and is not done again under the same name.
Trap avoided: a trainer that is older than a wish says nothing of it, and so can be told from one
that has followed it.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field

from lmtraining_api.base import StatusModel
from lmtraining_api.fields import ascii_start
from lmtraining_api.optimization import STEPS_MAX

REQUEST_LENGTH_MAX = 63
REFUSAL_LENGTH_MAX = 384

#: The name of a request, or empty; and a sentence of ours. Both are printable ASCII.
RequestName = Annotated[
    str, BeforeValidator(ascii_start(REQUEST_LENGTH_MAX)), Field(max_length=REQUEST_LENGTH_MAX)
]
Refusal = Annotated[
    str, BeforeValidator(ascii_start(REFUSAL_LENGTH_MAX)), Field(max_length=REFUSAL_LENGTH_MAX)
]


class RollbackWish(StatusModel):
    """Go back to a checkpoint, once."""

    name: RequestName
    to_step: int = Field(ge=0)


class Wishes(StatusModel):
    """What is wanted of ranks beyond training on."""

    generation: int = Field(ge=1)
    """metadata.generation of the job that wants it."""
    budget_steps: int = Field(ge=1, le=STEPS_MAX)
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Absent: the trainer chooses."""
    checkpoint: RequestName = ""
    """Save a checkpoint, once."""
    rollback: RollbackWish | None = None


class Applied(StatusModel):
    """The wishes that all ranks go by, and what became of the requests among them."""

    generation: int = 0
    """metadata.generation of the job whose wishes they are; 0: those that the attempt began
    with."""
    checkpoint: RequestName = ""
    """The newest checkpoint that was asked for and made."""
    checkpoint_step: int | None = None
    """Its step."""
    rollback: RequestName = ""
    """The newest rollback that was asked for and made, or refused."""
    rollback_step: int | None = None
    """The step that it went back to; absent where it was refused."""
    refusal: Refusal = ""
    """Why the newest request was refused."""
