"""Building where no Docker daemon runs: buildah, as root, in a store of our own.

Promise: layers are kept in `<cache>/images` and nowhere else, with the overlay driver. Traps
avoided: the vfs driver, which copies all six gigabytes of the trainer for every instruction; a
build that failed leaving its working container, as large as the image, in the store for ever.
(buildah 1.28 ignores --disable-compression and --compression-format towards a registry: the large
layer is gzipped once, which takes a minute and halves it.)
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.environment import child_environment
from devcluster.errors import DevclusterError
from devcluster.images.progress import run_logged
from devcluster.images.reference import ImageRef
from devcluster.images.request import BuildRequest
from devcluster.images.store import Store

QUERY_SECONDS_MAX = 60.0
REMOVE_SECONDS_MAX = 300.0
PUSH_SECONDS_MAX = 1800.0
LOCAL_PREFIX = "localhost/"
UV_CACHE_IN_BUILD = "/host-uv-cache"


@dataclass(frozen=True)
class Buildah:
    """buildah with our storage."""

    store: Store
    uv_cache: Path
    upstream_base: str | None = None

    def holds(self, image: str) -> bool:
        return self._query("inspect", "--type", "image", "--format", "{{.FromImageID}}", image)[0]

    def pull(self, image: str) -> bool:
        return self._query("pull", "--quiet", image, seconds=PUSH_SECONDS_MAX)[0]

    def build(self, request: BuildRequest) -> None:
        self.uv_cache.mkdir(parents=True, exist_ok=True)
        arguments = dict(request.arguments) | {"UV_CACHE_DIR": UV_CACHE_IN_BUILD}
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--secret=id={name},src={path}" for name, path in request.secrets.items()]
        if request.target:
            options.append(f"--target={request.target}")
        try:
            self._run(
                [
                    "bud", "--layers", "--isolation=chroot", "--network=host", "--pull-never",
                    f"--volume={self.uv_cache}:{UV_CACHE_IN_BUILD}", *options,
                    f"--tag={LOCAL_PREFIX}{request.image.local}", f"--file={request.dockerfile}",
                    str(request.context),
                ],
                what=request.title,
                log=request.log,
                limit_seconds=request.limit_seconds,
            )  # fmt: skip
        except BaseException:
            self._query("rm", "--all", seconds=REMOVE_SECONDS_MAX)
            raise

    def push(self, image: ImageRef, *, title: str, log: Path) -> None:
        self._run(
            ["push", "--tls-verify=false", f"{LOCAL_PREFIX}{image.local}", f"docker://{image}"],
            what=title,
            log=log,
            limit_seconds=PUSH_SECONDS_MAX,
        )

    def tags(self, name: str) -> list[str]:
        found, output = self._query("images", "--json")
        rows = sorted(json.loads(output) if found else [], key=_created, reverse=True)
        prefix = f"{LOCAL_PREFIX}{name}:"
        found_names = [each for row in rows for each in row.get("names") or []]
        return [each.removeprefix(prefix) for each in found_names if each.startswith(prefix)]

    def remove(self, image: ImageRef) -> None:
        self._query("rmi", f"{LOCAL_PREFIX}{image.local}", seconds=REMOVE_SECONDS_MAX)

    def sweep(self) -> None:
        """Drop the working containers of builds that were killed, and layers without a name."""
        if self.store.layers.exists():
            self._query("rm", "--all", seconds=REMOVE_SECONDS_MAX)
            self._query("rmi", "--prune", seconds=REMOVE_SECONDS_MAX)

    @property
    def _argv(self) -> list[str]:
        if shutil.which("buildah") is None:
            raise DevclusterError(
                "images cannot be built: no Docker daemon answers and buildah is not installed: "
                "start Docker, or as root `apt-get install buildah mmdebstrap`"
            )
        return [
            "buildah", f"--root={self.store.layers}", f"--runroot={self.store.state}",
            "--storage-driver=overlay",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return child_environment(os.environ) | {"TMPDIR": str(self.store.temporary)}

    def _run(self, arguments: Sequence[str], *, what: str, log: Path, limit_seconds: float) -> None:
        run_logged(
            [*self._argv, *arguments],
            what=what,
            log=log,
            limit_seconds=limit_seconds,
            environment=self._environment(),
        )

    def _query(self, *arguments: str, seconds: float = QUERY_SECONDS_MAX) -> tuple[bool, str]:
        try:
            result = subprocess.run(
                [*self._argv, *arguments],
                capture_output=True,
                text=True,
                env=self._environment(),
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DevclusterError(
                f"`buildah {arguments[0]}` did not answer in {seconds:g} s: end whatever else uses "
                f"{self.store.root}, or delete it with `image clean`"
            ) from None
        return result.returncode == 0, result.stdout


def _created(row: dict[str, object]) -> str:
    return str(row.get("createdatraw", ""))
