"""The definition of jobs, on an API server of a test."""

from pathlib import Path

from devcluster.kubectl import Kubectl
from devcluster.waiting import wait_until

CRD = Path(__file__).parents[2] / "crds" / "lmtrainingjobs.lmtraining.dev.yaml"
ANSWER_SECONDS_MAX = 30


def define_jobs(kubectl: Kubectl) -> None:
    """Apply it, and wait until the server answers for jobs. (`kubectl wait` fails where the
    definition has no conditions yet.)"""
    kubectl.run("apply", "--server-side", "--filename", str(CRD))
    wait_until(
        "the API server serves lmtrainingjobs",
        lambda: kubectl.try_run("get", "lmtj").returncode == 0,
        limit_seconds=ANSWER_SECONDS_MAX,
    )
