"""Run a system program to its end: a limit on every call, and an error that quotes its words."""

import subprocess
from collections.abc import Sequence

from devcluster.errors import DevclusterError

COMMAND_LIMIT_SECONDS = 60.0


def run(
    *command: str, stdin: str | None = None, limit_seconds: float = COMMAND_LIMIT_SECONDS
) -> str:
    """Standard output; DevclusterError when it fails, is missing, or takes too long."""
    done = try_run(*command, stdin=stdin, limit_seconds=limit_seconds)
    if done.returncode:
        raise DevclusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def try_run(
    *command: str, stdin: str | None = None, limit_seconds: float = COMMAND_LIMIT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Whatever came of it; a missing program counts as exit code 127."""
    arguments: Sequence[str] = command
    try:
        return subprocess.run(
            arguments,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, "", f"{command[0]}: not installed")
    except subprocess.TimeoutExpired as error:
        raise DevclusterError(
            f"`{' '.join(command)}`: not done after {limit_seconds:g} s"
        ) from error
