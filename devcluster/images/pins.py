"""The exact versions that an image's dependencies resolve to, and which build of torch.

Promise: the key of a dependency layer follows the resolved pins alone. The constraint file also
pins linters and the other image's libraries; changing those must not rebuild six gigabytes. The
answer is remembered by what it was resolved from, so an unchanged tree asks nobody. Trap avoided:
resolving at every start, which is slow, and fails without a network although nothing has to be
fetched.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images.progress import say

UV_VERSION = "0.13.9"
PYTHON_VERSION = "3.11"
RESOLVE_SECONDS_MAX = 120.0
#: The index of CPU-only builds either answers at once or is out of reach.
PROBE_SECONDS_MAX = 20.0
INSTALL_SECONDS_MAX = 180.0
TORCH_BACKEND_VARIABLE = "LMTRAIN_TORCH_BACKEND"
#: The build of torch that the configured index itself serves.
INDEX_DEFAULT = ""
CPU = "cpu"


@dataclass(frozen=True)
class Pins:
    """What one extra resolves to."""

    key: str
    torch_backend: str
    """cpu, cu130, ..., or empty for the index's own build."""
    packages: tuple[str, ...]


def resolved_pins(extra: str, *, root: Path, memory: Path, tools: Path) -> Pins:
    """The pins of an extra of pyproject.toml, from memory where nothing changed."""
    requirements = requirements_of(extra, root / "pyproject.toml")
    wanted = os.environ.get(TORCH_BACKEND_VARIABLE)
    remembered = memory / f"{_question(requirements, root, wanted)}.json"
    if remembered.exists():
        stored = json.loads(remembered.read_text())
        return Pins(stored["key"], stored["torch_backend"], tuple(stored["packages"]))
    pins = _resolve(extra, root=root, tools=tools, backends=_backends(requirements, wanted))
    memory.mkdir(parents=True, exist_ok=True)
    temporary = remembered.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(pins), indent=1))
    temporary.rename(remembered)
    return pins


def requirements_of(extra: str, pyproject: Path) -> tuple[str, ...]:
    """The requirement lines of the project and of one of its extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise DevclusterError(f"{pyproject} has no extra {extra!r}: it has {', '.join(extras)}")
    return (*project["dependencies"], *extras[extra])


def _question(requirements: Sequence[str], root: Path, wanted: str | None) -> str:
    constraints = (root / "constraints" / "python.txt").read_text()
    asked = json.dumps([UV_VERSION, PYTHON_VERSION, requirements, constraints, wanted, has_gpu()])
    return hashlib.sha256(asked.encode()).hexdigest()


def _backends(requirements: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Builds of torch to try, best first: without a GPU the CPU build, a tenth of the size."""
    if not any(line.startswith("torch") for line in requirements):
        return (INDEX_DEFAULT,)
    if wanted is not None:
        return (wanted,)
    return (INDEX_DEFAULT,) if has_gpu() else (CPU, INDEX_DEFAULT)


def has_gpu() -> bool:
    """True where this machine has an NVIDIA driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _resolve(extra: str, *, root: Path, tools: Path, backends: Sequence[str]) -> Pins:
    failure = ""
    for backend in backends:
        last = backend == backends[-1]
        try:
            packages = _compile(extra, root=root, tools=tools, backend=backend, patient=last)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failure = str(getattr(error, "stderr", "") or error)
            continue
        key = hashlib.sha256("\n".join(packages).encode()).hexdigest()
        return Pins(key, backend, packages)
    raise DevclusterError(
        f"the extra {extra!r} of {root / 'pyproject.toml'} does not resolve with "
        f"{root / 'constraints/python.txt'}: make the two agree, and check that the package index "
        f"pip or uv is configured for answers. uv said:\n{failure.strip()}"
    )


def _compile(
    extra: str, *, root: Path, tools: Path, backend: str, patient: bool
) -> tuple[str, ...]:
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
    return tuple(line for line in result.stdout.splitlines() if "==" in line)


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv: where only pip was told of a mirror, uv is told as well."""
    values = dict(environment)
    if "PIP_INDEX_URL" in values and "UV_INDEX_URL" not in values:
        values.setdefault("UV_DEFAULT_INDEX", values["PIP_INDEX_URL"])
    return values


def uv_program(tools: Path) -> str:
    """The machine's uv, else one installed into a small environment of our own."""
    if found := shutil.which("uv"):
        return found
    home = tools / f"uv-{UV_VERSION}"
    program = home / "bin" / "uv"
    if not program.exists():
        say("uv: installing it once, usually 10 s")
        venv.create(home, with_pip=True, clear=True)
        subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "--quiet", f"uv=={UV_VERSION}"],
            check=True,
            timeout=INSTALL_SECONDS_MAX,
            stdout=sys.stderr,
        )
    return str(program)
