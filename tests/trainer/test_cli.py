"""`lmtraining` without a cluster: what a person sees and what a script can rely on."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtraining_api import ExitCode, FailureClass
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.supervisor import LocalRun, run_locally
from lmtraining_trainer.supervisor.job_document import read_job
from tests.trainer.supervisor_pods import ROOT, corpus, session_processes, spec, until

pytestmark = pytest.mark.trainer

CLI = [sys.executable, "-m", "lmtraining_trainer"]
SECONDS_MAX = 120.0


class Terminal:
    """A directory in which someone types commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def job(self, job_spec: dict[str, Any] | None = None, name: str = "tiny") -> Path:
        document = {
            "apiVersion": "lmtraining.dev/v1alpha1",
            "kind": "LMTrainingJob",
            "metadata": {"name": name},
            "spec": job_spec or spec(),
        }
        path = self.directory / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def start(self, *words: str, fake: str | None = None) -> subprocess.Popen[str]:
        faked = ["--rank-function", f"tests.trainer.supervisor_ranks:{fake}"] if fake else []
        return subprocess.Popen(
            [*CLI, *words, *faked],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        output, _ = process.communicate(timeout=SECONDS_MAX)
        until(lambda: not session_processes(process.pid), "no process left")
        return process.returncode, output

    def type(self, *words: str, fake: str | None = None) -> tuple[int, str]:
        return self.finish(self.start(*words, fake=fake))

    @property
    def run(self) -> Path:
        return self.directory / "runs" / "tiny"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run in nohup
    try:
        yield Terminal(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_help_comes_at_once_and_without_torch(terminal: Terminal) -> None:
    code = "import sys, lmtraining_trainer.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    returned, output = terminal.type("--help")
    assert returned == 0
    for command in ("supervise", "run", "validate", "sample", "checkpoints"):
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
    (resolved,) = [e for e in _journal(terminal.run) if e["kind"] == "Resolved"]
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
    assert output.startswith("the ")

    returned, output = terminal.type("checkpoints", "runs/tiny")
    assert returned == 0
    assert re.search(r"\d+ +[\d.]+ MB +yes +[0-9a-f]{64}", output)


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
    assert re.search(rf"Go on with: (\S*/)?lmtraining run {job} --runs runs", output)

    process = terminal.start("run", str(job))
    entry = until(lambda: _newest_loaded(terminal.run), "a checkpoint loaded")
    os.killpg(process.pid, signal.SIGINT)
    code, output = terminal.finish(process)
    assert code == ExitCode.PREEMPTED, output
    assert (entry["attempt"], entry["step"]) == (2, saved)


def _newest_loaded(run: Path) -> dict[str, Any] | None:
    return next((e for e in reversed(_journal(run)) if e["kind"] == "Loaded"), None)


def _journal(run: Path) -> list[dict[str, Any]]:
    lines = (run / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


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


def test_a_full_disk_is_said_and_not_traced(terminal: Terminal) -> None:
    """A limit on the size of files does what a full disk does."""
    local = LocalRun(job=read_job(terminal.job()), runs_directory=terminal.directory / "runs")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(TrainerError) as raised:
            run_locally(local, observe=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.failure_class is FailureClass.STORAGE
    assert f"{terminal.run} cannot be written" in raised.value.message


def test_the_path_of_the_checkpoints_is_honoured(terminal: Terminal) -> None:
    job = terminal.job(spec() | {"checkpoint": {"path": "team/one"}})
    code, output = terminal.type("run", str(job), fake="finishes")
    assert code == 0, output
    assert (terminal.directory / "runs" / "team" / "one" / "local.json").is_file()


def test_a_second_run_in_the_same_directory_is_refused(terminal: Terminal) -> None:
    job = terminal.job()
    process = terminal.start("run", str(job), fake="trains_until_stopped")
    until((terminal.run / "pid-0").exists, "a rank")
    code, output = terminal.type("run", str(job), fake="finishes")
    assert code == ExitCode.CONFIGURATION
    assert "another `lmtraining run` is at work" in output
    process.terminate()
    assert terminal.finish(process)[0] == ExitCode.PREEMPTED


def _without_torch(terminal: Terminal) -> Path:
    """A torch that only leaves a trace; the trace."""
    trace = terminal.directory / "torch-was-imported"
    modules = terminal.directory / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    terminal.environment["PYTHONPATH"] = f"{modules}:{ROOT}"
    return trace


def test_a_run_directory_that_is_not_free_is_said_before_torch_is_imported(
    terminal: Terminal,
) -> None:
    """P1: whoever holds it, and without a wait of many seconds."""
    job = terminal.job()
    process = terminal.start("run", str(job), fake="trains_until_stopped")
    until((terminal.run / "pid-0").exists, "a rank")
    trace = _without_torch(terminal)
    code, output = terminal.type("run", str(job))
    assert (code, "RunInUse" in output) == (ExitCode.CONFIGURATION, True), output
    process.terminate()
    assert terminal.finish(process)[0] == ExitCode.PREEMPTED
    (terminal.run / "run.json").write_text('{"job_uid": "u", "job_name": "of-a-cluster"}')
    code, output = terminal.type("run", str(job))
    assert (code, "RunExists" in output) == (ExitCode.CONFIGURATION, True), output
    assert "of-a-cluster" in output
    assert not trace.exists()
    assert len(output.splitlines()) == 1


def test_attempts_are_counted_and_outputs_kept(terminal: Terminal) -> None:
    job = terminal.job()
    for attempt in (1, 2):
        code, output = terminal.type("run", str(job), fake="raises_alone")
        assert code == ExitCode.CRASH
        assert f"attempt-{attempt}.log" in output
        assert "once upon a time" in (terminal.run / "logs" / f"attempt-{attempt}.log").read_text()
        assert "once upon a time" not in output


MISTAKES = [
    ("file:///nowhere/*.txt", 300, ExitCode.DATA, "file:///nowhere/*.txt"),
    (None, 60_000, ExitCode.DATA, "data.tokenizer.vocabSize"),
]


@pytest.mark.parametrize(("uri", "vocabulary", "code", "words"), MISTAKES)
def test_a_mistake_in_the_data_is_one_sentence(
    terminal: Terminal, uri: str | None, vocabulary: int, code: ExitCode, words: str
) -> None:
    """P4: with the exit code, and nothing of the code's insides."""
    wanted = spec(uri or corpus(terminal.directory / "corpus"))
    wanted["data"]["tokenizer"]["vocabSize"] = vocabulary
    returned, output = terminal.type("run", str(terminal.job(wanted)))
    assert returned == code, output
    last = output.splitlines()[-1]
    assert f"(exit code {int(code)}): " in last
    assert words in last
    for inside in ("Traceback", ".py:", "Try again", "Log:"):
        assert inside not in output


BAD = [
    ({"traning": {}}, "traning"),
    ({"workers": {"replicas": 3}}, "training.batchTokens 128 is not a multiple"),
    ({"model": {"config": {"layers": 1, "hiddenSize": 15, "heads": 2}}}, "heads 2"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_bad_job_is_refused_in_sentences(
    terminal: Terminal, command: str, change: dict[str, Any], words: str
) -> None:
    code, output = terminal.type(command, str(terminal.job(spec() | change)))
    assert code == ExitCode.CONFIGURATION
    assert words in output
    assert "pydantic" not in output
    assert "Traceback" not in output
    assert not (terminal.directory / "runs").exists()


NO_JOBS = [
    ("a: [", "line 1, column 5"),
    ("", "no Kubernetes object"),
    ("kind: Pod", "kind Pod"),
    ("kind: LMTrainingJob", "metadata is missing"),
    ("apiVersion: lmtraining.dev/v1alpha1\nkind: LMTrainJob", "choose 'LMTrainingJob'"),
    ("- 1", "no Kubernetes object"),
    ("\x00", "not text"),
]


@pytest.mark.parametrize(("text", "words"), NO_JOBS)
def test_a_file_without_a_job_is_refused(terminal: Terminal, text: str, words: str) -> None:
    path = terminal.directory / "job.yaml"
    path.write_text(text)
    code, output = terminal.type("validate", str(path))
    assert code == ExitCode.CONFIGURATION
    assert words in output


def test_a_good_job_is_called_valid(terminal: Terminal) -> None:
    code, output = terminal.type("validate", str(terminal.job(spec(replicas=2))))
    assert (code, "is valid: tiny, 20 steps, 2 ranks" in output) == (0, True), output


SAID = [
    "jobs.yaml document 1 is skipped: kind Pod is not checked",
    "jobs.yaml document 2 is valid: tiny, 20 steps, 2 ranks",
    "jobs.yaml document 3: spec.model.config.heads: hiddenSize",
    'jobs.yaml document 3: spec.suspend is "maybe": write true or false',
    "jobs.yaml document 3: spec.workers.replicas is 0: choose 1 or more",
    "jobs.yaml, line",
]


def test_every_document_of_a_file_is_checked_and_every_problem_told(terminal: Terminal) -> None:
    good = terminal.job(spec(replicas=2)).read_text()
    bad = terminal.job(spec() | {"workers": {"replicas": 0}} | {"suspend": "maybe"}).read_text()
    broken = bad.replace("heads: 2", "heads: 3")
    assert broken != bad
    path = terminal.directory / "jobs.yaml"
    path.write_text("---\n".join(["kind: Pod\n", good, broken, "a: ["]))
    code, output = terminal.type("validate", "jobs.yaml")
    assert code == ExitCode.CONFIGURATION
    told = zip(sorted(output.splitlines()), SAID, strict=True)
    assert [line[: len(start)] for line, start in told] == SAID


def test_a_run_needs_one_job(terminal: Terminal) -> None:
    job = terminal.job().read_text()
    (terminal.directory / "jobs.yaml").write_text(f"{job}---\n{job}")
    code, output = terminal.type("run", "jobs.yaml")
    assert (code, "holds 2 jobs" in output) == (ExitCode.CONFIGURATION, True), output


def test_an_absent_file_and_an_absent_model_are_said(terminal: Terminal) -> None:
    code, output = terminal.type("run", "absent.yaml")
    assert (code, "absent.yaml cannot be read" in output) == (ExitCode.CONFIGURATION, True)
    code, output = terminal.type("sample", str(terminal.directory))
    assert (code, "no exported model" in output) == (ExitCode.CONFIGURATION, True), output


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


def test_checkpoints_of_a_directory_without_any(terminal: Terminal) -> None:
    returned, output = terminal.type("checkpoints", "runs/none")
    assert returned == ExitCode.CONFIGURATION
    assert "runs/none holds no checkpoints" in output
