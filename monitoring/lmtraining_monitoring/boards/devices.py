"""GPUs and nodes: are the devices that jobs hold used, and well?

Needs NVIDIA's exporter for the devices, and the kubelet's metrics for processors and memory; each
panel says so where it is empty.
"""

from typing import Final

from grafana_foundation_sdk.models import units

from lmtraining_monitoring.boards.board import Board, Panel, Row, lines
from lmtraining_monitoring.boards.queries import MANY, MANY_JOBS
from lmtraining_monitoring.foreign import of_device, of_job

NO_EXPORTER: Final = "no data: NVIDIA's exporter (DCGM) is not scraped, or no job holds a GPU"
NO_KUBELET: Final = "no data: the kubelet's cAdvisor is not scraped"
NO_STATE: Final = "no data: kube-state-metrics is not scraped"
GPU: Final = "{{job_name}} {{pod}} GPU {{gpu}}"


def gpu(title: str, unit: str, description: str, metric: str, *, scale: str = "") -> Panel:
    """A gauge of NVIDIA's exporter by device."""
    expr = of_job(of_device(f"{metric}{{SELECTOR}}"), MANY)
    asked = f"max by (job_name, pod, gpu) (\n  {expr}\n){scale}"
    return lines(title, unit, description, {GPU: asked}, empty=NO_EXPORTER)


def pods(title: str, unit: str, description: str, expr: str, *, empty: str = NO_KUBELET) -> Panel:
    """Something that is known of every pod."""
    asked = f"max by (job_name, pod) (\n  {of_job(expr, MANY)}\n)"
    return lines(title, unit, description, {"{{job_name}} {{pod}}": asked}, empty=empty)


USE: Final = Row(
    title="Are the GPUs used?",
    panels=(
        gpu(
            "Busy",
            units.Percent,
            "Share of time in which any kernel ran. High says little; low says much.",
            "DCGM_FI_DEV_GPU_UTIL",
        ),
        gpu(
            "Tensor cores",
            units.PercentUnit,
            "Share of cycles in which they worked: the best single "
            "figure of how well a model uses a GPU.",
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        ),
        gpu(
            "Memory bandwidth",
            units.PercentUnit,
            "Share of cycles in which memory was read or written.",
            "DCGM_FI_PROF_DRAM_ACTIVE",
        ),
        gpu(
            "Memory used",
            units.BytesIEC,
            "Of the GPU.",
            "DCGM_FI_DEV_FB_USED",
            scale=" * 1024 * 1024",
        ),
        gpu(
            "Memory free",
            units.BytesIEC,
            "Of the GPU.",
            "DCGM_FI_DEV_FB_FREE",
            scale=" * 1024 * 1024",
        ),
        gpu(
            "NVLink",
            units.BytesPerSecondSI,
            "Sent and received.",
            "DCGM_FI_PROF_NVLINK_TX_BYTES",
        ),
    ),
)
HEALTH: Final = Row(
    title="Are they well?",
    panels=(
        gpu("Power", units.Watt, "Drawn now.", "DCGM_FI_DEV_POWER_USAGE"),
        gpu(
            "Temperature",
            units.Celsius,
            "Near the limit, the clock goes down.",
            "DCGM_FI_DEV_GPU_TEMP",
        ),
        gpu(
            "Clock",
            units.Hertz,
            "Of the processors.",
            "DCGM_FI_DEV_SM_CLOCK",
            scale=" * 1000 * 1000",
        ),
        gpu(
            "Last error (XID)",
            units.NoUnit,
            "0: none since the driver was loaded.",
            "DCGM_FI_DEV_XID_ERRORS",
        ),
        gpu(
            "PCIe replays",
            units.Short,
            "Since the driver was loaded; a number that grows is a bad link.",
            "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
        ),
        gpu(
            "Remapped rows",
            units.Short,
            "Memory rows replaced after errors that could not be corrected.",
            "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        ),
    ),
)
NODES: Final = Row(
    title="Processors, memory, volumes",
    panels=(
        pods(
            "CPU",
            units.Short,
            "Cores that each pod uses.",
            'sum by (namespace, pod) (rate(container_cpu_usage_seconds_total{container!=""}'
            "[$__rate_interval]))",
        ),
        pods(
            "Memory",
            units.BytesIEC,
            "Working set of each pod, shared memory included.",
            'sum by (namespace, pod) (container_memory_working_set_bytes{container!=""})',
        ),
        lines(
            "Room on volumes",
            units.PercentUnit,
            "Left on the claims that trainer pods have mounted.",
            {
                "{{namespace}}/{{persistentvolumeclaim}}": "kubelet_volume_stats_available_bytes "
                "/ kubelet_volume_stats_capacity_bytes\n"
                "  and on (namespace, persistentvolumeclaim) (\n"
                "    kube_pod_spec_volumes_persistentvolumeclaims_info\n"
                f"      and on (namespace, pod) lmtraining_attempt{{{MANY}}}\n  )"
            },
            empty="no data: the kubelet or kube-state-metrics is not scraped",
        ),
    ),
)
BOARD: Final = Board(
    uid="lmtraining-devices",
    title="Training / GPUs and nodes",
    description="Are the devices that jobs hold used, and are they well?",
    variables=MANY_JOBS,
    rows=(USE, HEALTH, NODES),
)
