"""containerd, through its own small client: the pause image in, every container out."""

from collections.abc import Collection
from pathlib import Path

from devcluster import node, tinyimage
from devcluster.node import NodeFiles
from devcluster.run import run, try_run
from devcluster.waiting import wait_until

CTR_LIMIT_SECONDS = 60.0
EMPTY_LIMIT_SECONDS = 30.0
FILESYSTEMS_WITHOUT_OVERLAY = ("overlay", "fuse.fuse-overlayfs", "nfs", "nfs4")


def _ctr(files: NodeFiles, *arguments: str) -> list[str]:
    return ["ctr", "--address", str(files.containerd_socket), "--namespace", "k8s.io", *arguments]


def answers(files: NodeFiles) -> bool:
    return try_run(*_ctr(files, "version"), limit_seconds=CTR_LIMIT_SECONDS).returncode == 0


def ensure_pause_image(files: NodeFiles, binary: Path) -> None:
    """Import the image that holds each pod's namespaces, unless it is there."""
    if node.PAUSE_IMAGE in run(*_ctr(files, "images", "list", "--quiet")).splitlines():
        return
    path = files.layout.cluster / "pause.tar"
    path.write_bytes(tinyimage.archive(binary, name=node.PAUSE_IMAGE))
    run(*_ctr(files, "images", "import", str(path)))
    path.unlink()


def remove_images(files: NodeFiles, names: Collection[str]) -> None:
    """Remove images, and their layers with them: the kubelet has each one under three names."""
    if not names:
        return
    rows = [line.split() for line in run(*_ctr(files, "images", "list")).splitlines()[1:]]
    digests = {row[2] for row in rows if row[0] in names}
    if every_name := [row[0] for row in rows if row[2] in digests]:
        run(*_ctr(files, "images", "remove", *every_name))


def remove_all_containers(files: NodeFiles) -> None:
    """End and forget every container, so that the next cluster does not inherit them.

    Errors of single removals are expected: ending one container can take its neighbours along.
    """

    def empty() -> bool:
        tasks = try_run(*_ctr(files, "tasks", "list", "--quiet")).stdout.split()
        if tasks:
            try_run(*_ctr(files, "tasks", "delete", "--force", *tasks))
        containers = try_run(*_ctr(files, "containers", "list", "--quiet")).stdout.split()
        if containers:
            try_run(*_ctr(files, "containers", "delete", *containers))
        return not tasks and not containers

    wait_until("containerd has no container", empty, limit_seconds=EMPTY_LIMIT_SECONDS)


def snapshotter(root: Path) -> str:
    """overlayfs, or plain copies where the cache lies on a file system that cannot carry it."""
    kind = run("stat", "--file-system", "--format=%T", str(_existing(root))).strip()
    return "native" if kind.startswith(FILESYSTEMS_WITHOUT_OVERLAY) else "overlayfs"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
