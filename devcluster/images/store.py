"""Where images are built, how much disk that takes, and how it is given back.

Promise: everything lies below one directory of the cache, one build at a time works in it, and what
an interrupted build left is swept before the next one starts. Trap avoided: the system's own
container storage, where `make clean` could not tell our layers from somebody else's, and a build
killed half-way whose mounts make a plain delete fail or, worse, reach through into the host.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.images.progress import say
from devcluster.mounts import mounts_below
from devcluster.paths import Layout
from devcluster.waiting import wait_until

BUILD_SECONDS_MAX = 3600.0
UNMOUNT_SECONDS_MAX = 30.0
BLOCK_BYTES = 512


@dataclass(frozen=True)
class Store:
    """The directories of image building."""

    root: Path

    @classmethod
    def of(cls, layout: Layout | None = None) -> "Store":
        return cls((layout or Layout.from_environment()).cache / "images")

    @property
    def layers(self) -> Path:
        """Finished layers and images (buildah's storage)."""
        return self.root / "storage"

    @property
    def state(self) -> Path:
        """buildah's run-time state."""
        return self.root / "run"

    @property
    def temporary(self) -> Path:
        """Whatever is not finished."""
        return self.root / "tmp"

    @property
    def pins(self) -> Path:
        """Resolved requirements, by what they were resolved from."""
        return self.root / "pins"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store alone; what is unfinished is swept away before and after."""
        for directory in (self.root, self.pins, self.logs):
            directory.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            if not _try_lock(lock.fileno()):
                say("images: another build is running on this machine; waiting for it")
                wait_until(
                    "the other image build",
                    lambda: _try_lock(lock.fileno()),
                    limit_seconds=BUILD_SECONDS_MAX,
                    hint=f"It holds {self.root / 'lock'}; stop it if it hangs.",
                )
            self._sweep()
            self.temporary.mkdir()
            try:
                yield
            finally:
                self._sweep()

    def _sweep(self) -> None:
        for mount in mounts_below(self.temporary):
            _unmount(mount)
        shutil.rmtree(self.temporary, ignore_errors=True)


def bytes_used(layout: Layout | None = None) -> dict[str, int]:
    """Disk taken by each part of the image store, in bytes."""
    store = Store.of(layout)
    parts = (store.layers, store.state, store.temporary, store.pins, store.logs)
    return {part.name: _bytes_below(part) for part in parts if part.exists()}


def clean(layout: Layout | None = None) -> int:
    """Delete all that image building keeps; returns the bytes given back."""
    store = Store.of(layout)
    if not store.root.exists():
        return 0
    with store.locked():
        given_back = sum(bytes_used(layout).values())
        for mount in mounts_below(store.root):
            _unmount(mount)
        # Never delete through a mount: it would empty what is mounted, not what is ours.
        if left := mounts_below(store.root):
            raise DevclusterError(
                f"{left[0]} is still mounted: end what uses it (`fuser -vm {left[0]}`), "
                "unmount it, then clean again"
            )
        for part in store.root.iterdir():
            if part.is_dir():
                shutil.rmtree(part)
    return given_back


def _unmount(mount: Path) -> None:
    subprocess.run(["umount", str(mount)], timeout=UNMOUNT_SECONDS_MAX, check=False)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bytes_below(directory: Path) -> int:
    """Blocks in use below a directory, without what is mounted there, hard links counted once."""
    device = directory.stat().st_dev
    blocks: dict[int, int] = {}
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) * BLOCK_BYTES
