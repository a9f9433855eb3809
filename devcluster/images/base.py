"""The base image, made from Debian packages where no image registry can be reached.

Promise: Debian 12 with Python and little else, in under a minute, from the package mirror that
mmdebstrap knows; nothing of the host gets in. Its name is the hash of this recipe. Trap avoided: a
base that needs a registry, which makes a clone useless behind a firewall.
"""

import os
import shutil
from pathlib import Path

from devcluster.environment import child_environment
from devcluster.errors import DevclusterError
from devcluster.images.progress import Step, run_logged
from devcluster.images.recipe import short_hash

SUITE = "bookworm"
#: Beyond Debian's essential packages. The venv module is for the installer of the dependencies;
#: libstdc++ and libgomp are for torch. No compiler, no time zones, no package manager but dpkg.
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1", "libstdc++6")
UNWANTED_FILES = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
#: Of the documentation, the licences stay.
WANTED_FILES = ("/usr/share/doc/*/copyright",)
DOCKERFILE = (
    "FROM scratch\n"
    "ADD base.tar /\n"
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8\n"
)
NAME = "lmtraining-base"
STEP = Step(title="base image", usual_seconds=60, disk_bytes=900_000_000)
SECONDS_MAX = 900.0
#: One time stamp for all files, so that two builds from the same packages are the same bytes.
SOURCE_DATE_EPOCH = "1700000000"


def base_key() -> str:
    return short_hash((SUITE, *PACKAGES, *UNWANTED_FILES, *WANTED_FILES, DOCKERFILE))


def make_base_context(directory: Path, *, log: Path) -> None:
    """Fill `directory` with a Dockerfile and the root file system that it adds."""
    if shutil.which("mmdebstrap") is None:
        raise DevclusterError(
            "the base image cannot be made: mmdebstrap is not installed: install it "
            "(`apt-get install mmdebstrap`), or name an image with Python 3.11 and its venv "
            "module in LMTRAIN_BASE_IMAGE"
        )
    directory.mkdir(parents=True)
    (directory / "Dockerfile").write_text(DOCKERFILE)
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED_FILES]
    options += [f"--dpkgopt=path-include={pattern}" for pattern in WANTED_FILES]
    run_logged(
        [
            "mmdebstrap", "--variant=essential", f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"', *options,
            SUITE, str(directory / "base.tar"),
        ],
        what=STEP.title,
        log=log,
        limit_seconds=SECONDS_MAX,
        environment=child_environment(os.environ)
        | {"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "TMPDIR": str(directory.parent)},
    )  # fmt: skip
