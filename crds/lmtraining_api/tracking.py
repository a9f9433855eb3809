"""Experiment trackers that are told of a run.

Promise: a tracker is told numbers and names of settings, never text of the data nor a secret (P11),
and has no part in the training: what it does or does not answer changes nothing there.
Trap avoided: a password in the address of a tracker, where everyone who may read the job sees it.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from lmtraining_api.base import Rule, SpecModel
from lmtraining_api.fields import Uri, matches
from lmtraining_api.training import NO_PASSWORD_IN_URI, SecretReference

EXPERIMENT_LENGTH_MAX = 250
_HTTP = r"^https?://[^/?#\s]+[^?#\s]*$"


class TrackerCredentials(SpecModel):
    """How a tracker is opened. Never a literal secret."""

    secret_ref: SecretReference
    """Its key token, or its keys username and password, go with every request."""


class MlflowTracking(SpecModel):
    """A run of an MLflow server, one for the job over all its attempts."""

    uri: Uri
    """Address of the server: http://mlflow.tools:5000, https://example.org/mlflow."""
    experiment: Annotated[str, Field(min_length=1, max_length=EXPERIMENT_LENGTH_MAX)] = "lmtraining"
    """Name of the experiment; it is made where there is none."""
    credentials: TrackerCredentials | None = None
    """Secret for a server that asks for one."""

    rules: ClassVar = (
        Rule(
            cel=f"self.uri.matches(r'{_HTTP}')",
            message="uri is not the address of a server: write http://host:port or "
            "https://host/path, without a query",
            check=lambda s: matches(_HTTP, s.uri),
            at="uri",
        ),
        NO_PASSWORD_IN_URI,
    )


class Tracking(SpecModel):
    """Trackers that are told of the run, beside the event files for TensorBoard that lie in every
    run directory."""

    mlflow: MlflowTracking | None = None
    """Left out: none."""
