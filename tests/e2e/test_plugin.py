"""`kubectl lmtrain` on a real cluster: ranks through the pod proxy, the curve out of the logs,
a report of a job that has ended, and one whose pods are gone."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from devcluster.kubectl import Kubectl
from tests.e2e.jobs import STEPS, Watcher, job

pytestmark = pytest.mark.e2e

COMMAND_SECONDS_MAX = 60


def start(kubectl: Kubectl, *arguments: str) -> subprocess.Popen[str]:
    """`kubectl lmtrain`, as a user calls it."""
    programs = f"{Path(sys.executable).parent}:{kubectl.binary.parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [str(kubectl.binary), "lmtrain", *arguments, f"--kubeconfig={kubectl.kubeconfig}",
         f"--namespace={kubectl.namespace}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": programs, "COLUMNS": "140"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """What it said."""
    output, errors = process.communicate(timeout=COMMAND_SECONDS_MAX)
    assert process.returncode == 0, errors
    return output


def lmtrain(kubectl: Kubectl, *arguments: str) -> str:
    return finish(start(kubectl, *arguments))


def test_a_run_is_seen_from_its_first_step_to_after_its_end(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.apply(job("seen", training__budget={"steps": 2 * STEPS}))
    watcher = Watcher(kubectl, "seen")
    watcher.wait_for_step(40)
    shown = json.loads(lmtrain(kubectl, "status", "seen", "-o", "json"))
    assert [rank["rank"] for rank in shown["ranks"]] == [0, 1]
    assert shown["notShown"] == []
    assert shown["curve"][0]["loss"] > 1.0
    assert "seen-1-1-0" in lmtrain(kubectl, "status", "seen")
    assert "nothing is wrong" in lmtrain(kubectl, "why", "seen")
    followed = start(kubectl, "logs", "seen", "--follow")
    assert followed.stdout is not None
    heard = next(line for line in followed.stdout if line.startswith("[1/1] "))
    kubectl.run("delete", "pod", "seen-1-1-0", "--force", "--grace-period=0")
    ended = watcher.wait_for_end()
    assert watcher.reason() == "Completed", watcher.message()
    logs = heard + followed.stdout.read()
    assert followed.wait(COMMAND_SECONDS_MAX) == 0
    assert len(json.loads(lmtrain(kubectl, "status", "seen", "-o", "json"))["curve"]) > 1
    for who in ("[1/0] ", "[1/1] ", "[1/1.1] "):
        assert who in logs, "following goes on with the pod in the place of the lost one"
    assert "training loss" in lmtrain(kubectl, "watch", "seen")

    page = tmp_path / "seen.html"
    lmtrain(kubectl, "report", "seen", "--output", str(page))
    text = page.read_text()
    assert text.count("<polyline") >= 4
    assert ended.checkpoint is not None
    assert ended.checkpoint.sha256 in text
    assert "Not in this report" not in text

    archive = tmp_path / "seen.zip"
    lmtrain(kubectl, "report", "seen", "--bundle", "--output", str(archive))
    with zipfile.ZipFile(archive) as found:
        assert {"job.json", "events.json", "report.html"} < set(found.namelist())
        assert b"figures step=" in found.read("logs/seen-1-0-0.log")

    kubectl.run("delete", "pods", "--all", "--wait=true")
    said = lmtrain(kubectl, "report", "seen", "--output", str(page))
    assert "its pods are gone" in said
    assert ended.checkpoint.sha256 in page.read_text()
