"""A gang of two pods with real ranks, without a cluster, and what tests ask of it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lmtraining_api import TrainerReport
from lmtraining_api.records import gang_digest
from tests.trainer.supervisor_pods import Pod, corpus, free_port, spec, until

STEPS = 100_000
"""More than any test waits for."""

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


def until_round(lead: Pod, number: int) -> TrainerReport:
    """The report of the first step of that round."""

    def look() -> TrainerReport | None:
        report = lead.report()
        if report is None or report.round < number or report.first_step_time is None:
            return None
        return report

    return until(look, f"round {number}; the log:\n{lead.log.read_text()[-3000:]}")


def until_gang(lead: Pod, *gang: Pod) -> TrainerReport:
    """The report of the first step of exactly these pods."""
    digest = gang_digest(pod.uid for pod in gang)

    def look() -> TrainerReport | None:
        report = lead.report()
        trains = report is not None and report.first_step_time is not None
        return report if report is not None and trains and report.gang == digest else None

    return until(look, f"a step; the log:\n{lead.log.read_text()[-3000:]}")


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


def successor_of(pod: Pod, replaced: int = 1) -> Pod:
    """A pod of the same replica and attempt, as the operator makes it."""
    words = pod.command
    return Pod(
        pod.home.parent,
        None,
        json.loads((pod.home / "job.json").read_text())["spec"],
        replica=pod.replica,
        rendezvous_port=int(words[words.index("--rendezvous-port") + 1]),
        report_port=pod.port,
        replaced=replaced,
    )


def replaced_pod(lost: Pod, survivor: Pod, replaced: int = 1) -> Pod:
    """What the operator does: tell who is left, make a pod, tell both."""
    lost.process.wait()
    survivor.intend(survivor)
    successor = successor_of(lost, replaced)
    successor.start()
    for pod in (survivor, successor):
        pod.intend(survivor, successor)
    return successor


def reaped(*gang: Pod) -> None:
    for pod in gang:
        for process in pod.processes():
            os.kill(process, signal.SIGKILL)
        pod.process.wait()
