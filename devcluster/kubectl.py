"""A thin, typed kubectl: what a person would type, with JSON read back.

Promise: a failing command raises with what kubectl said, and nothing waits without a limit.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.errors import DevclusterError

COMMAND_SECONDS_MAX = 120


@dataclass(frozen=True)
class Kubectl:
    """kubectl against one cluster and, if named, one namespace."""

    binary: Path
    kubeconfig: Path
    namespace: str | None = None

    def within(self, namespace: str) -> "Kubectl":
        return Kubectl(self.binary, self.kubeconfig, namespace)

    def try_run(
        self, *arguments: str, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it and return whatever came of it."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        return subprocess.run(
            [str(self.binary), "--kubeconfig", str(self.kubeconfig), *scope, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output; raises DevclusterError with what kubectl said."""
        result = self.try_run(*arguments, stdin=stdin)
        if result.returncode != 0:
            raise DevclusterError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def apply(self, *manifests: Mapping[str, Any]) -> str:
        """`kubectl apply` of objects."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.run("apply", "--filename", "-", stdin=json.dumps(items))

    def get(self, *arguments: str) -> dict[str, Any]:
        """One object or list; raises when it is not there."""
        loaded: dict[str, Any] = json.loads(self.run("get", *arguments, "--output", "json"))
        return loaded

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, or None when it is not there."""
        text = self.run("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind that a label selector picks."""
        picked = ["--selector", selector] if selector else []
        items: list[dict[str, Any]] = self.get(kind, *picked)["items"]
        return items
