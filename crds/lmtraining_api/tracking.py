"""Experiment trackers that are told of a run.

Promise: a tracker is told numbers and names of settings, never text of the data nor a secret (P11),
and has no part in the training: what it does or does not answer changes nothing there.
Trap avoided: a password in the address of a tracker, where everyone who may read the job sees it.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from lmtraining_api.base import Rule, SpecModel
from lmtraining_api.fields import WORDS_PATTERN, Uri, matches
from lmtraining_api.training import NO_PASSWORD_IN_URI, SecretReference

EXPERIMENT_LENGTH_MAX = 250
WANDB_URI = "https://api.wandb.ai"
_HTTP = r"^https?://[^/?#\s]+[^?#\s]*$"
#: Weights & Biases refuses / \ # ? % : in it.
WandbName = Annotated[str, Field(pattern=WORDS_PATTERN, min_length=1, max_length=128)]
_SERVER_RULES = (
    Rule(
        cel=f"self.uri.matches(r'{_HTTP}')",
        message="uri is not the address of a server: write http://host:port or "
        "https://host/path, without a query",
        check=lambda s: matches(_HTTP, s.uri),
        at="uri",
    ),
    NO_PASSWORD_IN_URI,
)


class TrackerCredentials(SpecModel):
    """How a tracker is opened. Never a literal secret."""

    secret_ref: SecretReference
    """Its key token (for wandb the API key), or its keys username and password, go with every
    request."""


class MlflowTracking(SpecModel):
    """A run of an MLflow server, one for the job over all its attempts."""

    uri: Uri
    """Address of the server: http://mlflow.tools:5000, https://example.org/mlflow."""
    experiment: Annotated[str, Field(min_length=1, max_length=EXPERIMENT_LENGTH_MAX)] = "lmtraining"
    """Name of the experiment; it is made where there is none."""
    credentials: TrackerCredentials | None = None
    """Secret for a server that asks for one."""

    rules: ClassVar = _SERVER_RULES


class WandbTracking(SpecModel):
    """A run of Weights & Biases, one for the job over all its attempts. The trainer image must hold
    the package wandb, which the default one does not."""

    project: WandbName = "lmtraining"
    """Name of the project; it is made where there is none."""
    entity: WandbName | None = None
    """User or team that the project belongs to. Left out: the default one of the API key."""
    uri: Uri = WANDB_URI
    """Address of the server."""
    credentials: TrackerCredentials | None = None
    """Secret whose key token is the API key. Left out: nothing is sent; the files of the run lie in
    wandb/ of the run directory, and `wandb sync` sends them later."""

    rules: ClassVar = _SERVER_RULES


class Tracking(SpecModel):
    """Trackers that are told of the run, beside the event files for TensorBoard that lie in every
    run directory."""

    mlflow: MlflowTracking | None = None
    """Left out: none."""
    wandb: WandbTracking | None = None
    """Left out: none."""
