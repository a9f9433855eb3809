"""One job in a whole world: API server, cluster, trainers, network and operator, from one seed.

Promise: equal seeds and equal faults make equal lives, event for event, so what a seed has shown
can be looked at again.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from lmtraining_api import names as api
from lmtraining_operator.gateway import Object
from tests.simulation.clock import VirtualLoop
from tests.simulation.cluster import Cluster
from tests.simulation.network import Network
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.server import TERMINAL, ApiServer, Change, attempt_of
from tests.simulation.trainers import Trainers

NAME, NAMESPACE = "tiny", "team"
JOB = (api.KIND, NAME)
PERSON = "person"
STEPS = 8
PHASES = (
    "Pending",
    "Starting",
    "Training",
    "Saving",
    "Recovering",
    "Suspended",
    "Ending",
    "Ended",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The job, and the cluster it meets."""

    replicas: int = 2
    waits_in_place: bool = True
    """Whether the trainer image knows how to wait for a replaced pod."""
    restarts_max: int = 100
    backoff_seconds: int = 1
    grace_seconds: int = 20
    detect_seconds: float = 20.0
    """From the loss of a node until its pods are told to go."""

    def job(self) -> Object:
        return {
            "apiVersion": api.API_VERSION,
            "kind": api.KIND,
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2}},
                "data": {"train": [{"uri": "file:///data/*.txt"}], "sequenceLength": 64},
                "training": {"budget": {"steps": STEPS}, "batchTokens": 64 * self.replicas},
                "workers": {"replicas": self.replicas},
                "recovery": {
                    "restartsMax": self.restarts_max,
                    "backoffSeconds": self.backoff_seconds,
                    "graceSeconds": self.grace_seconds,
                },
            },
        }


class World:
    """Everything, and what is seen of it."""

    def __init__(self, loop: VirtualLoop, shape: Shape, seed: int) -> None:
        self.shape, self._loop, self._seed = shape, loop, seed
        loop.set_exception_handler(lambda _, context: self._failed(context))
        self.story: list[tuple[float, str]] = []
        self.violations: list[str] = []
        self.clock_jump_seconds = 0.0
        self.phase = ""
        self.phase_listeners: list[Callable[[str], None]] = []
        self.server = ApiServer(self.now)
        self.server.listeners.append(self._tell_change)
        self.trainers = Trainers(self, self.random("trainers"), waits_in_place=shape.waits_in_place)
        self.cluster = Cluster(self, self.random("cluster"), detect_seconds=shape.detect_seconds)
        self.network = Network(self, self.random("network"))
        self.operator = OperatorProcess(self, self.random("operator"))
        self.server.listeners.append(lambda _: self.phase_may_have_changed())

    def random(self, part: str) -> Random:
        """Each part draws from a source of its own, so that one more fault changes little."""
        return Random(f"{self._seed}/{part}")

    # --- time and story -----------------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    def later(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_later(seconds, what, *arguments)

    def tell(self, text: str) -> None:
        self.story.append((self._loop.time(), text))

    def violated(self, text: str) -> None:
        """A promise is broken; once is enough to be told."""
        if text not in self.violations:
            self.tell(f"VIOLATED: {text}")
            self.violations.append(text)

    def _failed(self, context: dict[str, Any]) -> None:
        """The simulation itself, or a task of the operator, has raised."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.violated(f"{context['message']}: {trace}")

    def _tell_change(self, change: Change) -> None:
        """A line for each write; a status is told by what it says in short."""
        if change.kind == "Event":
            return
        said = f"  {change.actor}: {change.type.lower()} {change.kind} {change.name}"
        if change.kind == api.KIND:
            status = change.object.get("status", {})
            said += f" ({status.get('attempt', 0)}, {reason(change.object)})"
        elif change.kind == "Pod":
            is_going = "deletionTimestamp" in change.object["metadata"]
            said += f" ({change.object['status']['phase']}{', going' if is_going else ''})"
        self.tell(said)

    # --- what is ------------------------------------------------------------------------------

    @property
    def job(self) -> Object | None:
        return self.server.objects.get(JOB)

    @property
    def status(self) -> Object:
        return (self.job or {}).get("status", {})

    def pods(self) -> list[Object]:
        """The job's pods, of whichever life; foreign ones are not among them."""
        return [p for p in self.server.of_kind("Pod") if p["metadata"].get("ownerReferences")]

    def live_pods(self) -> list[Object]:
        return [pod for pod in self.pods() if pod["status"]["phase"] not in TERMINAL]

    def phase_may_have_changed(self) -> None:
        phase = self._phase()
        if phase != self.phase:
            self.phase = phase
            self.tell(f"-- {phase or 'no job'}")
            for listener in self.phase_listeners:
                listener(phase)

    def _phase(self) -> str:
        """Where the job is, by the truth and not by what its status says of it."""
        job = self.job
        if job is None:
            return ""
        if is_terminal(job):
            return "Ended"
        run = self.trainers.runs.get(job["metadata"]["uid"])
        if run is not None and run.finished:
            return "Ending"
        if job["spec"].get("suspend"):
            return "Suspended"
        if run is not None and run.gang is not None:
            return _PHASE_OF_STATE[run.gang.state]
        return self._phase_of_pods(job.get("status", {}))

    def _phase_of_pods(self, status: Object) -> str:
        """The same while nothing trains."""
        attempt = status.get("attempt")
        if attempt and (status.get("lastFailure") or {}).get("attempt") == attempt:
            return "Recovering"
        running = [
            pod
            for pod in self.live_pods()
            if attempt_of(pod) == attempt and pod["status"]["phase"] == "Running"
        ]
        return "Starting" if len(running) >= self.shape.replicas else "Pending"


_PHASE_OF_STATE = {
    "Starting": "Starting",
    "Training": "Training",
    "Checkpointing": "Saving",
    "Stopping": "Saving",
    "Exporting": "Ending",
}


def condition(job: Object, kind: str) -> Object:
    conditions = job.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def reason(job: Object) -> str:
    """The state of the job, in a word."""
    return str(condition(job, "Succeeded").get("reason", "New"))


def is_terminal(job: Object) -> bool:
    return condition(job, "Succeeded").get("status", "Unknown") != "Unknown"
