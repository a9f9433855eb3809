"""What every tracker has for a job: a run, its parameters and a status.

Promise: none of the parameters names a place or a secret (P11).
"""

import json
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from lmtraining_api import JobFile
from lmtraining_api.history import RunHistory

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED"]

PARAMETERS_MAX = 100
PARAMETER_LENGTH_MAX = 250
#: Blocks of the spec that say how the model is made.
BLOCKS = ("model", "training", "parallelism", "precision")
#: What in them says where it lies, and whose Secret opens it.
PRIVATE: Final[Mapping[str, set[str]]] = {"model": {"pretrained"}}


class TrackedRun(Protocol):
    """The run of a job."""

    def follow(self, history: RunHistory) -> int:
        """Tell what is new; how many steps that were. Raises TrackerError."""

    def turn(self, status: Status) -> None:
        """Let the run have that status. Raises TrackerError."""


def parameters(job: JobFile) -> dict[str, str]:
    """The settings that a tracker shows, by their path in the spec."""
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=PRIVATE)
    found = {name: value for block in BLOCKS for name, value in _leaves(spec[block], block)}
    found["data.sequenceLength"] = str(job.spec.data.sequence_length)
    found["data.tokenizer.vocabSize"] = str(job.spec.data.tokenizer.vocab_size)
    found["ranks"] = str(job.spec.workers.world_size)
    return dict(sorted(found.items())[:PARAMETERS_MAX])


def _leaves(value: object, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for name, one in value.items() for leaf in _leaves(one, f"{path}.{name}")]
    text = value if isinstance(value, str) else json.dumps(value)
    return [(path, text[:PARAMETER_LENGTH_MAX])]
