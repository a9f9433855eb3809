"""What a caller needs to know of a running cluster."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up: `kubeconfig` of the administrator, `registry` as host:port that the
    nodes pull from, `binaries` a directory with kubectl, helm and the other programs, the name of
    the `node` that runs pods, and the log with every write by user (None where kind runs it).
    """

    kubeconfig: Path
    registry: str
    binaries: Path
    node: str
    audit_log: Path | None

    def binary(self, name: str) -> Path:
        """The path of one of the cluster's programs, such as kubectl."""
        return self.binaries / name
