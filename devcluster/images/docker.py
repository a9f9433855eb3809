"""Building where a Docker daemon answers.

Promise: nothing beyond the daemon is needed, not even root. Trap avoided: the `docker` program
being installed says nothing; a daemon that answers does.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images.progress import run_logged
from devcluster.images.reference import ImageRef
from devcluster.images.request import BuildRequest
from devcluster.run import try_run

ANSWER_SECONDS_MAX = 15.0
QUERY_SECONDS_MAX = 60.0
PULL_SECONDS_MAX = 300.0
PUSH_SECONDS_MAX = 1800.0


def docker_answers() -> bool:
    """Whether a Docker daemon is there for us."""
    try:
        done = try_run(
            "docker", "version", "--format={{.Server.Version}}", limit_seconds=ANSWER_SECONDS_MAX
        )
    except (DevclusterError, PermissionError):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


@dataclass(frozen=True)
class Docker:
    """Docker with BuildKit."""

    upstream_base: str | None = "python:3.11-slim-bookworm"

    def holds(self, image: str) -> bool:
        return _query("image", "inspect", "--format", "{{.Id}}", image)[0]

    def pull(self, image: str) -> bool:
        try:
            return _query("pull", "--quiet", image, seconds=PULL_SECONDS_MAX)[0]
        except subprocess.TimeoutExpired:
            return False

    def build(self, request: BuildRequest) -> None:
        options = [f"--build-arg={name}={value}" for name, value in request.arguments.items()]
        options += [f"--secret=id={name},src={path}" for name, path in request.secrets.items()]
        if request.target:
            options.append(f"--target={request.target}")
        _run(
            [
                "build", "--network=host", "--progress=plain", *options,
                f"--tag={request.image.local}", f"--file={request.dockerfile}",
                str(request.context),
            ],
            what=request.title,
            log=request.log,
            limit_seconds=request.limit_seconds,
        )  # fmt: skip

    def push(self, image: ImageRef, *, title: str, log: Path) -> None:
        _query("tag", image.local, str(image))
        _run(["push", str(image)], what=title, log=log, limit_seconds=PUSH_SECONDS_MAX)

    def tags(self, name: str) -> list[str]:
        found, output = _query("image", "ls", "--format", "{{.Tag}}", name)
        return output.split() if found else []

    def remove(self, image: ImageRef) -> None:
        _query("image", "rm", image.local)
        if image.registry:
            _query("image", "rm", str(image))

    def sweep(self) -> None:
        """Nothing to do: the daemon drops what a build leaves."""


def _run(arguments: Sequence[str], *, what: str, log: Path, limit_seconds: float) -> None:
    run_logged(
        ["docker", *arguments],
        what=what,
        log=log,
        limit_seconds=limit_seconds,
        environment=os.environ | {"DOCKER_BUILDKIT": "1"},
    )


def _query(*arguments: str, seconds: float = QUERY_SECONDS_MAX) -> tuple[bool, str]:
    result = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    return result.returncode == 0, result.stdout
