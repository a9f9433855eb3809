"""What is taken down of a hang, and that nothing of it can fail or last."""

import os
import threading
from pathlib import Path

import pytest

from lmtraining_trainer.supervisor import evidence
from lmtraining_trainer.supervisor.evidence import (
    evidence_of,
    flight_record_path,
    flight_recorder_environment,
    flight_records,
    py_spy_dumps,
)

pytestmark = pytest.mark.unit

PROCESSES = {0: 1000, 1: 1001}


def executable(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A py-spy that does this."""
    directory.mkdir()
    path = directory / "py-spy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_py_spy_is_asked_about_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "bin", monkeypatch, 'echo "$@"')
    assert py_spy_dumps(tmp_path, PROCESSES, deaf=[1]) == {
        "rank-0.py-spy.txt": b"dump --pid 1000\n",
        "rank-1.py-spy.txt": b"dump --nonblocking --pid 1001\n",
    }


def test_without_py_spy_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert py_spy_dumps(tmp_path, PROCESSES) == {}


FAILURES = [
    ("not permitted", "echo Error: Permission denied >&2; echo os error 1 >&2; exit 1", 60.0,
     b"py-spy saw nothing: Error: Permission denied os error 1\n"),
    ("too slow", "exec sleep 60", 0.1, b"py-spy saw nothing: it did not end within 0.1 s\n"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "seconds_max", "line"), [case[1:] for case in FAILURES],
                         ids=[case[0] for case in FAILURES])  # fmt: skip
def test_why_py_spy_saw_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds_max: float, line: bytes
) -> None:
    monkeypatch.setattr(evidence, "PY_SPY_SECONDS_MAX", seconds_max)
    executable(tmp_path / "bin", monkeypatch, script)
    assert py_spy_dumps(tmp_path, {0: 1000}) == {"rank-0.py-spy.txt": line}


def test_a_py_spy_that_cannot_be_run_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin" / "py-spy").write_text("#!/nonexistent\n")
    lines = py_spy_dumps(tmp_path, {0: 1000})
    assert lines == {"rank-0.py-spy.txt": b"py-spy saw nothing: No such file or directory\n"}


def test_what_py_spy_says_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "bin", monkeypatch, "head -c 1000000 /dev/zero")
    (dump,) = py_spy_dumps(tmp_path, {0: 1000}).values()
    assert len(dump) == evidence.STACK_BYTES_MAX


def test_ranks_on_gpus_keep_a_flight_record_where_it_is_looked_for(tmp_path: Path) -> None:
    wanted = flight_recorder_environment(tmp_path)
    assert wanted["TORCH_FR_DUMP_TEMP_FILE"] + "3" == str(flight_record_path(tmp_path, 3))
    assert wanted["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] == wanted["TORCH_FR_DUMP_TEMP_FILE"]
    assert wanted["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert int(wanted["TORCH_FR_BUFFER_SIZE"]) > 0


def test_a_flight_record_is_asked_for_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a thread of NCCL's would: it reads the pipe, and writes the record beside it."""
    record = flight_record_path(tmp_path, 0)
    pipe = Path(f"{record}.pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # so that a read waits for the first writer

    def answer() -> None:
        if os.read(reader, 1) == b"1":
            record.write_bytes(b"\x80\x05record")

    monkeypatch.setattr(evidence, "STACK_SECONDS_MAX", 0.0)
    thread = threading.Thread(target=answer)
    thread.start()
    found = evidence_of(tmp_path, {0: 0x7FFFFFFF, 1: 0x7FFFFFFF})  # no such processes
    thread.join()
    os.close(reader)
    assert found.files["rank-0.nccl-flight-record"] == b"\x80\x05record"
    assert found.stacks == {}


def test_where_nobody_listens_no_record_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(f"{flight_record_path(tmp_path, 0)}.pipe")
    assert evidence.asked_for_flight_records(tmp_path, [0, 1]) == []


def test_a_record_that_is_too_large_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "FLIGHT_RECORD_BYTES_MAX", 3)
    flight_record_path(tmp_path, 0).write_bytes(b"1234")
    assert flight_records(tmp_path, [0]) == {}
