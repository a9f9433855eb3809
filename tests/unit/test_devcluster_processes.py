"""A process is only ever signalled after it was proven to be the one we started."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from devcluster import processes
from devcluster.waiting import wait_until

pytestmark = pytest.mark.unit
LIMIT_SECONDS = 10


def start(directory: Path, name: str = "sleeper") -> processes.ProcessRecord:
    return processes.start(
        name,
        ["sleep", "600"],
        records=directory / "records",
        log=directory / "log",
        environment=os.environ,
    )


def test_a_command_name_with_brackets_and_spaces_does_not_shift_the_fields() -> None:
    fields = ["S", *map(str, range(4, 22)), "987654", "0"]
    assert processes.parse_stat(f"12 (a) b (c) {' '.join(fields)}") == ("S", 987654)


def test_a_started_process_is_recorded_alive_and_can_be_stopped(tmp_path: Path) -> None:
    record = start(tmp_path)
    assert processes.read_records(tmp_path / "records") == {"sleeper": record}
    assert processes.is_alive(record)
    processes.stop_recorded(tmp_path / "records", "sleeper")
    assert not processes.is_alive(record)
    assert processes.read_records(tmp_path / "records") == {}
    processes.stop_recorded(tmp_path / "records", "sleeper")


@pytest.mark.parametrize(
    "stale",
    [{"start_ticks": 1}, {"boot_id": "of an earlier boot"}],
    ids=["the number was given to another process", "the machine was rebooted"],
)
def test_somebody_elses_process_is_neither_alive_nor_signalled(
    tmp_path: Path, stale: dict[str, object]
) -> None:
    record = start(tmp_path)
    imposter = replace(record, **stale)  # type: ignore[arg-type]
    assert not processes.is_alive(imposter)
    processes.stop(imposter)
    assert processes.is_alive(record)
    processes.stop(record)


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    record = processes.start(
        "stubborn",
        ["sh", "-c", "trap '' TERM; echo ready; while :; do read line < /dev/zero; done"],
        records=tmp_path,
        log=tmp_path / "log",
        environment=os.environ,
    )
    wait_until(
        "the trap is set",
        lambda: "ready" in processes.log_tail(tmp_path / "log"),
        limit_seconds=LIMIT_SECONDS,
    )
    processes.stop(record, grace_seconds=0.1)
    assert not processes.is_alive(record)


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"name": "half", ')
    (tmp_path / "other.json").write_text('{"pid": 1}')
    assert processes.read_records(tmp_path) == {}


def test_a_process_tied_to_its_parent_dies_when_the_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"""
import os, signal
from pathlib import Path
from devcluster import processes
from devcluster.waiting import wait_until
command = ["sh", "-c", "echo ready; exec sleep 600"]
processes.start("child", command, records=Path({str(tmp_path)!r}), log=Path({str(log)!r}),
                environment=os.environ, die_with_parent=True)
wait_until("ready", lambda: "ready" in Path({str(log)!r}).read_text(), limit_seconds=10)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert parent.returncode == -signal.SIGKILL
    child = processes.read_records(tmp_path)["child"]
    wait_until(
        "the child is gone",
        lambda: not processes.is_alive(child),
        limit_seconds=LIMIT_SECONDS,
    )
