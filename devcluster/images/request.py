"""What is asked of an image builder, whichever program it is.

Promise: the same Dockerfile, arguments and names give the same image with Docker and with buildah.
What a build needs of this machine (its CA bundle, where its package index is) is handed over as
build secrets, which no layer and no history keeps. Trap avoided: copying a pip.conf, which may hold
a password, into an image.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from devcluster.images.reference import ImageRef
from devcluster.packages import client_variables

CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
CA_SECRET = "ca-certificates"  # noqa: S105 - the name of a mount, not a secret
ENVIRONMENT_SECRET = "client-environment"  # noqa: S105
CA_IN_BUILD = f"/run/secrets/{CA_SECRET}"
CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One build."""

    title: str
    image: ImageRef
    context: Path
    dockerfile: Path
    log: Path
    limit_seconds: float
    target: str | None = None
    """Stage to stop at; None: the last one."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)


class Builder(Protocol):
    """A program that builds and pushes images."""

    @property
    def upstream_base(self) -> str | None:
        """A base that is used where it can be pulled; None where this builder makes its own."""

    def holds(self, image: str) -> bool:
        """True where the finished image is in the local store."""

    def pull(self, image: str) -> bool:
        """True where the image is now in the local store."""

    def build(self, request: BuildRequest) -> None:
        """Build; the name appears only when the image is whole."""

    def push(self, image: ImageRef, *, title: str, log: Path) -> None:
        """Push the local image of the same name and tag to the reference's registry."""

    def tags(self, name: str) -> list[str]:
        """Local tags of an image, newest first."""

    def remove(self, image: ImageRef) -> None:
        """Drop a local image and the layers that no other image uses."""

    def sweep(self) -> None:
        """Drop what builds that were killed have left."""


def write_secrets(directory: Path) -> dict[str, Path]:
    """The build secrets, as files in `directory`, by their names in the Dockerfiles."""
    secrets: dict[str, Path] = {}
    variables = client_variables(os.environ)
    if bundle := ca_bundle():
        secrets[CA_SECRET] = bundle
        variables |= dict.fromkeys(CA_VARIABLES, CA_IN_BUILD)
    path = directory / ENVIRONMENT_SECRET
    path.touch(mode=0o600)
    lines = (f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    path.write_text("\n".join([*lines, ""]))
    return secrets | {ENVIRONMENT_SECRET: path}


def ca_bundle() -> Path | None:
    """The CA bundle this machine trusts."""
    named = os.environ.get("SSL_CERT_FILE")
    candidates = [named, *CA_BUNDLES] if named else [*CA_BUNDLES]
    return next((path for path in map(Path, candidates) if path.is_file()), None)
