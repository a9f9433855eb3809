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
    **{
        f"DCGM_FI_{name}": _DEVICE
        for name in (
            "DEV_FB_FREE",
            "DEV_FB_USED",
            "DEV_GPU_TEMP",
            "DEV_GPU_UTIL",
            "DEV_PCIE_REPLAY_COUNTER",
            "DEV_POWER_USAGE",
            "DEV_SM_CLOCK",
            "DEV_UNCORRECTABLE_REMAPPED_ROWS",
            "DEV_XID_ERRORS",
            "PROF_DRAM_ACTIVE",
            "PROF_NVLINK_TX_BYTES",
            "PROF_PIPE_TENSOR_ACTIVE",
        )
    },
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    "container_cpu_usage_seconds_total": frozenset({"container"}),
    "container_memory_working_set_bytes": frozenset({"container"}),
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


def of_job(expr: str, selector: str = "") -> str:
    """What is known by pod, of our trainers' pods alone and with the names of their job."""
    trainers = f"lmtraining_attempt{{{selector}}}" if selector else "lmtraining_attempt"
    return (
        f"{expr}\n  * on (namespace, pod) group_left (job_namespace, job_name) "
        f"max by (namespace, pod, job_namespace, job_name) ({trainers} > bool 0)"
    )
