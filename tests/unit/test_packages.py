"""A mirror that this machine names in one place only is used by every package client."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from devcluster.images import pins
from devcluster.packages import client_environment, client_variables
from devcluster.paths import Layout

pytestmark = pytest.mark.unit

MIRROR = "https://mirror.example/simple"
REPOSITORY = Path(__file__).resolve().parents[2]


class EmptyIndex(BaseHTTPRequestHandler):
    """A package index that has nothing and remembers what it was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def index() -> Iterator[tuple[str, list[str]]]:
    EmptyIndex.asked = []
    with HTTPServer(("127.0.0.1", 0), EmptyIndex) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple", EmptyIndex.asked
        server.shutdown()
        thread.join()


@pytest.fixture
def pip_conf(tmp_path: Path) -> Path:
    """A pip.conf of this test; all others are out of sight."""
    return tmp_path / "pip.conf"


def settings(pip_conf: Path, **environment: str) -> dict[str, str]:
    home = str(pip_conf.parent / "home")
    return client_variables({"HOME": home, "PIP_CONFIG_FILE": str(pip_conf), **environment})


def test_a_mirror_of_pip_conf_reaches_uv(pip_conf: Path) -> None:
    pip_conf.write_text(
        f"[global]\nindex-url = {MIRROR}\n"
        "extra-index-url =\n  https://one.example/simple\n  https://two.example/simple\n"
        "[install]\ntrusted-host = mirror.example\n"
    )
    found = settings(pip_conf)
    assert found["UV_DEFAULT_INDEX"] == MIRROR
    assert found["UV_INDEX"] == "https://one.example/simple https://two.example/simple"
    assert found["UV_INSECURE_HOST"] == "mirror.example"


def test_a_mirror_of_the_environment_reaches_uv_and_comes_first(pip_conf: Path) -> None:
    pip_conf.write_text("[global]\nindex-url = https://other.example/simple\n")
    assert settings(pip_conf, PIP_INDEX_URL=MIRROR)["UV_DEFAULT_INDEX"] == MIRROR


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_what_uv_was_told_itself_is_left_alone(pip_conf: Path, name: str) -> None:
    pip_conf.write_text("[global]\nindex-url = https://other.example/simple\n")
    found = settings(pip_conf, **{name: MIRROR})
    assert {found.get("UV_DEFAULT_INDEX"), found.get("UV_INDEX_URL")} == {MIRROR, None}


def test_settings_that_name_local_paths_stay_outside(pip_conf: Path) -> None:
    assert "PIP_FIND_LINKS" not in settings(pip_conf, PIP_FIND_LINKS="/opt/wheels")


def test_pip_can_be_told_to_read_no_file(tmp_path: Path) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text(f"[global]\nindex-url = {MIRROR}\n")
    home = {"HOME": str(tmp_path)}
    assert client_variables(home)["UV_DEFAULT_INDEX"] == MIRROR
    assert client_variables({**home, "PIP_CONFIG_FILE": os.devnull}) == {}


def test_bootstrap_can_read_the_settings_before_there_is_an_environment(pip_conf: Path) -> None:
    pip_conf.write_text("[global]\nindex-url = https://me:it's%20me@mirror.example/simple\n")
    script = 'eval "$("$0" -I -S devcluster/packages.py)"; printf %s "$UV_DEFAULT_INDEX"'
    said = subprocess.run(
        ["bash", "-euc", script, sys.executable],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(pip_conf)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout == "https://me:it's%20me@mirror.example/simple"


def test_uv_asks_the_mirror_of_pip_conf(pip_conf: Path, index: tuple[str, list[str]]) -> None:
    url, asked = index
    pip_conf.write_text(f"[global]\nindex-url = {url}\n")
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    environment = client_environment(quiet | {"PIP_CONFIG_FILE": str(pip_conf)})
    uv = pins.uv_program(Layout.from_environment().tools)
    command = [uv, "pip", "compile", "--quiet", "-"]
    done = subprocess.run(
        command,
        input="lmtraining-no-such-package",
        env=environment,
        cwd=pip_conf.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "/simple/lmtraining-no-such-package/" in asked
