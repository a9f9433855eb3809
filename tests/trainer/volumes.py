"""A small file system of a test's own, which can be filled, forbidden and frozen."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trainer.supervisor_pods import until

MEBIBYTES = 64
LEFT_BYTES = 200 * 1024
"""Free space of a full volume: some files of a small checkpoint find room."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A mounted ext4 file system."""

    path: Path

    def fill(self) -> None:
        """Leave `LEFT_BYTES`."""
        stats = os.statvfs(self.path)
        with (self.path / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stats.f_bavail * stats.f_frsize - LEFT_BYTES)

    def empty(self) -> None:
        """Free the space again."""
        (self.path / "filler").unlink()

    def forbid(self) -> None:
        """Not even root may write into checkpoints/."""
        _run("chattr", "+i", str(self.path / "checkpoints"))

    def allow(self) -> None:
        """It may again."""
        _run("chattr", "-i", str(self.path / "checkpoints"))

    def make_read_only(self) -> None:
        """Remount; refused for as long as a file is open for writing."""
        until(lambda: _succeeds("mount", "-o", "remount,ro", str(self.path)), "read-only")

    def make_writable(self) -> None:
        """Remount again."""
        _run("mount", "-o", "remount,rw", str(self.path))

    def freeze(self) -> None:
        """Whoever writes waits from now on, and cannot even be killed."""
        _run("fsfreeze", "--freeze", str(self.path))

    def thaw(self) -> None:
        """Let them go on; without effect where it is not frozen."""
        _succeeds("fsfreeze", "--unfreeze", str(self.path))


@contextmanager
def volume(mount_point: Path) -> Iterator[Volume]:
    """An empty volume mounted there; skips the test where none can be."""
    image = mount_point.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(MEBIBYTES * 1024 * 1024)
    mount_point.mkdir()
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    if not _succeeds("mount", "-o", "loop", str(image), str(mount_point)):
        pytest.skip(f"no loop device can be mounted at {mount_point}")
    mounted = Volume(path=mount_point)
    try:
        yield mounted
    finally:
        mounted.thaw()
        until(lambda: _succeeds("umount", str(mount_point)), "nobody holds the volume any more")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
