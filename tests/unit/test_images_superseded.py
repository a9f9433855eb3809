"""What older pins left in the registry is given back, and nothing else."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devcluster import nodeconfig, tinyimage
from devcluster.images.reference import ImageRef
from devcluster.images.registry import registry_answers, registry_has
from devcluster.images.superseded import free_superseded
from devcluster.node import REGISTRY, NodeFiles
from devcluster.paths import Layout
from devcluster.waiting import wait_until

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]

NAME = "lmtraining-toy"
LAYER_BYTES = 3_000_000


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "cache")


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def configuration(layout: Layout, tmp_path: Path, address: str) -> Path:
    path = tmp_path / "registry.yaml"
    path.write_text(nodeconfig.registry(NodeFiles(layout)).replace(REGISTRY, address))
    return path


@contextmanager
def serving(configuration: Path, address: str) -> Iterator[None]:
    with subprocess.Popen(["docker-registry", "serve", str(configuration)]) as process:
        try:
            wait_until("the registry", lambda: registry_answers(address), limit_seconds=30)
            yield
        finally:
            process.kill()


def push(tmp_path: Path, address: str, *, layer: str, tags: tuple[str, ...]) -> None:
    binary = tmp_path / layer
    if not binary.exists():
        binary.write_bytes(os.urandom(LAYER_BYTES))
    for tag in tags:
        tinyimage.push(binary, registry=address, repository=NAME, tag=tag)


def age(layout: Layout, *tags: str) -> None:
    """Let the tags have been pushed long ago."""
    for tag in tags:
        (link,) = layout.registry.glob(f"**/tags/{tag}/current/link")
        os.utime(link, (0, 0))


def bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_change_of_pins_gives_the_older_layer_back(
    tmp_path: Path, layout: Layout, configuration: Path, address: str
) -> None:
    with serving(configuration, address):
        push(tmp_path, address, layer="old", tags=("dependencies-old", "codeonold"))
        push(tmp_path, address, layer="new", tags=("dependencies-new", "codeonnew"))
    age(layout, "dependencies-old", "codeonold")
    before = bytes_in(layout.registry)
    names = free_superseded(layout.registry, configuration)
    assert sorted(names) == [f"{REGISTRY}/{NAME}:codeonold", f"{REGISTRY}/{NAME}:dependencies-old"]
    assert LAYER_BYTES <= before - bytes_in(layout.registry) < 2 * LAYER_BYTES
    with serving(configuration, address):
        held = [
            tag
            for tag in ("dependencies-old", "codeonold", "dependencies-new", "codeonnew")
            if registry_has(ImageRef(address, NAME, tag))
        ]
    assert held == ["dependencies-new", "codeonnew"]


def test_older_code_on_the_same_pins_stays_and_a_second_time_does_nothing(
    tmp_path: Path, layout: Layout, configuration: Path, address: str
) -> None:
    with serving(configuration, address):
        push(tmp_path, address, layer="one", tags=("dependencies-one", "codeone", "codetwo"))
    before = bytes_in(layout.registry)
    assert free_superseded(layout.registry, configuration) == []
    assert free_superseded(layout.registry, configuration) == []
    assert bytes_in(layout.registry) == before


def test_without_a_registry_there_is_nothing_to_free(layout: Layout) -> None:
    assert free_superseded(layout.registry, layout.cache / "none.yaml") == []
