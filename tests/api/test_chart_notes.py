"""What the chart's notes tell somebody to paste and to type, pasted and typed."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from devcluster import binaries
from devcluster.kubectl import Kubectl
from devcluster.paths import Layout

pytestmark = pytest.mark.api

CHART = Path(__file__).resolve().parents[2] / "charts" / "lm-training-operator"
HELM_SECONDS_MAX = 60


def test_the_job_and_the_commands_of_the_notes(kubectl: Kubectl, tmp_path: Path) -> None:
    program = binaries.ensure(["helm"], Layout.from_environment())["helm"]
    done = subprocess.run(
        [str(program), "install", "lm", str(CHART), "--dry-run=client"],
        capture_output=True, text=True, check=True, timeout=HELM_SECONDS_MAX,
    )  # fmt: skip
    notes = done.stdout.partition("NOTES:")[2]
    job = tmp_path / "tiny-gpt.yaml"
    job.write_text("apiVersion:" + notes.partition("apiVersion:")[2].partition("\n\n")[0])
    commands = [shlex.split(line) for line in re.findall(r"^  kubectl (.*)$", notes, re.MULTILINE)]
    assert [command[0] for command in commands] == ["apply", "get", "describe"]
    known = {"tiny-gpt.yaml": str(job), "--watch": "--watch=false"}  # which would never end
    said = [kubectl.run(*(known.get(word, word) for word in command)) for command in commands]
    assert "created" in said[0]
    assert said[1].splitlines()[0].startswith("NAME")
    assert "Budget" in said[2]
