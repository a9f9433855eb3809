"""Where everything lies on disk, and which part of it outlives the cluster.

Promise: nothing is ever written into the clone, and everything below one directory can be deleted
while the cluster is down. Trap avoided: what makes the second `up` fast (binaries, image layers,
registry blobs) is apart from what must die with the cluster (etcd, volumes, certificates), so that
wiping a broken cluster can never cost a seven-minute build.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "LMTRAIN_CACHE"
CACHE_NAME = "lm-training-operator"
SOURCE_DIR = Path(__file__).resolve().parent
GO_DIR = SOURCE_DIR / "go"


@dataclass(frozen=True)
class Layout:
    """The directories of one devcluster."""

    cache: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Layout":
        """The cache directory that `$LMTRAIN_CACHE` names, else one under the home directory."""
        values = os.environ if environment is None else environment
        named = values.get(CACHE_VARIABLE)
        return cls(Path(named).resolve() if named else Path.home() / ".cache" / CACHE_NAME)

    @property
    def identity(self) -> str:
        """Tells what this cluster leaves in the kernel from what another one does."""
        return f"lmtrain-{hashlib.sha256(str(self.cache).encode()).hexdigest()[:8]}"

    # Kept between clusters.
    @property
    def binaries(self) -> Path:
        return self.cache / "bin"

    @property
    def go_caches(self) -> Path:
        return self.cache / "go"

    @property
    def toolchains(self) -> Path:
        return self.cache / "toolchain"

    @property
    def containerd_root(self) -> Path:
        return self.cache / "containerd"

    @property
    def registry(self) -> Path:
        return self.cache / "registry"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def tools(self) -> Path:
        return self.cache / "tools"

    @property
    def lock(self) -> Path:
        return self.cache / "devcluster.lock"

    @property
    def parts(self) -> tuple[Path, ...]:
        """All that is ours: a cache directory that somebody named may hold other things too."""
        return (
            self.binaries,
            self.go_caches,
            self.toolchains,
            self.containerd_root,
            self.registry,
            self.images,
            self.tools,
            self.cluster,
            self.api_only,
            self.lock,
        )

    # Gone after `down`.
    @property
    def cluster(self) -> Path:
        return self.cache / "cluster"

    @property
    def marker(self) -> Path:
        """Says which back end the cluster's directory belongs to; written first, removed last."""
        return self.cluster / "cluster.json"

    @property
    def api_only(self) -> Path:
        return self.cache / "api-only"

    @property
    def kubeconfig(self) -> Path:
        return self.cluster / "kubeconfig"

    @property
    def processes(self) -> Path:
        return self.cluster / "processes"

    @property
    def logs(self) -> Path:
        return self.cluster / "logs"

    @property
    def pki(self) -> Path:
        return self.cluster / "pki"

    @property
    def programs(self) -> Path:
        """Links to every program of this cluster: a directory for PATH."""
        return self.cluster / "bin"

    @property
    def volumes(self) -> Path:
        return self.cluster / "volumes"
