"""The operator of a test, a fuzz or a bench never outlives it, however that ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster.apiserver import ApiServer
from devcluster.processes import parse_stat
from devcluster.waiting import wait_until

pytestmark = pytest.mark.api

ROOT = Path(__file__).resolve().parents[3]
LIMIT_SECONDS = 10.0


def test_the_operator_dies_with_the_process_that_started_it(
    api_server: ApiServer, tmp_path: Path
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from types import SimpleNamespace
from tests.api.operator.process import OperatorProcess
server = SimpleNamespace(kubeconfig=Path({str(api_server.kubeconfig)!r}))
operator = OperatorProcess(server, "default", Path({str(tmp_path / "operator.log")!r}))
operator.wait_ready()
print(operator.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    stat = Path(f"/proc/{int(parent.stdout)}/stat")
    wait_until("the operator is gone", lambda: _has_ended(stat), limit_seconds=LIMIT_SECONDS)


def _has_ended(stat: Path) -> bool:
    try:
        state, _ = parse_stat(stat.read_text())
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
