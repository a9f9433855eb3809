"""`lmtraining run` and its run directory: whose it is, and what cannot be written there."""

import resource

import pytest

from lmtraining_api import ExitCode, FailureClass
from lmtraining_manifests import read_job
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.supervisor import LocalRun, run_locally
from tests.trainer.supervisor_pods import spec, until
from tests.trainer.terminal import Terminal

pytestmark = pytest.mark.trainer


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
    assert f"another `lmtraining run` (process {process.pid} on " in output
    assert f"is at work in {terminal.run}: wait for it" in output
    process.terminate()
    assert terminal.finish(process)[0] == ExitCode.PREEMPTED


def test_a_run_directory_that_is_not_free_is_said_before_torch_is_imported(
    terminal: Terminal,
) -> None:
    """P1: whoever holds it, and without a wait of many seconds."""
    job = terminal.job()
    process = terminal.start("run", str(job), fake="trains_until_stopped")
    until((terminal.run / "pid-0").exists, "a rank")
    trace = terminal.without_torch()
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
