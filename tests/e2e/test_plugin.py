"""`kubectl lmtrain` on a real cluster: ranks through the pod proxy, the curve out of the pods' logs,
a report of a job that has ended, and one whose pods are gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devcluster.kubectl import Kubectl
from tests.e2e.jobs import Watcher, job

pytestmark = pytest.mark.e2e

COMMAND_SECONDS_MAX = 60


def lmtrain(kubectl: Kubectl, *arguments: str) -> str:
    """What `kubectl lmtrain` says; through kubectl, as a user calls it."""
    programs = f"{Path(sys.executable).parent}:{kubectl.binary.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(kubectl.binary), "lmtrain", *arguments, f"--kubeconfig={kubectl.kubeconfig}",
         f"--namespace={kubectl.namespace}"],
        capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX,
        stdin=subprocess.DEVNULL, env=os.environ | {"PATH": programs, "COLUMNS": "140"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_is_seen_from_its_first_step_to_after_its_end(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.apply(job("seen"))
    watcher = Watcher(kubectl, "seen")
    watcher.wait_for_step(100)
    shown = json.loads(lmtrain(kubectl, "status", "seen", "-o", "json"))
    assert [rank["rank"] for rank in shown["ranks"]] == [0, 1]
    assert shown["notShown"] == []
    assert len(shown["curve"]) > 1
    assert "seen-1-1-0" in lmtrain(kubectl, "status", "seen")
    assert "nothing is wrong" in lmtrain(kubectl, "why", "seen")
    ended = watcher.wait_for_end()
    logs = lmtrain(kubectl, "logs", "seen", "--follow")
    assert "[1/0] " in logs
    assert "[1/1] " in logs

    page = tmp_path / "seen.html"
    lmtrain(kubectl, "report", "seen", "--output", str(page))
    text = page.read_text()
    assert text.count("<polyline") >= 4
    assert ended.checkpoint is not None
    assert ended.checkpoint.sha256 in text
    assert "Not in this report" not in text

    kubectl.run("delete", "pods", "--all", "--wait=true")
    said = lmtrain(kubectl, "report", "seen", "--output", str(page))
    assert "its pods are gone" in said
    assert ended.checkpoint.sha256 in page.read_text()
