"""A run of an MLflow server, by its REST API, version 2.0.

Promise: one run for each job UID, whichever attempt speaks: it is found by a tag before it is made.
How far the server was told is a tag too, written by the request that told it, so that no other
record of it can be lost or wrong. A request that the server has obeyed but not answered is sent
again with the same times, steps and values, which the server's database keeps once.
Trap avoided: MLflow refuses a whole batch for one parameter whose value has changed, as a raised
budget has; so parameters are told once, with the first figures. (Its own client takes 3 s of a core
to import and 60 MB of the image, for these six requests.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lmtraining_api import JobFile, names
from lmtraining_api.history import RunHistory
from lmtraining_trainer.tracking.run import Status, parameters
from lmtraining_trainer.tracking.server import Server, TrackerError
from lmtraining_trainer.unsent import Position, Reading, unsent

API = "/api/2.0/mlflow"
UID_TAG = names.LABEL_JOB_UID
POSITION_TAG = f"{names.GROUP}/position"
#: The server takes 1,000 metrics in a request.
READINGS_MAX = 150


@dataclass
class MlflowRun:
    """The run of a job."""

    server: Server
    job: JobFile
    experiment: str
    _run_id: str = ""
    _position: Position | None = None
    _status: Status | None = None
    _experiment_id: str = field(default="", repr=False)

    def follow(self, history: RunHistory) -> int:
        """Tell what is new; how many steps that were. Raises TrackerError."""
        self._open()
        told = 0
        while True:
            known = self._position or Position()
            readings, position = unsent(history, known, readings_max=READINGS_MAX)
            if not readings:
                return told
            self._tell(readings, position, is_first=self._position is None)
            self._position = position
            told += len(readings)

    def turn(self, status: Status) -> None:
        """Let the run have that status. Raises TrackerError."""
        self._open()
        if status == self._status:
            return
        change: dict[str, Any] = {"run_id": self._run_id, "status": status}
        if status in ("FINISHED", "FAILED"):
            change["end_time"] = _milliseconds(datetime.now(UTC))
        self.server.post(f"{API}/runs/update", change)
        self._status = status

    def _open(self) -> None:
        """Find the run, or make it. Raises TrackerError."""
        if self._run_id:
            return
        try:
            self._find()
        except (LookupError, TypeError, AttributeError) as error:
            raise TrackerError("what answers there is not MLflow: correct it") from error

    def _find(self) -> None:
        """Raises LookupError, TypeError or AttributeError too, where an answer is not MLflow's."""
        self._experiment_id = self._experiment_id or self._find_experiment()
        found = self.server.post(
            f"{API}/runs/search",
            {
                "experiment_ids": [self._experiment_id],
                "filter": f"tags.`{UID_TAG}` = '{self.job.job_uid}'",
                "max_results": 1,
            },
        )
        runs = found.get("runs") or [self._made()]
        self._take(runs[0])

    def _take(self, run: Mapping[str, Any]) -> None:
        tags = {tag["key"]: tag["value"] for tag in run.get("data", {}).get("tags", [])}
        try:
            self._position = Position.model_validate_json(tags.get(POSITION_TAG, ""))
        except ValueError:
            self._position = None
        self._run_id = str(run["info"]["run_id"])

    def _made(self) -> Mapping[str, Any]:
        tags = {UID_TAG: self.job.job_uid, f"{names.GROUP}/namespace": self.job.namespace}
        body = {
            "experiment_id": self._experiment_id,
            "run_name": self.job.job_name,
            "start_time": _milliseconds(datetime.now(UTC)),
            "tags": _pairs(tags),
        }
        run: Mapping[str, Any] = self.server.post(f"{API}/runs/create", body)["run"]
        return run

    def _find_experiment(self) -> str:
        try:
            found = self.server.get(
                f"{API}/experiments/get-by-name", experiment_name=self.experiment
            )
            return str(found["experiment"]["experiment_id"])
        except TrackerError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        made = self.server.post(f"{API}/experiments/create", {"name": self.experiment})
        return str(made["experiment_id"])

    def _tell(self, readings: Sequence[Reading], position: Position, *, is_first: bool) -> None:
        metrics = [
            {"key": name, "value": value, "step": one.step, "timestamp": _milliseconds(one.time)}
            for one in readings
            for name, value in one.values.items()
        ]
        self.server.post(
            f"{API}/runs/log-batch",
            {
                "run_id": self._run_id,
                "metrics": metrics,
                "params": _pairs(parameters(self.job)) if is_first else [],
                "tags": _pairs({POSITION_TAG: position.model_dump_json()}),
            },
        )


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
