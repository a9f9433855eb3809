"""What a person sees while an image is made.

Promise: before a long step, what it is, how long it usually takes and the disk it needs against the
disk there is; during it, a line at least every few seconds; after a failure, the end of the log
and where the whole log is. Trap avoided: four silent minutes that look like a hang, and a disk that
is full at the end of them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.processes import log_tail

NEWS_SECONDS = 10.0
STOP_SECONDS_MAX = 20.0
GIGABYTE = 10**9
SHOWN_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Step:
    """A long piece of work, as announced."""

    title: str
    usual_seconds: int
    disk_bytes: int
    """Most disk in use at once, temporary files included."""


def say(text: str) -> None:
    """One line for the person who waits; standard output stays free for results."""
    print(text, file=sys.stderr, flush=True)


def announce(step: Step, directory: Path) -> None:
    """Say what is coming; DevclusterError where the disk cannot hold it."""
    free = shutil.disk_usage(directory).free
    need, have = step.disk_bytes / GIGABYTE, free / GIGABYTE
    if free < step.disk_bytes:
        raise DevclusterError(
            f"{step.title}: needs {need:.1f} GB of disk while it is made, {directory} has "
            f"{have:.1f} GB free: free {need - have:.1f} GB there, or set LMTRAIN_CACHE to a "
            "directory on a larger disk"
        )
    say(
        f"{step.title}: usually {_duration(step.usual_seconds)}, needs {need:.1f} GB of disk, "
        f"{have:.0f} GB free"
    )


def run_logged(
    argv: Sequence[str],
    *,
    what: str,
    log: Path,
    limit_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command with its output in `log`; DevclusterError with the log's end where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_die_with_parent(), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
        )
    try:
        code = _wait(process, what=what, log=log, limit_seconds=limit_seconds)
    except BaseException:
        _stop_group(process)
        raise
    if code != 0:
        raise DevclusterError(
            f"{what}: `{argv[0]}` ended with code {code}. The end of {log}:\n{log_tail(log)}"
        )
    elapsed = time.monotonic() - started
    if elapsed > NEWS_SECONDS:
        say(f"{what}: done in {elapsed:.0f} s")


def _wait(process: subprocess.Popen[bytes], *, what: str, log: Path, limit_seconds: float) -> int:
    started = time.monotonic()
    while True:
        try:
            return process.wait(timeout=NEWS_SECONDS)
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - started
            if elapsed > limit_seconds:
                raise DevclusterError(
                    f"{what}: not finished after {limit_seconds:.0f} s, stopped. "
                    f"The end of {log}:\n{log_tail(log)}"
                ) from None
            say(f"{what}: {elapsed:.0f} s  {_last_line(log)}")


def _die_with_parent() -> list[str]:
    """A prefix: a command must not build on, unseen and without the lock, when we are killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and all it started: a build leaves children that outlive their parent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP_SECONDS_MAX)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _last_line(log: Path) -> str:
    lines = log_tail(log).splitlines()
    return lines[-1].strip()[:SHOWN_CHARACTERS] if lines else ""


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
