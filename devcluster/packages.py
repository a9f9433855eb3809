"""What a package client must know of this machine: which uv, which index, which build of torch.

Promise: a mirror that only pip.conf names, or only a PIP_ variable, is used by uv as well, here and
in image builds; nothing of it is written down. Trap avoided: uv does not read pip.conf, so on a
machine that reaches nothing but its mirror every uv command would hang or fail.

`python devcluster/packages.py` prints all of it for a shell. bootstrap.sh runs it before there is
an environment, so only the standard library is imported here.
"""

import configparser
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints" / "python.txt"
CPU = "cpu"
#: The build of torch that the configured index itself serves.
INDEX_DEFAULT = ""
#: Settings of package clients that hold inside a build as well: none that names a local path.
CLIENT_VARIABLES = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_INSECURE_HOST",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
PIP_CONFIG_KEYS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
}
PIP_CONFIG_SECTIONS = ("global", "install")
#: uv's name for what pip is told, and uv's older name, which a person may have set.
UV_FROM_PIP = {
    "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "PIP_EXTRA_INDEX_URL": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "PIP_TRUSTED_HOST": ("UV_INSECURE_HOST", "UV_INSECURE_HOST"),
}


def uv_version() -> str:
    """The version of uv that is pinned beside everything else."""
    found = re.search(r"^uv==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"{CONSTRAINTS} pins no uv: add it, as uv==<version>")
    return found.group(1)


def torch_backend() -> str:
    """The build of torch to ask for first: without a GPU the CPU build, a tenth of the size."""
    return INDEX_DEFAULT if has_gpu() else CPU


def has_gpu() -> bool:
    """True where this machine has an NVIDIA driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def client_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Index and proxy settings for pip and uv, from the environment and pip's configuration."""
    values = _pip_configuration(environment)
    values |= {name: environment[name] for name in CLIENT_VARIABLES if environment.get(name)}
    for pip_name, (uv_name, older_name) in UV_FROM_PIP.items():
        if pip_name in values and older_name not in values:
            values.setdefault(uv_name, values[pip_name])
    return values


def client_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The whole environment for a package client on this machine."""
    return {**environment, **client_variables(environment)}


def _pip_configuration(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip's configuration files say, the later file and section before the earlier one."""
    parser = configparser.RawConfigParser()
    parser.read(_pip_configuration_files(environment))
    found: dict[str, str] = {}
    for section in filter(parser.has_section, PIP_CONFIG_SECTIONS):
        texts = {
            name: parser.get(section, key, fallback="") for key, name in PIP_CONFIG_KEYS.items()
        }
        found |= {name: " ".join(text.split()) for name, text in texts.items() if text.strip()}
    return found


def _pip_configuration_files(environment: Mapping[str, str]) -> list[Path]:
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's own way to say: none of them
        return []
    home = Path(environment.get("HOME") or Path.home())
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    files += [home / ".pip/pip.conf", user / "pip/pip.conf"]
    return [*files, Path(named)] if named else files


def main() -> None:
    print(f"uv_version={uv_version()} torch_backend={torch_backend()}")
    for name, value in sorted(client_variables(os.environ).items()):
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
