"""A gang of two pods with real ranks, without a cluster, and what tests ask of it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lmtraining_api import TrainerReport
from tests.trainer.supervisor_pods import Pod, corpus, free_port, spec, until

STEPS = 100_000
"""More than any test waits for."""
UNDISTURBED_STEPS = 150

Tensors = dict[str, torch.Tensor]


def gang_of_two(
    directory: Path, attempt: int = 1, stability: dict[str, int] | None = None, **training: Any
) -> tuple[Pod, Pod]:
    job = spec(corpus(directory / "corpus"), replicas=2)
    job["training"] |= training
    job["stability"] |= stability or {}
    port, report_port = free_port(), free_port()
    lead, other = (
        Pod(
            directory,
            None,
            job,
            attempt=attempt,
            replica=replica,
            rendezvous_port=port,
            report_port=report_port,
        )
        for replica in (0, 1)
    )
    return lead, other


def start(lead: Pod, other: Pod) -> None:
    """Fire the starting gun."""
    for pod in (lead, other):
        pod.intend(lead, other)


def until_step(lead: Pod, step: int) -> TrainerReport:
    """The report of that step or a later one."""

    def look() -> TrainerReport | None:
        report = lead.report()
        return report if report is not None and report.step >= step else None

    return until(look, f"step {step}; the log:\n{lead.log.read_text()[-2000:]}")


def saved_step(lead: Pod) -> int | None:
    """The newest intact checkpoint."""
    report = lead.report()
    return report.checkpoint.step if report is not None and report.checkpoint else None


def rank_of(pod: Pod) -> int:
    """The process of the pod's one rank."""
    (rank,) = ranks_of(pod)
    return rank


def ranks_of(pod: Pod) -> list[int]:
    """The processes of the pod's ranks: the children of the fork server."""
    return [
        int(child)
        for process in pod.processes()
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        if process != pod.process.pid
    ]


def exported(pod: Pod) -> Tensors:
    """The weights that its run has given."""
    return load_file(pod.run_directory / "export" / "model.safetensors")
