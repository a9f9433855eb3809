"""A directory in which someone types commands, for the tests of the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.trainer.supervisor_pods import ROOT, session_processes, spec, until

CLI = [sys.executable, "-m", "lmtraining_trainer"]
SECONDS_MAX = 240.0


class Terminal:
    """A directory in which someone types commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def job(self, job_spec: dict[str, Any] | None = None, name: str = "tiny") -> Path:
        document = {
            "apiVersion": "lmtraining.dev/v1alpha1",
            "kind": "LMTrainingJob",
            "metadata": {"name": name},
            "spec": job_spec or spec(),
        }
        path = self.directory / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def command(self, *words: str, fake: str | None = None) -> list[str]:
        faked = ["--rank-function", f"tests.trainer.supervisor_ranks:{fake}"] if fake else []
        return [*CLI, *words, *faked]

    def start(self, *words: str, fake: str | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words, fake=fake),
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        output, _ = process.communicate(timeout=SECONDS_MAX)
        until(lambda: not session_processes(process.pid), "no process left")
        return process.returncode, output

    def type(self, *words: str, fake: str | None = None) -> tuple[int, str]:
        return self.finish(self.start(*words, fake=fake))

    def without_torch(self) -> Path:
        """Put a torch first that only leaves a trace; the trace."""
        trace, modules = self.directory / "torch-was-imported", self.directory / "modules"
        modules.mkdir()
        (modules / "torch.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
        self.environment["PYTHONPATH"] = f"{modules}:{ROOT}"
        return trace

    @property
    def run(self) -> Path:
        return self.directory / "runs" / "tiny"


def journal(run: Path) -> list[dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
