"""Installs lm-training-operator from this checkout: images, then the Helm chart.

Promise: the demo and the end-to-end tests install exactly what a user installs, through the chart;
doing it again changes nothing that is up to date.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from devcluster.cluster import Cluster
from devcluster.errors import DevclusterError
from devcluster.images import ensure_image
from devcluster.kubectl import Kubectl

CHART = Path(__file__).resolve().parent.parent / "charts" / "lm-training-operator"
RELEASE = "lm-training-operator"
NAMESPACE = "lmtraining-system"
INSTALL_SECONDS_MAX = 180
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/warn": "restricted",
}


@dataclass(frozen=True)
class Product:
    """The installed product."""

    kubectl: Kubectl
    operator_image: str
    trainer_image: str


def install(cluster: Cluster) -> Product:
    """Build and push what is missing, install or upgrade the chart, wait until it answers."""
    operator = ensure_image("operator")
    trainer = ensure_image("trainer")
    kubectl = Kubectl(cluster.binary("kubectl"), cluster.kubeconfig)
    ensure_namespace(kubectl, NAMESPACE)
    _helm(
        cluster,
        "upgrade", "--install", RELEASE, str(CHART),
        "--namespace", NAMESPACE,
        "--set", f"image.repository={operator.repository}",
        "--set", f"image.tag={operator.tag}",
        "--set", f"trainerImage.repository={trainer.repository}",
        "--set", f"trainerImage.tag={trainer.tag}",
        # On one node a second operator would be lost with the first, and its room is for jobs.
        "--set", "replicas=1",
        # On a small node that jobs have filled, an upgraded operator must still find its place.
        "--set", "priorityClassName=system-cluster-critical",
        "--wait", "--timeout", f"{INSTALL_SECONDS_MAX}s",
    )  # fmt: skip
    return Product(kubectl, str(operator), str(trainer))


def ensure_namespace(kubectl: Kubectl, name: str) -> None:
    """A namespace that enforces the restricted pod security level."""
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": RESTRICTED},
        }
    )


def _helm(cluster: Cluster, *arguments: str) -> None:
    result = subprocess.run(
        [str(cluster.binary("helm")), "--kubeconfig", str(cluster.kubeconfig), *arguments],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS_MAX + 30,
        check=False,
    )
    if result.returncode != 0:
        raise DevclusterError(f"helm {arguments[0]}: {result.stderr.strip() or result.stdout}")
