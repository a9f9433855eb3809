"""`lmtraining` without a cluster: what a person sees and what a script can rely on."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmtraining_api import ExitCode
from tests.trainer.supervisor_pods import corpus, spec
from tests.trainer.terminal import CLI, SECONDS_MAX, Terminal, journal

pytestmark = pytest.mark.trainer


def test_help_comes_at_once_and_without_torch(terminal: Terminal) -> None:
    code = "import sys, lmtraining_trainer.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    returned, output = terminal.type("--help")
    assert returned == 0
    for command in ("supervise", "run", "validate", "sample", "checkpoints", "report"):
        assert command in output


def test_a_run_trains_resumes_to_nothing_and_samples(terminal: Terminal) -> None:
    """The whole way, with real ranks."""
    wanted = spec(corpus(terminal.directory / "corpus"), replicas=2)
    wanted["precision"]["compute"] = "auto"
    job = terminal.job(wanted)
    terminal.environment["OMP_NUM_THREADS"] = "2"
    code, output = terminal.type("run", str(job))
    assert code == 0, output
    assert re.search(r"Finished 20 steps in 0:\d\d:\d\d, validation loss \d", output)
    assert f"Checkpoints: {terminal.run / 'checkpoints'} (newest: step 20)" in output
    assert f"Model: {terminal.run / 'export'}" in output
    (resolved,) = [e for e in journal(terminal.run) if e["kind"] == "Resolved"]
    threads = min(2, os.cpu_count() or 1)  # as torch itself counts them; our own wish was 1
    assert f", {threads} of " in resolved["detail"]["device"]
    code, output = terminal.type("run", str(job))
    assert code == 0, output
    assert "finished before" in output
    assert "→" not in output
    wanted["training"]["budget"]["steps"] = 22
    code, output = terminal.type("run", str(terminal.job(wanted)))
    assert code == 0, output
    assert output.startswith("training.budget.steps: 20 → 22\n")
    assert "Finished 22 steps" in output
    code, output = terminal.type(
        "sample", str(terminal.run / "export"), "--prompt", "the ", "--tokens", "4"
    )
    assert code == 0, output
    told = "loading torch and transformers\nloading GPT2LMHeadModel from "
    assert output.startswith(f"{told}{terminal.run / 'export'}\nthe ")

    trace = terminal.without_torch()
    returned, output = terminal.type("checkpoints", "runs/tiny")
    assert returned == 0
    assert re.search(r"\d+ +[\d.]+ MB +yes +[0-9a-f]{64}", output)
    returned, output = terminal.type("report", "runs/tiny", "--output", "tiny.html")
    assert returned == 0, output
    assert output.startswith("tiny.html (")
    assert "<html" in (terminal.directory / "tiny.html").read_text()
    assert not trace.exists(), "neither a list nor a report needs torch"


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(terminal: Terminal) -> None:
    _, lines = terminal.type("run", str(terminal.job()), fake="finishes")
    assert re.search(r"^Finished +step 20/20 +loss 0\.25", lines, re.MULTILINE), lines
    assert "\x1b" not in lines
    bar = _typed_at_a_terminal(terminal, "run", str(terminal.job()))
    assert "━" in bar
    assert "20/20" in bar


def _typed_at_a_terminal(terminal: Terminal, *words: str) -> str:
    ours, theirs = pty.openpty()
    fake = ["--rank-function", "tests.trainer.supervisor_ranks:finishes"]
    with subprocess.Popen(
        [*CLI, *words, *fake],
        cwd=terminal.directory,
        env=terminal.environment | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # a closed terminal
                break
        os.close(ours)
        assert process.wait() == 0
    return shown.decode()


def test_it_is_told_to_type_again_what_was_typed(terminal: Terminal) -> None:
    program = Path(sys.executable).with_name("lmtraining")
    hither = Path(os.path.relpath(program, terminal.directory))
    fake = ["--rank-function", "tests.trainer.supervisor_ranks:raises_alone"]
    words = ["run", terminal.job().name, *fake]
    paths = {"PATH": "/usr/bin:/bin"}, {"PATH": f"{program.parent}:/usr/bin:/bin"}
    for typed, path, told in (
        (str(hither), paths[0], str(hither)),
        ("lmtraining", paths[1], "lmtraining"),
    ):
        done = subprocess.run(
            [typed, *words], cwd=terminal.directory, env=terminal.environment | path,
            capture_output=True, text=True, check=False, timeout=SECONDS_MAX,
        )  # fmt: skip
        again = f"Try again with: {told} {' '.join(words)}"
        assert done.stdout.splitlines()[-1] == again, done.stdout + done.stderr


def test_checkpoints_of_a_directory_without_any(terminal: Terminal) -> None:
    returned, output = terminal.type("checkpoints", "runs/none")
    assert returned == ExitCode.CONFIGURATION
    assert "runs/none holds no checkpoints" in output
