"""Images on older pins leave the cluster's registry.

Promise: after a change of pins the next cluster starts without the gigabytes of the older ones. An
image that is taken and wanted again is pushed again by the next build. Trap avoided: collecting
while somebody pushes takes layers whose manifest is still on its way, so it is done while no
registry serves the directory and no job of the cluster can ask for an older image.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from devcluster.images.build import is_dependencies_tag
from devcluster.node import REGISTRY
from devcluster.run import run

COLLECT_SECONDS_MAX = 120.0


def free_superseded(registry: Path, configuration: Path) -> list[str]:
    """Delete from a registry's directory what was pushed before the newest dependency layer of the
    same image, and all that nothing refers to; the names of the deleted images."""
    repositories = registry / "docker/registry/v2/repositories"
    if not repositories.exists():
        return []
    tags = [tag for path in sorted(repositories.glob("*/_manifests/tags")) for tag in _older(path)]
    for tag in tags:
        shutil.rmtree(tag)
    run(
        "docker-registry", "garbage-collect", "--delete-untagged", str(configuration),
        limit_seconds=COLLECT_SECONDS_MAX,
    )  # fmt: skip
    return [f"{REGISTRY}/{tag.parents[2].name}:{tag.name}" for tag in tags]


def _older(tags: Path) -> Iterator[Path]:
    links = tags.glob("*/current/link")
    pushed = {link.parents[1]: link.stat().st_mtime_ns for link in links}
    layers = [time for tag, time in pushed.items() if is_dependencies_tag(tag.name)]
    newest = max(layers, default=0)
    return (tag for tag, time in pushed.items() if time < newest)
