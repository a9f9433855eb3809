"""How long `kubectl lmtrain` takes to the screen, beside `kubectl get` and the import of a client.

A real API server with one job; the median and the slowest of `RUNS` runs of each command, from the
start of the process to its end.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from devcluster import binaries
from devcluster.apiserver import ApiServer
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout
from devcluster.waiting import wait_until
from lmtraining_api.history import Point
from lmtraining_cli.report import Content, page

RUNS = 7
REPORT_STEPS = 100_000
ROOT = Path(__file__).resolve().parents[1]
CRD = ROOT / "crds" / "lmtrainingjobs.lmtraining.dev.yaml"
JOB = "tiny-gpt"


def main() -> None:
    program = binaries.ensure(["kubectl"], Layout.from_environment())["kubectl"]
    with (
        tempfile.TemporaryDirectory() as directory,
        ApiServer(Path(directory)) as server,
    ):
        kubectl = Kubectl(program, server.kubeconfig)
        kubectl.run("apply", "--server-side", "--filename", str(CRD))
        wait_until(
            "the CRD is served",
            lambda: kubectl.try_run("get", "lmtj").returncode == 0,
            limit_seconds=30,
        )
        kubectl.apply(yaml.safe_load((ROOT / "examples" / "tiny-gpt.yaml").read_text()))
        environment = os.environ | {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "KUBECONFIG": str(server.kubeconfig),
        }
        plugin = [sys.executable, "-m", "lmtraining_cli"]
        commands = {
            "kubectl get lmtj": [str(program), "get", "lmtj"],
            "python -c 'import kubernetes'": [sys.executable, "-c", "import kubernetes"],
            "lmtrain --help": [*plugin, "--help"],
            "lmtrain status": [*plugin, "status", JOB],
            "lmtrain why": [*plugin, "why", JOB],
            "lmtrain list": [*plugin, "list"],
            "lmtrain logs": [*plugin, "logs", JOB],
            "lmtrain version": [*plugin, "version"],
            "lmtrain validate": [*plugin, "validate", str(ROOT / "examples" / "tiny-gpt.yaml")],
            "lmtrain report": [*plugin, "report", JOB, "-o", f"{directory}/report.html"],
        }
        for name, command in commands.items():
            seconds = sorted(_seconds(command, environment) for _ in range(RUNS))
            _say(f"{name:<32} {statistics.median(seconds):.2f} s  (slowest {seconds[-1]:.2f} s)")
    began = time.perf_counter()
    size = len(_long_report().encode())
    _say(
        f"report of {REPORT_STEPS} steps: {size / 1000:.0f} KB, {time.perf_counter() - began:.2f} s"
    )


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    return time.perf_counter() - began


def _long_report() -> str:
    """Every step a point, as no history has it."""
    now = datetime.now(UTC)
    points = [
        Point(step=step, time=now, loss=8 / step**0.2, learning_rate=6e-4,
              gradient_norm=1 + step % 7, tokens_per_second=24_000 + step % 100)
        for step in range(1, REPORT_STEPS + 1)
    ]  # fmt: skip
    return page(Content(name="long", state="Completed", made=now, points=points))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
