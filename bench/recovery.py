"""How long a rank that is killed or hangs keeps training from its next step.

    python -m bench.recovery --turns 4 --strikes 5

Promise: a real SIGKILL of a rank of two pods (two supervisors), from the kill to the end of the
first step of the next round; beside it the same training under `torchrun --max-restarts`, one agent
with two workers, which is its simplest case. They take turns. Then a real SIGSTOP, which torchrun
does not notice. The time to load the checkpoint is taken off.
Trap avoided: figures of a start that was not warm; a gang trains for some steps before each strike.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import recovery_rank
from lmtraining_trainer.files import read_json
from tests.soak.storm import gang_of
from tests.trainer.supervisor_pods import (
    ROOT,
    WAIT_SECONDS_MAX,
    Pod,
    corpus,
    free_port,
    pods,
    session_processes,
    spec,
    until,
)

SILENCE_SECONDS = 5
"""The smallest limit of a silence here; a hang is told apart from a slow step by it."""
MODEL = {"layers": 4, "hiddenSize": 128, "heads": 4}


class Marks:
    """What the ranks of one gang leave."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "marks"
        self._directory.mkdir()
        self._round = 1

    def strike(self, rank: int, kind: signal.Signals) -> tuple[float, float]:
        """When `rank` was struck, once its gang had trained for a while, and the seconds until the
        next step, without loading."""
        self._until("trained")
        process = self._until(f"rank-{rank}")["process"]
        struck = time.time()
        os.kill(process, kind)
        self._round += 1
        mark = self._until("stepped")
        return struck, mark["time"] - struck - mark["load_seconds"]

    def _until(self, what: str) -> dict[str, Any]:
        """What a rank of the present round left, once it has."""
        path = self._directory / f"{what}-{self._round}.json"
        until(path.exists, path.name)
        return read_json(path) or {}


def job_of(directory: Path) -> dict[str, Any]:
    """A training without an end."""
    job = spec(corpus(directory / "corpus"), replicas=2)
    job["model"]["config"] = MODEL
    job["data"]["sequenceLength"] = 64
    job["training"] |= {"budget": {"steps": 10_000_000}, "batchTokens": 512}
    job["training"]["evaluation"]["everySteps"] = 1_000_000
    job["checkpoint"]["everySteps"] = 10
    job["stability"] = {"roundsMax": 1000, "silenceSeconds": SILENCE_SECONDS}
    return job


@contextmanager
def two_pods(directory: Path) -> Iterator[tuple[Pod, ...]]:
    """Our supervisors, one rank each."""
    gang = gang_of(directory, job_of(directory), 1, function=f"{recovery_rank.__name__}:run")
    with pods(*gang):
        for pod in gang:
            pod.intend(*gang)
        try:
            yield gang
        finally:
            for pod in gang:  # they do not end by themselves
                _kill(pod.processes())
                pod.process.wait()


@contextmanager
def torchrun(directory: Path) -> Iterator[None]:
    """Two workers of one agent."""
    run = directory / "run"
    file = {
        "jobName": "bench",
        "namespace": "bench",
        "jobUid": "bench",
        "runDirectory": str(run),
        "dataCacheDirectory": str(directory / "data-cache"),
        "spec": job_of(directory),
    }
    path = directory / "job.json"
    path.write_text(json.dumps(file))
    agent = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--max-restarts=1000", "--master-addr=127.0.0.1", f"--master-port={free_port()}"),
            *("-m", recovery_rank.__name__, str(path), str(free_port())),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        _end(agent)


def _end(agent: subprocess.Popen[bytes]) -> None:
    """The agent and its workers, which have sessions of their own."""
    workers = _children(agent.pid)
    agent.kill()
    agent.wait(WAIT_SECONDS_MAX)
    _kill([*workers, *session_processes(agent.pid)])


def _kill(processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def kills(gang: AbstractContextManager[Any], directory: Path, strikes: int) -> list[float]:
    """Seconds from each kill, of either rank in turn, to the next step."""
    marks = Marks(directory)
    with gang:
        return [marks.strike(number % 2, signal.SIGKILL)[1] for number in range(strikes)]


def hangs(directory: Path, strikes: int) -> list[tuple[float, float]]:
    """Of each SIGSTOP: seconds until it was found beyond the limit, and from there to the next
    step."""
    marks, found = Marks(directory), []
    with two_pods(directory) as gang:
        for number in range(strikes):
            stopped, seconds = marks.strike(number % 2, signal.SIGSTOP)
            report = until(gang[0].report, "a report")
            assert report.last_fault is not None and report.last_fault.failure_class == "Hang"
            silent_seconds = report.last_fault.time.timestamp() - stopped
            found.append((silent_seconds - SILENCE_SECONDS, seconds - silent_seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--strikes", type=int, default=5, help="in each turn")
    wanted = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for turn in range(wanted.turns):
            a, b = (Path(name) / f"{who}-{turn}" for who in ("ours", "theirs"))
            a.mkdir()
            b.mkdir()
            ours += kills(two_pods(a), a, wanted.strikes)
            theirs += kills(torchrun(b), b, wanted.strikes)
        silent = Path(name) / "silent"
        silent.mkdir()
        found = hangs(silent, wanted.strikes)
    _print(f"a rank killed, to the end of the next step: {_figures(ours)}")
    _print(f"the same training under torchrun --max-restarts: {_figures(theirs)}")
    found_after, on_after = zip(*found, strict=True)
    _print(f"a rank stopped, found after {SILENCE_SECONDS} s and: {_figures(found_after)}")
    _print(f"found to the end of the next step: {_figures(on_after)}")


def _figures(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"median {statistics.median(ordered):.2f} s, p95 {p95:.2f} s, {len(ordered)} times"


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - its output


if __name__ == "__main__":
    main()
