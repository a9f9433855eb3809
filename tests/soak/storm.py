"""A kill storm: a real training of two pods, of which one process after another is killed.

Promise: every strike is drawn from (seed, number): which process, in which phase of rank 0, at
which of the instants there, and whether rank 0 stands still meanwhile. A pod that ends is made
good as the operator does it, by another attempt. Nothing is waited for by time.
Trap avoided: a storm that cannot end. Bad luck costs a strike's place, never the strike: a life of
the ranks that does not come by the wanted phase is struck after `LIFE_INSTANTS` of training.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmtraining_api import ExitCode
from lmtraining_trainer.files import write_json
from tests.soak.rank import storm_directory
from tests.soak.watch import Watch, leftovers, result
from tests.trainer.supervisor_pods import Pod, corpus, free_port, pods, spec, until

PROCESSES = ("rank 0", "rank 1", "fork server 0", "fork server 1", "supervisor 0", "supervisor 1")
PROCESS_WEIGHTS = (8, 8, 1, 1, 1, 1)
"""The loss of a pod costs many seconds, that of a rank less than one."""
PHASE_INSTANTS = {
    "Starting": 8,
    "Preparing": 20,
    "Loading": 30,
    "Training": 20,
    "Checkpointing": 90,
    "Evaluating": 3,
}
"""The phases that are aimed at, and among how many of their first instants."""
REWIND_INSTANTS = 12
LIFE_INSTANTS = 20
EXPORT_INSTANTS = 20
STEPS_PER_KILL = 20
STEPS_BESIDE = 60
BATCH_SEQUENCES = 8
BAD_STRETCH = 3
"""Bad batches in a row that lead to a rewind."""
MOMENT_SECONDS = 0.02
GRACE_SECONDS = 30.0
STRIKE_SECONDS_MAX = 300.0
ATTEMPTS_WITHOUT_A_STRIKE_MAX = 3
#: How a pod may end in a storm, by the reason of its record: anything else is a defect.
STORMY = frozenset(
    {"Finished", "Preempted", "PeerLost", "RankKilled", "RankExited", "ForkServerEnded", "Killed"}
)


@dataclass(frozen=True, kw_only=True)
class Strike:
    """What is to be killed, and when."""

    number: int
    process: str
    instants: dict[str, int]
    """By phase, which one; the first that is come by counts."""
    moment_seconds: float
    """Rank 0 goes on for so long before the kill; 0: it stands still."""


@dataclass(kw_only=True)
class Kill:
    """What was killed."""

    number: int
    process: str
    phase: str
    step: int
    attempt: int
    round: int
    time: float
    to_next_step_seconds: float | None = None
    """None where the next kill came first, or no step was left."""


def drawn(seed: int, number: int, kills: int) -> Strike:
    """Strike `number` of the storm. The last tenth falls on the end of the run."""
    choice = random.Random(f"{seed}/{number}")
    if number > kills - max(1, kills // 10):
        instants = {"Exporting": choice.randint(1, EXPORT_INSTANTS), "Finished": 1}
    else:
        phase = choice.choice(list(PHASE_INSTANTS))
        instants = {
            "Rewinding": choice.randint(1, REWIND_INSTANTS),
            "Training": LIFE_INSTANTS,
            phase: choice.randint(1, PHASE_INSTANTS[phase]),
        }
    return Strike(
        number=number,
        process=choice.choices(PROCESSES, PROCESS_WEIGHTS)[0],
        instants=instants,
        moment_seconds=choice.choice([0.0, choice.uniform(0.0, MOMENT_SECONDS)]),
    )


def storm_spec(directory: Path, kills: int) -> dict[str, Any]:
    """A training that keeps, validates, skips and rewinds; all of it small."""
    job = spec(corpus(directory / "corpus"), replicas=2)
    job["model"]["config"]["dropout"] = 0.1  # or the random numbers would not matter
    job["training"]["budget"]["steps"] = STEPS_BESIDE + STEPS_PER_KILL * kills
    job["training"]["evaluation"]["everySteps"] = 7
    job["checkpoint"] = {"everySteps": 5, "keepLast": 2}
    job["stability"] = {"healthySteps": 5, "rewindsMax": 100, "skippedStepsMax": 1000}
    return job


def bad_positions(steps: int) -> list[int]:
    """Where the bad batches begin: single ones, and from time to time as many as are rewound."""
    stretches = range(40, steps, max(60, steps // 6))
    singles = range(25, steps, 50)
    batches = {*singles, *(at + more for at in stretches for more in range(BAD_STRETCH))}
    return [batch * BATCH_SEQUENCES for batch in sorted(batches)]


@dataclass
class Storm:
    """One storm, from the first attempt to the finished run."""

    directory: Path
    seed: int
    kills: int
    say: Callable[[Kill], None] = lambda _: None
    done: list[Kill] = field(default_factory=list)
    attempt: int = 0
    _strike: Strike | None = None

    def __post_init__(self) -> None:
        self.job = storm_spec(self.directory, self.kills)
        self.run = self.directory / "run"
        self.storm = storm_directory(self.run)
        self.watch = Watch(self.run)
        self.storm.mkdir(parents=True)

    def rage(self) -> None:
        """Until the run has finished. Raises AssertionError where a promise is broken."""
        self._plan(1)
        attempts_without = 0
        while True:
            before = len(self.done)
            has_finished = self._one_attempt()
            if has_finished and self._strike is None:  # else the finished run is struck again
                break
            attempts_without = 0 if len(self.done) > before else attempts_without + 1
            assert attempts_without < ATTEMPTS_WITHOUT_A_STRIKE_MAX, f"no way on\n{self._logs()}"
        assert len(self.done) == self.kills, f"finished after {len(self.done)} kills: {self._aim()}"
        self.watch.look()
        assert leftovers(self.run) == [], "something is half written"
        assert len([*(self.run / "fence").iterdir()]) == 1, "older marks are in the fence"

    def _one_attempt(self) -> bool:
        """Whether the run finished in it."""
        self.attempt += 1
        self._gang = gang = gang_of(self.directory, self.job, self.attempt)
        with pods(*gang):
            for pod in gang:
                pod.intend(*gang)
            while all(pod.process.poll() is None for pod in gang):
                held = until(lambda: self._held() or self._someone_ended(), f"strike {self._aim()}",
                             STRIKE_SECONDS_MAX)  # fmt: skip
                if isinstance(held, dict):
                    self._kill(held)
            self._end(gang)
            self._note_first_step()
            codes = [pod.wait() for pod in gang]
        self.watch.look()
        for pod in gang:
            assert _fault_of(pod) is None, f"{pod.name}: {_fault_of(pod)}\n{self._logs()}"
        return codes == [ExitCode.FINISHED] * len(gang)

    def _held(self) -> dict[str, Any] | None:
        """Where rank 0 stands and waits for its strike."""
        self._note_first_step()
        if self._strike is None:
            return None
        path = self.storm / f"held-{self._strike.number}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _someone_ended(self) -> bool:
        return any(pod.process.poll() is not None for pod in self._gang)

    def _kill(self, held: dict[str, Any]) -> None:
        strike = self._strike
        assert strike is not None
        self.watch.look()
        self._plan(strike.number + 1)  # for the ranks that come after
        released = self.storm / f"released-{strike.number}"
        if strike.moment_seconds:
            released.touch()
            time.sleep(strike.moment_seconds)  # part of what is drawn: nothing is waited for
        process, number = self._process(strike.process, gang=[held["attempt"], held["round"]])
        self.done.append(Kill(number=strike.number, process=process, time=time.time(), **held))
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        released.touch()
        self.watch.look()
        self.say(self.done[-1])

    def _process(self, wanted: str, *, gang: list[int]) -> tuple[str, int]:
        """A process of this gang, and its number. Where it has not come yet, rank 0 is struck: one
        of an older gang is about to end anyway, and its loss would cost nobody anything. Where rank
        0 has ended by itself since it was let go, its supervisor is."""
        kind, _, replica = wanted.rpartition(" ")
        pod = self._gang[int(replica)]
        if kind == "supervisor":
            assert pod.process.poll() is None, f"{wanted} had ended already"
            return wanted, pod.process.pid
        path = self.storm / f"life-{replica}.json"
        life = json.loads(path.read_text()) if path.exists() else {}
        if life.get("gang") == gang and life[kind] in pod.processes():
            return wanted, life[kind]
        return self._process("supervisor 0" if wanted == "rank 0" else "rank 0", gang=gang)

    def _plan(self, number: int) -> None:
        """Say what rank 0 is to wait for."""
        self._strike = drawn(self.seed, number, self.kills) if number <= self.kills else None
        plan = {
            "number": number,
            "instants": self._strike.instants if self._strike else {},
            "bad_positions": bad_positions(self.job["training"]["budget"]["steps"]),
        }
        write_json(self.storm / "plan.json", plan)

    def _end(self, gang: tuple[Pod, ...]) -> None:
        """As the operator: one that finished leaves the others time; else all are told to stop."""
        if any(pod.process.poll() not in (None, ExitCode.FINISHED) for pod in gang):
            for pod in gang:
                pod.process.terminate()
        for pod in gang:
            with suppress(AssertionError):
                until(lambda pod=pod: pod.process.poll() is not None, "its end", GRACE_SECONDS)
            for process in pod.processes():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def _note_first_step(self) -> None:
        """The first step after a kill, once it is made."""
        kill = self.done[-1] if self.done else None
        if kill is None or kill.to_next_step_seconds is not None:
            return
        for path in self.storm.glob("stepped-*"):
            _, attempt, round_ = path.name.split("-")
            if (int(attempt), int(round_)) > (kill.attempt, kill.round) and (
                content := path.read_text()
            ):
                kill.to_next_step_seconds = float(content) - kill.time

    def _aim(self) -> str:
        return f"{self._strike}; after {self.done[-1:]}\n{self._logs()}"

    def _logs(self) -> str:
        return "\n".join(f"{pod.log}:\n{pod.log.read_text()[-3000:]}" for pod in self._gang)


def _fault_of(pod: Pod) -> str | None:
    """What no kill explains."""
    if pod.termination_log.read_bytes() and pod.record().reason not in STORMY:
        return pod.record().reason
    rounds = (line for line in pod.log.read_text().splitlines() if "another round: " in line)
    return next((line for line in rounds if " raised " in line), None)


def gang_of(
    directory: Path, job: dict[str, Any], attempt: int, function: str = "tests.soak.rank:run"
) -> tuple[Pod, ...]:
    """The pods of an attempt."""
    rendezvous, report = free_port(), free_port()
    return tuple(
        Pod(
            directory,
            function,
            job,
            attempt=attempt,
            replica=replica,
            rendezvous_port=rendezvous,
            report_port=report,
        )
        for replica in (0, 1)
    )


def undisturbed(directory: Path, kills: int) -> dict[str, Any]:
    """What the same training gives when nobody disturbs it."""
    calm = Storm(directory, seed=0, kills=kills)
    calm.kills = 0
    calm.rage()
    return result(calm.run)


def survives(directory: Path, seed: int, kills: int, say: Callable[[Kill], None]) -> list[Kill]:
    """The kills of a storm. Raises AssertionError, with the seed, where it left a trace."""
    repeat = f"repeat with LMTRAINING_STORM_SEED={seed} (make soak KILLS={kills})"
    try:
        storm = Storm(directory / "storm", seed=seed, kills=kills, say=say)
        storm.rage()
        calm, stormy = undisturbed(directory / "calm", kills), result(storm.run)
        different = {
            name: (calm[name], stormy[name]) for name in calm if calm[name] != stormy[name]
        }
        assert not different, f"not as the undisturbed run: {different}"
    except AssertionError as error:
        raise AssertionError(f"{repeat}: {error}") from error
    return storm.done
