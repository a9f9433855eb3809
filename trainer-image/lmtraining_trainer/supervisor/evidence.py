"""What is taken down of a hang while its ranks still live.

Promise: the stack of every rank that answers a signal; of every rank, above all of one that does
not, what py-spy sees from outside, where it is installed and may look; NCCL's flight record where
the ranks train on GPUs. All of it is bounded in time and size, and none of it can fail.
Trap avoided: a rank that hangs runs no Python, so nothing here asks it to: faulthandler answers in
C, py-spy reads its memory, and a thread of NCCL's own writes the flight record.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STACK_SIGNAL = signal.SIGUSR1
STACK_SECONDS_MAX = 1.0
STACK_POLL_SECONDS = 0.02
STACK_BYTES_MAX = 64 * 1024
PY_SPY = "py-spy"
PY_SPY_SECONDS_MAX = 5.0
PY_SPY_ERROR_LENGTH_MAX = 300
FLIGHT_RECORD_SECONDS_MAX = 5.0
"""NCCL's thread looks once a second whether it is asked to write."""
FLIGHT_RECORD_BYTES_MAX = 8 * 1024 * 1024
"""A larger one is left out: cut off, nothing could read it."""
FLIGHT_RECORD_ENTRIES = 2000


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found."""

    stacks: Mapping[int, str]
    """Of each rank that answered."""
    files: Mapping[str, bytes]
    """To be kept, by name."""


def stack_file(directory: Path, rank: int) -> Path:
    """Where the rank writes its stack when it is asked to."""
    return directory / f"rank-{rank}.stack"


def phases_file(directory: Path, rank: int) -> Path:
    """Where the rank writes what it is doing."""
    return directory / f"rank-{rank}.phases"


def flight_record_path(directory: Path, rank: int | str = "") -> Path:
    """Where NCCL writes the record of a rank, and reads, with .pipe behind it, that it is asked."""
    return directory / f"nccl-flight-record-{rank}"


def flight_recorder_environment(directory: Path) -> dict[str, str]:
    """What torch must find to write NCCL's flight record there, at a time-out or when asked."""
    return {
        "TORCH_FR_BUFFER_SIZE": str(FLIGHT_RECORD_ENTRIES),
        "TORCH_FR_DUMP_TEMP_FILE": str(flight_record_path(directory)),
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(flight_record_path(directory)),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def evidence_of(directory: Path, processes: Mapping[int, int]) -> Evidence:
    """What can be found of these ranks (by number, with their process ids)."""
    asked = asked_for_flight_records(directory, processes)
    found = stacks(directory, processes)
    files = {f"rank-{rank}.txt": text.encode()[:STACK_BYTES_MAX] for rank, text in found.items()}
    files |= py_spy_dumps(directory, processes, deaf=processes.keys() - found.keys())
    return Evidence(stacks=found, files=files | flight_records(directory, asked))


def stacks(directory: Path, processes: Mapping[int, int]) -> dict[int, str]:
    """The stack of each rank that answers in time."""
    for rank, process in processes.items():
        stack_file(directory, rank).write_bytes(b"")  # what it answered before is no answer now
        with suppress(ProcessLookupError):
            os.kill(process, STACK_SIGNAL)
    paths = {rank: stack_file(directory, rank) for rank in processes}
    written = _settled(paths, STACK_SECONDS_MAX, may_come=lambda rank: _can_answer(processes[rank]))
    return {rank: text.decode(errors="replace") for rank, text in written.items()}


def py_spy_dumps(
    directory: Path, processes: Mapping[int, int], *, deaf: Collection[int] = ()
) -> dict[str, bytes]:
    """What py-spy sees of each rank, or in one line why it sees nothing; by file name.

    It pauses a process to look at it, and could wait for ever for one that is `deaf`, being stopped
    or held by the kernel; such a one stands still anyway.
    """
    executable = shutil.which(PY_SPY)
    if executable is None:
        missing = _no_py_spy("it is not installed")
        return {f"rank-{rank}.py-spy.txt": missing for rank in deaf}
    deadline = time.monotonic() + PY_SPY_SECONDS_MAX
    running = []
    for rank, process in processes.items():
        path = directory / f"rank-{rank}.py-spy.txt"
        options = ["--nonblocking"] if rank in deaf else []
        running.append(
            (path, _started([executable, "dump", *options, "--pid", str(process)], path))
        )
    return {path.name: _py_spy_dump(path, process, deadline) for path, process in running}


def asked_for_flight_records(directory: Path, ranks: Iterable[int]) -> list[int]:
    """The ranks that will write one."""
    return [rank for rank in ranks if _asks_for_record(flight_record_path(directory, rank))]


def flight_records(directory: Path, ranks: Iterable[int]) -> dict[str, bytes]:
    """What NCCL has written of the ranks that were asked; by file name."""
    paths = {rank: flight_record_path(directory, rank) for rank in ranks}
    written = _settled(paths, FLIGHT_RECORD_SECONDS_MAX)
    return {
        f"rank-{rank}.nccl-flight-record": record
        for rank, record in written.items()
        if len(record) <= FLIGHT_RECORD_BYTES_MAX
    }


def _asks_for_record(record: Path) -> bool:
    """Whether somebody listens."""
    try:
        pipe = os.open(f"{record}.pipe", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.write(pipe, b"1") == 1
    except OSError:
        return False
    finally:
        os.close(pipe)


def _can_answer(process: int) -> bool:
    """False while it is stopped, and once it has ended."""
    stat = _read(Path(f"/proc/{process}/stat"))
    _, _, fields = stat.rpartition(b") ")
    return fields[:1] not in {b"", b"T", b"t", b"Z", b"X"}


def _settled(
    paths: Mapping[int, Path],
    seconds_max: float,
    may_come: Callable[[int], bool] = lambda _: True,
) -> dict[int, bytes]:
    """The content of each file that is there, and grows no more, in time; not longer than some
    that is missing `may_come`."""
    deadline = time.monotonic() + seconds_max
    partial: dict[int, bytes] = {}
    found: dict[int, bytes] = {}
    while len(found) < len(paths) and time.monotonic() < deadline:
        time.sleep(STACK_POLL_SECONDS)
        for rank in paths.keys() - found.keys():
            content = _read(paths[rank])
            if content and content == partial.get(rank):
                found[rank] = content
            partial[rank] = content
        if not any(may_come(rank) for rank in paths.keys() - found.keys()):
            break
    return found


def _started(command: list[str], output: Path) -> subprocess.Popen[bytes] | OSError:
    try:
        with output.open("wb") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
    except OSError as error:
        return error


def _py_spy_dump(path: Path, process: subprocess.Popen[bytes] | OSError, deadline: float) -> bytes:
    if isinstance(process, OSError):
        return _no_py_spy(process.strerror or type(process).__name__)
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()  # and reaped when the next one is started
        return _no_py_spy(f"it did not end within {PY_SPY_SECONDS_MAX:g} s")
    output = _read(path)[:STACK_BYTES_MAX]
    return output if code == 0 else _no_py_spy(output.decode(errors="replace"))


def _no_py_spy(why: str) -> bytes:
    said, _, _ = why.partition("Stack backtrace")  # of py-spy itself
    return f"{PY_SPY} saw nothing: {' '.join(said.split())[:PY_SPY_ERROR_LENGTH_MAX]}\n".encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
