"""The supervisor: PID 1 of a pod, or the one process of a local run."""

from lmtraining_trainer.supervisor.local import LocalRun, run_locally
from lmtraining_trainer.supervisor.pod import PodFiles, PodPorts, supervise_pod

__all__ = ["LocalRun", "PodFiles", "PodPorts", "run_locally", "supervise_pod"]
