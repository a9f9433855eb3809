"""Background processes that outlive the command that started them.

Promise: a process is only ever signalled after it was proven to be the one we started. Trap
avoided: a pid file alone is a loaded gun, because after a crash or a reboot the number belongs to
somebody else. So a record also holds the kernel's start time of the process and the boot's
identity, and the signal goes through a pidfd that was opened before the identity was checked.
"""

import contextlib
import json
import os
import select
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.errors import DevclusterError

STOP_GRACE_SECONDS = 10.0
KILL_LIMIT_SECONDS = 10.0
LOG_TAIL_LINES = 15
STAT_FIELDS_BEFORE_START_TIME = 19  # after the closing bracket of the command name


@dataclass(frozen=True)
class ProcessRecord:
    """Enough to recognise one process among all that ever had its number."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    log: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def parse_stat(stat: str) -> tuple[str, int]:
    """State letter and start time in clock ticks from the text of /proc/<pid>/stat.

    The command name in it may hold spaces and brackets, hence the search from the right.
    """
    fields = stat[stat.rindex(")") + 2 :].split()
    return fields[0], int(fields[STAT_FIELDS_BEFORE_START_TIME])


def is_alive(record: ProcessRecord) -> bool:
    """True while exactly this process runs (a zombie does not)."""
    if record.boot_id != boot_id():
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(record.pid, os.WNOHANG)
    try:
        state, start_ticks = parse_stat(Path(f"/proc/{record.pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return start_ticks == record.start_ticks and state not in "ZX"


def start(
    name: str,
    command: Sequence[str],
    *,
    records: Path,
    log: Path,
    environment: Mapping[str, str],
    die_with_parent: bool = False,
) -> ProcessRecord:
    """Start `command` in its own session, at "/", with its output in `log`, and record it.

    With `die_with_parent` the kernel kills it when the thread that called this ends.
    """
    records.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    prefix = ["/usr/bin/setpriv", "--pdeathsig", "KILL"] if die_with_parent else []
    argv = ["/usr/bin/env", "--chdir=/", *prefix, *command]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        argv,
        dict(environment),
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    _, start_ticks = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    record = ProcessRecord(name, pid, start_ticks, boot_id(), str(log))
    write_record(record, records)
    return record


def write_record(record: ProcessRecord, records: Path) -> None:
    temporary = records / f".{record.name}.tmp"
    temporary.write_text(json.dumps(asdict(record)))
    temporary.rename(records / f"{record.name}.json")


def read_records(records: Path) -> dict[str, ProcessRecord]:
    """Every process recorded there, by name; a damaged record counts as none."""
    found = {}
    for path in sorted(records.glob("*.json")):
        with contextlib.suppress(ValueError, TypeError):
            record = ProcessRecord(**json.loads(path.read_text()))
            found[record.name] = record
    return found


def unrecorded(programs: Collection[str], *, naming: str) -> list[ProcessRecord]:
    """Processes of these programs with `naming` in their command line: an `up` that was killed in
    the instant after a start left no record of it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *arguments = path.read_text(errors="replace").split("\0")
            if Path(program).name in programs and any(naming in word for word in arguments):
                _, start_ticks = parse_stat((path.parent / "stat").read_text())
                pid = int(path.parent.name)
                found.append(ProcessRecord(Path(program).name, pid, start_ticks, boot_id(), ""))
    return found


def stop(record: ProcessRecord, *, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
    """End the process (SIGTERM, then SIGKILL) and return when it is gone."""
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if not is_alive(record):
            return
        if not _signal_and_wait(handle, signal.SIGTERM, grace_seconds):
            _signal_and_wait(handle, signal.SIGKILL, KILL_LIMIT_SECONDS)
        if is_alive(record):
            raise DevclusterError(
                f"{record.name} (pid {record.pid}) survived SIGKILL for {KILL_LIMIT_SECONDS:g} s: "
                "it hangs in the kernel; look at its stack in /proc, or reboot"
            )
    finally:
        os.close(handle)


def _signal_and_wait(handle: int, number: signal.Signals, limit_seconds: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(limit_seconds * 1000))


def stop_recorded(records: Path, name: str, **options: float) -> None:
    """Stop the process of that name if it runs, and forget it."""
    record = read_records(records).get(name)
    if record:
        stop(record, **options)
    (records / f"{name}.json").unlink(missing_ok=True)


def log_tail(log: Path) -> str:
    """The last lines of a log, for the error that names it."""
    if not log.exists():
        return "(no log)"
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def resident_bytes(record: ProcessRecord) -> int:
    """Memory in RAM now; 0 when the process ended meanwhile."""
    try:
        pages = Path(f"/proc/{record.pid}/statm").read_text().split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
