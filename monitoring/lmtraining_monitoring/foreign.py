"""Metrics of others that our alerts and boards use: NVIDIA's exporter, kube-state-metrics, kubelet.

Promise: a query may name what is here or in our own registries, and nothing else; a cluster without
these exporters loses those panels and alerts alone, and each panel says so.
Trap avoided: NVIDIA's exporter names the pod that holds a device `pod` or `exported_pod`, as its
scraper honours labels or not. Queries here take both.
"""

from collections.abc import Mapping
from typing import Final

#: Labels that Prometheus adds to what it scrapes, as its operator sets them.
TARGET_LABELS: Final = frozenset({"job", "instance", "namespace", "pod", "container"})

_DEVICE = frozenset({"gpu", "UUID", "modelName", "Hostname", "exported_pod", "exported_namespace"})
_CLAIM = frozenset({"persistentvolumeclaim", "node"})

METRICS: Final[Mapping[str, frozenset[str]]] = {
    "DCGM_FI_DEV_GPU_UTIL": _DEVICE,
    "DCGM_FI_DEV_XID_ERRORS": _DEVICE,
    "kubelet_volume_stats_available_bytes": _CLAIM,
    "kubelet_volume_stats_capacity_bytes": _CLAIM,
    "kube_pod_spec_volumes_persistentvolumeclaims_info": _CLAIM | {"volume"},
}

_RENAMED = 'exported_pod!=""'
_AS_IS = 'exported_pod="", pod!=""'


def of_device(expr: str) -> str:
    """A query on NVIDIA's exporter, with the pod that holds the device in `namespace` and `pod`.

    `expr` has SELECTOR where its metrics are selected.
    """
    renamed = expr.replace("SELECTOR", _RENAMED)
    for label in ("pod", "namespace"):
        renamed = f'label_replace({renamed}, "{label}", "$1", "exported_{label}", "(.+)")'
    return f"({renamed}\n  or {expr.replace('SELECTOR', _AS_IS)})"


def of_job(expr: str) -> str:
    """What is known by pod, of our trainers' pods alone and with the names of their job."""
    return (
        f"{expr}\n  * on (namespace, pod) group_left (job_namespace, job_name) "
        "max by (namespace, pod, job_namespace, job_name) (lmtraining_attempt > bool 0)"
    )
