"""What the operator costs, and how fast it is, with a thousand jobs and with one.

The real API server, etcd, controller manager, scheduler and operator on this machine's cores; kwok
plays nodes and kubelets, and one process answers for the trainers (see `bench.operator_world`).
Goals stand beside the figures; those of other operators, measured on a machine like this one, are
in docs/scale.md. Must run as root, for a network namespace of its own.

    python -m bench.operator                  # about 12 minutes
    python -m bench.operator --jobs 50 --finished 100   # a check of itself
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.operator_world import (
    JOBS_PATH,
    NAMESPACE,
    OPERATOR,
    PODS_PATH,
    Client,
    Recorder,
    World,
    job,
    world,
)
from devcluster.waiting import wait_until
from lmtraining_api.status import LMTrainingJobStatus
from tests.api.operator.process import OperatorProcess

IN_NAMESPACE = "BENCH_OPERATOR_IN_NAMESPACE"
SINGLES = 20
LOST = 10
STEADY_SECONDS = 75.0
FEW_JOBS = 50
FOREIGN_OBJECTS, FOREIGN_BYTES = 700, 200_000
CREATORS = 8
WRITERS_SHOWN = 12
WAIT_SECONDS_MAX = 900.0
STATUS = "lmtrainingjobs/status"
MIB = 2**20


@dataclass
class Table:
    """Figures beside their goals."""

    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, what: str, value: float, *, most: float, unit: str) -> None:
        self.rows.append((what, f"{value:.3g} {unit}", f"{most:g} {unit}", value <= most))
        sys.stderr.write(f"{what}: {value:.3g} {unit} (goal {most:g})\n")

    def show(self) -> None:
        print("| | measured | goal | |\n|---|---|---|---|")  # noqa: T201
        for what, value, goal, is_met in self.rows:
            print(f"| {what} | {value} | {goal} | {'met' if is_met else '**missed**'} |")  # noqa: T201


@dataclass
class Run:
    """The world, who watches it, and the operator."""

    world: World
    recorder: Recorder
    client: Client
    table: Table
    directory: Path
    operator: OperatorProcess | None = None

    def start_operator(self) -> float:
        """Seconds until it is ready."""
        started = time.monotonic()
        kubeconfig = self.world.server.kubeconfig_of(OPERATOR)
        self.operator = OperatorProcess(
            self.world.server, NAMESPACE, self.directory / "operator.log", kubeconfig=kubeconfig
        )
        self.world.children[OPERATOR] = self.operator._process
        self.operator.wait_ready()
        return time.monotonic() - started

    def memory_mib(self) -> float:
        assert self.operator is not None
        return self.operator.resident_bytes() / MIB

    def until(self, what: str, holds: Callable[[], object]) -> None:
        wait_until(what, holds, limit_seconds=WAIT_SECONDS_MAX, poll_seconds=0.05)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.operator")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=5000)
    options = parser.parse_args(arguments)
    if IN_NAMESPACE not in os.environ:
        given = [f"--jobs={options.jobs}", f"--finished={options.finished}"]
        os.environ[IN_NAMESPACE] = "1"
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        again = [sys.executable, "-m", "bench.operator", *given]
        os.execvp("unshare", ["unshare", "--net", *inside, *again])  # noqa: S606
    table = Table()
    pods = 2 * (options.jobs + 2 * SINGLES) + 2 * FEW_JOBS
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        world(Path(directory), pods=pods) as made,
    ):
        run = Run(made, Recorder(made.server), Client.of(made.server), table, Path(directory))
        run.start_operator()
        idle = run.memory_mib()
        one_at_a_time(run, "idle")
        few(run)
        many(run, options.jobs)
        one_at_a_time(run, f"at {options.jobs} jobs")
        lost_pods(run)
        restart(run, options.jobs)
        foreign_objects(run)
        finished(run, options.finished, idle)
        run.recorder.is_over = True
    table.show()


def one_at_a_time(run: Run, when: str) -> None:
    """Single creates, each waited for: latencies of what everybody sees."""
    pods, jobs = run.recorder.pods.times, run.recorder.jobs.times
    made, told, woken = [], [], []
    for number in range(SINGLES):
        name = f"single-{when.replace(' ', '-')}-{number}"
        created = time.monotonic()
        run.client.do("POST", JOBS_PATH, job(name))
        gang = [f"{name}-1-{replica}-0" for replica in (0, 1)]
        scheduled = (name, "Scheduled=Scheduled")
        run.until(f"{name} runs", lambda scheduled=scheduled: scheduled in jobs)
        made.append(max(pods[pod, "made"] for pod in gang) - created)
        told.append(jobs[name, "status"] - created)
        woken.append(jobs[scheduled] - max(pods[pod, "running"] for pod in gang))
    table = run.table
    if when == "idle":
        table.add("pods of one job made after its create, median",
                  1000 * statistics.median(made), most=100, unit="ms")  # fmt: skip
        table.add("first status after the create, median",
                  1000 * statistics.median(told), most=300, unit="ms")  # fmt: skip
        table.add("pod status to job status, idle, median",
                  1000 * statistics.median(woken), most=150, unit="ms")  # fmt: skip
    else:
        table.add(f"pod status to job status, {when}, slowest of {SINGLES}",
                  max(woken), most=2, unit="s")  # fmt: skip


def empty(run: Run) -> None:
    """Delete all jobs, and wait until their pods are gone."""
    for name in list(run.recorder.jobs.status):
        run.client.do("DELETE", f"{JOBS_PATH}/{name}")
    run.until("no pod is left", lambda: not run.recorder.pods.status)


def few(run: Run) -> None:
    empty(run)
    create(run, [f"few-{number:04d}" for number in range(FEW_JOBS)])
    ages = status_ages(run, STEADY_SECONDS / 3)
    run.table.add(f"age of status at {len(run.recorder.jobs.status)} jobs, p99",
                  percentile(ages, 99), most=6, unit="s")  # fmt: skip
    empty(run)


def many(run: Run, count: int) -> None:
    names = [f"many-{number:04d}" for number in range(count)]
    writes, cpu, started = run.world.writes(), run.world.cpu_seconds(), time.monotonic()
    create(run, names)
    seconds = time.monotonic() - started
    spent = {name: now - cpu[name] for name, now in run.world.cpu_seconds().items()}
    wrote = run.world.writes() - writes
    each = {f"{who} {what}": n for (who, what), n in wrote.most_common(WRITERS_SHOWN)}
    sys.stderr.write(f"CPU seconds: {rounded(spent)}\nwrites: {json.dumps(each)}\n")
    table = run.table
    table.add(f"{count} jobs of 2 pods, all Running", seconds, most=0.1 * count, unit="s")
    table.add("API writes a job until then, all components",
              wrote.total() / count, most=16, unit="")  # fmt: skip
    table.add("CPU seconds a job until then, all components",
              sum(spent.values()) / count, most=0.18, unit="s")  # fmt: skip
    own = run.recorder.jobs.changes
    table.add("status writes a job that mean more than progress",
              statistics.mean(own.get(name, 0) for name in names), most=10, unit="")  # fmt: skip
    before = run.world.cpu_seconds()[OPERATOR]
    ages = status_ages(run, STEADY_SECONDS)
    cores = (run.world.cpu_seconds()[OPERATOR] - before) / STEADY_SECONDS
    table.add(f"age of status at {count} jobs, p99", percentile(ages, 99), most=60, unit="s")
    table.add(f"operator at {count} running jobs", cores, most=0.5, unit="cores")
    table.add(f"operator at {count} running jobs", run.memory_mib(), most=200, unit="MiB")
    assert run.operator is not None
    started = time.monotonic()
    _, text = run.operator.get("/metrics")
    table.add("operator's /metrics", 1000 * (time.monotonic() - started), most=50, unit="ms")
    series = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    sys.stderr.write(f"series of the operator: {series}\n")


def lost_pods(run: Run) -> None:
    """A pod of a running gang is deleted by force."""
    pods, seconds = run.recorder.pods.times, []
    victims = [name for name in sorted(run.recorder.pods.status) if name.endswith("-1-1-0")]
    for victim in victims[:LOST]:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        deleted = time.monotonic()
        run.client.do("DELETE", f"{PODS_PATH}/{victim}", options)
        key = (victim.removesuffix("0") + "1", "made")
        run.until(f"{victim} is replaced", lambda key=key: key in pods)
        seconds.append(pods[key] - deleted)
    run.table.add("a lost pod replaced, median", statistics.median(seconds), most=1, unit="s")


def restart(run: Run, count: int) -> None:
    """SIGKILL, and a new one; writes that change nothing leave no event."""
    assert run.operator is not None
    run.operator.kill()
    writes, seen = run.world.writes(), run.recorder.jobs.modified
    run.table.add(f"ready again at {count} jobs", run.start_operator(), most=15, unit="s")
    status_ages(run, STEADY_SECONDS)
    wrote = run.world.writes() - writes
    changed = run.recorder.jobs.modified - seen
    idle = wrote[OPERATOR, STATUS] - changed
    run.table.add("status writes that change nothing, after it", idle, most=0, unit="")


def foreign_objects(run: Run) -> None:
    before = run.memory_mib()
    body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": "x" * FOREIGN_BYTES}}
    for number in range(FOREIGN_OBJECTS):
        foreign = body | {"metadata": {"name": f"foreign-{number}"}}
        run.client.do("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", foreign)
    status_ages(run, STEADY_SECONDS / 3)
    grown = 100 * (run.memory_mib() / before - 1)
    run.table.add(f"memory with {FOREIGN_OBJECTS} foreign ConfigMaps of {FOREIGN_BYTES // 1000} KB",
                  grown, most=5, unit="% more")  # fmt: skip


def finished(run: Run, count: int, idle_mib: float) -> None:
    """An operator that starts among jobs that have ended."""
    assert run.operator is not None
    run.operator.kill()
    empty(run)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {
        "attempt": 1, "startTime": now, "completionTime": now,
        "conditions": [
            {"type": "Succeeded", "status": "True", "reason": "Completed", "message": "",
             "lastTransitionTime": now, "observedGeneration": 1},
        ],
    }  # fmt: skip
    assert LMTrainingJobStatus.model_validate(ended).is_terminal
    for number in range(count):
        run.client.do("POST", JOBS_PATH, job(f"ended-{number:05d}"))
        run.client.do("PATCH", f"{JOBS_PATH}/ended-{number:05d}/status", {"status": ended})
    writes = run.world.writes()
    run.start_operator()
    assert run.operator is not None
    word = 'lmtraining_operator_jobs{state="Completed"}'
    run.until("all are counted", lambda: f"{word} {float(count)}" in metrics(run))
    grown = 100 * (run.memory_mib() / idle_mib - 1)
    run.table.add(f"memory with {count} finished jobs", grown, most=5, unit="% more than idle")
    wrote = run.world.writes() - writes
    run.table.add("status writes to finished jobs", wrote[OPERATOR, STATUS], most=0, unit="")


def metrics(run: Run) -> str:
    assert run.operator is not None
    return run.operator.get("/metrics")[1]


def create(run: Run, names: Sequence[str]) -> None:
    """Make the jobs, and wait until all of their pods run."""
    clients = [Client.of(run.world.server) for _ in range(CREATORS)]

    def make(lane: int) -> None:
        for name in names[lane::CREATORS]:
            clients[lane].do("POST", JOBS_PATH, job(name))

    with ThreadPoolExecutor(CREATORS) as pool:
        list(pool.map(make, range(CREATORS)))
    wanted = {(f"{name}-1-{replica}-0", "running") for name in names for replica in (0, 1)}
    run.until(f"{len(wanted)} pods run", lambda: wanted <= run.recorder.pods.times.keys())


def status_ages(run: Run, seconds: float) -> list[float]:
    """Age of the report in each training job's status, once a second for so long."""
    ages: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        now = datetime.now(UTC)
        reports = [
            status.get("progress", {}).get("reportTime")
            for status in list(run.recorder.jobs.status.values())
        ]
        ages += [(now - datetime.fromisoformat(one)).total_seconds() for one in reports if one]
        time.sleep(1)
    return ages


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def rounded(values: dict[str, float]) -> str:
    return json.dumps({name: round(value, 1) for name, value in values.items()})


if __name__ == "__main__":
    main()
