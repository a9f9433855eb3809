"""A real MLflow server on loopback, with its own database, and runs as its client reads them.

It is the application that `mlflow server` serves, without that command's other services, which need
ten times the packages.
Promise: it can be stopped and started again at the same address, as in an outage.
"""

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from devcluster.apiserver import free_ports
from devcluster.waiting import wait_until

START_SECONDS_MAX = 240
STOP_SECONDS_MAX = 20
#: No reports to its makers.
SETTINGS = {"MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass
class MlflowServer:
    """One server; it does not run before `start`."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        application = ("-m", "flask", "--app", "mlflow.server:app", "run")
        command = [sys.executable, *application, "--host=127.0.0.1", f"--port={self.port}"]
        settings = SETTINGS | {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/runs.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.folder / "artifacts"),
        }
        log = self.folder / "mlflow.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | settings
            )
        wait_until("MLflow answers", self._answers, limit_seconds=START_SECONDS_MAX, hint=str(log))

    def stop(self) -> None:
        """Harmless when it does not run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_SECONDS_MAX)
            self._process = None

    def runs(self, experiment: str) -> list[Run]:
        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(experiment)
        return list(client.search_runs([found.experiment_id])) if found else []

    def curve(self, run: Run, name: str) -> list[tuple[int, float]]:
        """Step and value of everything that was told, by step."""
        history = MlflowClient(self.uri).get_metric_history(run.info.run_id, name)
        return sorted((one.step, one.value) for one in history)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "MLflow has ended"
        asks_database = f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1"
        try:
            with urllib.request.urlopen(asks_database, timeout=START_SECONDS_MAX) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
