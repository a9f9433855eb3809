"""Programs are built when their pins, flags or sources change, and at no other time."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from devcluster import binaries, cluster, machine, tinyimage, toolchain
from devcluster.cluster import Backend
from devcluster.errors import DevclusterError
from devcluster.paths import CACHE_VARIABLE, GO_DIR, Layout

pytestmark = pytest.mark.unit


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "go.mod").write_text("module x\n")
    (tmp_path / "go.sum").write_text("a h1:b\n")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "main.go").write_text("package main\n")
    return tmp_path


@pytest.mark.parametrize("changed", ["go.mod", "go.sum", "tool/main.go", "tool/new.go"])
def test_a_changed_pin_or_source_gives_another_key(module: Path, changed: str) -> None:
    before = binaries.module_key(module)
    (module / changed).write_text("changed\n")
    assert binaries.module_key(module) != before


def test_other_flags_give_another_key_and_other_files_do_not(module: Path) -> None:
    before = binaries.module_key(module)
    (module / "README.md").write_text("words\n")
    assert binaries.module_key(module) == before
    assert binaries.module_key(module, flags=("-race",)) != before


def test_every_program_is_a_pinned_tool_or_ours() -> None:
    for program in binaries.PROGRAMS:
        module = GO_DIR / program.module
        if program.package.startswith("./"):
            assert (module / program.package / "main.go").exists()
        else:
            assert f"\t{program.package}\n" in (module / "go.mod").read_text()


def test_built_programs_are_not_built_again(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    path = binaries.path_of(binaries.program("pause"), layout)
    path.parent.mkdir(parents=True)
    path.write_text("built")
    assert binaries.ensure(["pause"], layout) == {"pause": path}
    assert path.read_text() == "built"


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(DevclusterError, match="no program 'kubectx'"):
        binaries.program("kubectx")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.27 linux/arm64", (1, 27, 0)),
        ("go 1.26.0", (1, 26, 0)),
        ("no such file", None),
    ],
)
def test_versions_of_go_are_read(text: str, version: toolchain.Version | None) -> None:
    assert toolchain.parse_version(text) == version


def test_the_toolchain_that_would_be_fetched_suffices() -> None:
    fetched = tuple(map(int, toolchain.WHEEL_VERSION.split(".")))
    assert fetched >= toolchain.required_version()


def test_the_install_command_names_each_missing_package_once() -> None:
    missing = machine.missing_requirements(lambda requirement: None)
    assert missing == list(machine.REQUIREMENTS)
    words = machine.install_command(missing).split()
    assert words[:2] == ["apt-get", "install"]
    assert words.count("containerd") == 1
    assert {"runc", "iptables", "docker-registry", "containernetworking-plugins"} <= set(words)


def test_nothing_missing_means_nothing_to_install() -> None:
    assert machine.missing_requirements(lambda requirement: "/usr/bin/x") == []


def test_a_cache_path_too_long_for_a_socket_is_a_problem_with_a_fix() -> None:
    layout = Layout(Path("/" + "x" * 100))
    found = machine.problems(layout, ours_running=True)
    assert any("LMTRAIN_CACHE" in problem.fix for problem in found)


def test_the_cache_is_where_the_variable_says(tmp_path: Path) -> None:
    assert Layout.from_environment({CACHE_VARIABLE: str(tmp_path)}).cache == tmp_path
    assert Layout.from_environment({}).cache.parent.name == ".cache"


def test_an_existing_cluster_decides_the_back_end(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert cluster.running_backend(layout) is None
    assert cluster.choose_backend(Backend.NATIVE, layout) is Backend.NATIVE
    layout.cluster.mkdir()
    layout.marker.write_text('{"backend": "kind"}')
    assert cluster.choose_backend(Backend.AUTO, layout) is Backend.KIND
    with pytest.raises(DevclusterError, match="down"):
        cluster.choose_backend(Backend.NATIVE, layout)


def test_an_image_is_reproducible_and_says_what_it_runs(tmp_path: Path) -> None:
    binary = tmp_path / "pause"
    binary.write_bytes(b"\x7fELF")
    archive = tinyimage.archive(binary, name="local/pause:1")
    assert archive == tinyimage.archive(binary, name="local/pause:1")
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        contents = {m.name: members.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    config = json.loads(contents["config.json"])
    assert config["config"]["Entrypoint"] == ["/pause"]
    layer = hashlib.sha256(contents["layer.tar"]).hexdigest()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer}"]
