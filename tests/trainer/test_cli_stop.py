"""`lmtraining run` is told to stop: by Ctrl-C, by a signal, by a terminal that closes."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode
from tests.trainer.supervisor_pods import corpus, spec, until
from tests.trainer.terminal import CLI, SECONDS_MAX, Terminal, journal

pytestmark = pytest.mark.trainer


def test_ctrl_c_saves_and_the_next_run_goes_on_from_there(terminal: Terminal) -> None:
    endless = spec(corpus(terminal.directory / "corpus"), replicas=1)
    endless["training"]["budget"]["steps"] = 1_000_000
    endless["stability"] = {}
    job = terminal.job(endless)
    process = terminal.start("run", str(job))
    until((terminal.run / "checkpoints").exists, "a run")
    until(lambda: list((terminal.run / "checkpoints").glob("step-*")), "a checkpoint")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    code, output = terminal.finish(process)
    assert code == ExitCode.PREEMPTED, output
    saved = int(re.search(r"step (\d+) is saved", output)[1])  # type: ignore[index]
    assert re.search(rf"Go on with: (\S*/)?lmtraining run {job}$", output, re.MULTILINE)

    process = terminal.start("run", str(job))
    entry = until(lambda: _newest_loaded(terminal.run), "a checkpoint loaded")
    os.killpg(process.pid, signal.SIGINT)
    code, output = terminal.finish(process)
    assert code == ExitCode.PREEMPTED, output
    assert (entry["attempt"], entry["step"]) == (2, saved)


def _newest_loaded(run: Path) -> dict[str, Any] | None:
    return next((e for e in reversed(journal(run)) if e["kind"] == "Loaded"), None)


def test_a_second_ctrl_c_does_not_wait(terminal: Terminal) -> None:
    process = terminal.start("run", str(terminal.job()), fake="ignores_the_stop")
    until((terminal.run / "pid-0").exists, "a rank")
    process.send_signal(signal.SIGINT)
    until((terminal.run / "asked-to-stop").exists, "the first one to arrive")
    process.send_signal(signal.SIGINT)
    code, output = terminal.finish(process)
    assert code == ExitCode.UNKNOWN, output
    assert "killed before it had saved" in output


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_saves_unless_nohup_said_to_go_on(
    terminal: Terminal, nohup: bool
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if nohup else None
    try:
        process = terminal.start("run", str(terminal.job()), fake="trains_until_stopped")
    finally:
        if nohup:
            signal.signal(signal.SIGHUP, before)
    until((terminal.run / "pid-0").exists, "a rank")
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal that is closed does: to all of the group
    if nohup:
        os.killpg(process.pid, signal.SIGTERM)
    code, output = terminal.finish(process)
    assert code == ExitCode.PREEMPTED, output
    assert "is saved" in output


def test_the_end_of_the_terminal_itself_is_survived(terminal: Terminal) -> None:
    """Whatever is written after it is lost, and nothing else."""
    ours, theirs = pty.openpty()
    fake = ["--rank-function", "tests.trainer.supervisor_ranks:trains_until_stopped"]
    with subprocess.Popen(
        [*CLI, "run", str(terminal.job()), *fake],
        cwd=terminal.directory,
        env=terminal.environment | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        until((terminal.run / "pid-0").exists, "a rank")
        os.close(ours)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(SECONDS_MAX) == ExitCode.PREEMPTED


def test_the_first_ctrl_c_says_what_a_second_one_does(terminal: Terminal) -> None:
    process = terminal.start("run", str(terminal.job()), fake="trains_until_stopped")
    until((terminal.run / "pid-0").exists, "a rank")
    process.send_signal(signal.SIGINT)
    _, output = terminal.finish(process)
    assert "Ctrl-C again stops without it" in output
