"""The exact versions that an image's dependencies resolve to, and which build of torch.

Promise: the key of a dependency layer follows the resolved pins alone. The constraint file also
pins linters and the other image's libraries; changing those must not rebuild six gigabytes. Pins
are remembered by what they were resolved from, so that an unchanged tree resolves nothing again.
A build of torch that could not be had is asked for again in the next run. Traps avoided: resolving
at every start, which is slow, and fails without a network although nothing has to be fetched; and
gigabytes of CUDA for ever because an index was slow once.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images.progress import say
from devcluster.packages import INDEX_DEFAULT, client_environment, torch_backend, uv_version

PYTHON_VERSION = "3.11"
RESOLVE_SECONDS_MAX = 120.0
PROBE_SECONDS_MAX = 20.0
INSTALL_SECONDS_MAX = 180.0
TORCH_BACKEND_VARIABLE = "LMTRAIN_TORCH_BACKEND"


@dataclass(frozen=True)
class Pins:
    """What one extra resolves to."""

    key: str
    torch_backend: str
    """cpu, cu130, ..., or empty for the index's own build."""
    packages: tuple[str, ...]


@dataclass(frozen=True)
class PinMemory:
    """Pins by the question that they answer, on disk for ever, and the questions without an answer,
    in memory: within one run, in which a name must not change its meaning, nothing is asked twice.
    """

    directory: Path
    refusals: dict[str, str] = field(default_factory=dict)

    def recall(self, question: str) -> Pins | None:
        path = self._path(question)
        if not path.exists():
            return None
        stored = json.loads(path.read_text())
        return Pins(stored["key"], stored["torch_backend"], tuple(stored["packages"]))

    def keep(self, question: str, pins: Pins) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self._path(question).with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(pins), indent=1))
        temporary.rename(self._path(question))

    def _path(self, question: str) -> Path:
        return self.directory / f"{question}.json"


def resolved_pins(extra: str, *, root: Path, memory: PinMemory, tools: Path) -> Pins:
    """The pins of an extra of pyproject.toml, from memory where nothing changed."""
    requirements = requirements_of(extra, root / "pyproject.toml")
    refusal = ""
    for backend, patient in _backends(requirements, os.environ.get(TORCH_BACKEND_VARIABLE)):
        question = _question(requirements, root, backend)
        if remembered := memory.recall(question):
            return remembered
        if question not in memory.refusals:
            try:
                pins = _resolve(extra, root=root, tools=tools, backend=backend, patient=patient)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                memory.refusals[question] = str(getattr(error, "stderr", "") or error)
            else:
                memory.keep(question, pins)
                return pins
        refusal = memory.refusals[question]
    raise DevclusterError(
        f"the extra {extra!r} of {root / 'pyproject.toml'} does not resolve with "
        f"{root / 'constraints/python.txt'}: make the two agree, and check that the package index "
        f"pip or uv is configured for answers. uv said:\n{refusal.strip()}"
    )


def requirements_of(extra: str, pyproject: Path) -> tuple[str, ...]:
    """The requirement lines of the project and of one of its extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise DevclusterError(f"{pyproject} has no extra {extra!r}: it has {', '.join(extras)}")
    return (*project["dependencies"], *extras[extra])


def _question(requirements: Sequence[str], root: Path, backend: str) -> str:
    constraints = (root / "constraints" / "python.txt").read_text()
    asked = json.dumps([PYTHON_VERSION, requirements, constraints, backend])
    return hashlib.sha256(asked.encode()).hexdigest()


def _backends(requirements: Sequence[str], wanted: str | None) -> tuple[tuple[str, bool], ...]:
    """Builds of torch to try, best first, each with whether to be patient: the index of the CPU
    build either answers at once or is out of reach."""
    if not any(line.startswith("torch") for line in requirements):
        return ((INDEX_DEFAULT, True),)
    if wanted is not None:
        return ((wanted, True),)
    best = torch_backend()
    return ((best, False), (INDEX_DEFAULT, True)) if best else ((INDEX_DEFAULT, True),)


def _resolve(extra: str, *, root: Path, tools: Path, backend: str, patient: bool) -> Pins:
    argv = [
        uv_program(tools), "pip", "compile", "pyproject.toml", "--extra", extra,
        "--constraint", "constraints/python.txt", "--python-version", PYTHON_VERSION,
        "--python-platform", "linux", "--no-header", "--no-annotate", "--quiet",
        *([f"--torch-backend={backend}"] if backend else []),
    ]  # fmt: skip
    impatience = {} if patient else {"UV_HTTP_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"}
    result = subprocess.run(
        argv,
        cwd=root,
        env=client_environment(os.environ) | impatience,
        capture_output=True,
        text=True,
        check=True,
        timeout=RESOLVE_SECONDS_MAX if patient else PROBE_SECONDS_MAX,
    )
    packages = tuple(line for line in result.stdout.splitlines() if "==" in line)
    return Pins(hashlib.sha256("\n".join(packages).encode()).hexdigest(), backend, packages)


def uv_program(tools: Path) -> str:
    """The machine's uv, else one installed into a small environment of our own."""
    if found := shutil.which("uv"):
        return found
    home = tools / f"uv-{uv_version()}"
    program = home / "bin" / "uv"
    if not program.exists():
        say("uv: installing it once, usually 10 s")
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "--quiet", f"uv=={uv_version()}"],
            check=True,
            timeout=INSTALL_SECONDS_MAX,
            stdout=sys.stderr,
        )
    return str(program)
