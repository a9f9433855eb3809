"""The life of a pod's supervisor, with ranks that do one thing each; real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, ExitRecord, FailureClass, names
from tests.trainer.memory_cgroup import memory_cgroup
from tests.trainer.supervisor_pods import PID_1, Pod, pods, spec, until
from tests.trainer.supervisor_preloads import FAULT
from tests.trainer.supervisor_ranks import SECRET

pytestmark = pytest.mark.trainer


def _pod(directory: Path, function: str, ranks: int = 2, **changes: int) -> Pod:
    return Pod(directory, function, spec(ranksPerReplica=ranks), **changes)


def test_a_pod_that_finishes_exits_0_and_leaves_its_record(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "finishes")
    with pods(pod):
        pod.until_state("Waiting")
        pod.intend()
        assert pod.wait() == ExitCode.FINISHED
    record = pod.record()
    assert (record.reason, record.failure_class) == ("Finished", None)
    lead = json.loads((pod.run_directory / "exit.json").read_text())
    mine = json.loads((pod.run_directory / "exits/attempt-1-replica-0.json").read_text())
    assert lead == mine == json.loads(pod.termination_log.read_text())


def test_a_stray_intent_is_waited_out_and_said(tmp_path: Path) -> None:
    """P1: older, foreign, incomplete or broken intents never start a rank. A stop that comes before
    anything was started is one too: exit code 80."""
    pod = _pod(tmp_path, "trains_until_stopped", attempt=3)
    other = Pod(tmp_path / "other", "finishes", spec(), attempt=3)
    other.uid = "uid-of-a-pod-that-had-my-name"

    def waits_because(words: str) -> None:
        def said() -> bool:
            report = pod.report()
            return report is not None and report.state == "Waiting" and words in report.message

        until(said, words)

    with pods(pod):
        waits_because("waiting for the operator's intent")
        pod.intend_text('{"jobUid": "11')
        waits_because("cannot")
        pod.intend(attempt=2)
        waits_because("attempt 2")
        pod.intend(jobUid="another")
        waits_because("another")
        pod.intend(peers=[])
        waits_because("1 of 1 pods")
        pod.intend(other)
        waits_because("names another pod")
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED
    assert not (pod.run_directory / "pid-0").exists()
    assert "before the ranks were started" in pod.record().message


FAILURES = [
    ("raises", ExitCode.CRASH, FailureClass.CRASH, "RankRaised"),
    ("raises_out_of_memory", ExitCode.OUT_OF_MEMORY, FailureClass.OUT_OF_MEMORY, "OutOfMemory"),
    ("diverges", ExitCode.DIVERGED, FailureClass.DIVERGED, "TooManySkippedSteps"),
    ("loses_its_peer", ExitCode.CRASH, FailureClass.CRASH, "RankRaised"),
]


@pytest.mark.parametrize(("function", "code", "failure", "reason"), FAILURES)
def test_the_rank_that_failed_first_decides(
    tmp_path: Path, function: str, code: ExitCode, failure: FailureClass, reason: str
) -> None:
    pod = _pod(tmp_path, function)
    with pods(pod):
        pod.intend()
        assert pod.wait() == code
    record = pod.record()
    assert (record.failure_class, record.reason, record.rank) == (failure, reason, 1)
    assert SECRET not in pod.termination_log.read_text()  # P11
    if code != ExitCode.DIVERGED:
        assert SECRET in pod.log.read_text()  # the pod's own log has it all
        assert "supervisor_ranks.py" in record.frames[-1]
    else:
        assert record.step == 17


def test_a_rank_that_leaves_with_0_has_not_finished(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "leaves_without_a_word")
    with pods(pod):
        pod.intend()
        assert pod.wait() == ExitCode.CRASH
    assert pod.record().reason == "RankExited"


def test_a_killed_rank_ends_the_pod_and_is_named(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "trains_until_stopped")
    with pods(pod):
        pod.intend()
        victim = pod.rank_process(1)
        pod.until_state("Training")
        os.kill(victim, signal.SIGKILL)
        assert pod.wait() == ExitCode.CRASH
    record = pod.record()
    assert (record.reason, record.rank) == ("RankKilled", 1)
    assert "SIGKILL" in record.message


def test_sigterm_saves_and_exits_80(tmp_path: Path) -> None:
    """No preemption looks like success."""
    pod = _pod(tmp_path, "trains_until_stopped")
    with pods(pod):
        pod.intend()
        pod.until_state("Training")
        pod.process.terminate()
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED
    record = pod.record()
    assert record.failure_class is FailureClass.DISRUPTION
    assert record.step
    assert f"step {record.step}" in record.message


def test_a_save_that_takes_longer_than_the_grace_leaves_a_record(tmp_path: Path) -> None:
    """The kubelet's SIGKILL would leave none; being told again makes the wait no longer."""
    pod = _pod(tmp_path, "ignores_the_stop")
    pod.environment = {names.ENV_GRACE_SECONDS: "2"}
    with pods(pod):
        pod.intend()
        pod.until_state("Training")
        ranks = [pod.rank_process(0), pod.rank_process(1)]
        pod.process.terminate()
        until((pod.run_directory / "asked-to-stop").exists, "the stop")
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED
        assert not set(ranks) & set(pod.processes())
    record = pod.record()
    assert (record.failure_class, record.reason) == (FailureClass.DISRUPTION, "GraceTooShort")
    assert "within recovery.graceSeconds 2: the newest intact checkpoint stands" in record.message


def test_a_killed_supervisor_leaves_no_rank(tmp_path: Path) -> None:
    """P1: nobody writes into a run that nobody watches. Until then a stop that comes before a rank
    has its handler is held back: it inherits the fork server's mask, and would else be killed."""
    pod = _pod(tmp_path, "ignores_the_stop")
    with pods(pod):
        pod.intend()
        ranks = [pod.rank_process(0), pod.rank_process(1)]
        held = int(_status(int(_status(ranks[0], "PPid")), "SigBlk"), 16)
        assert held >> (signal.SIGTERM - 1) & 1
        assert held >> (signal.SIGINT - 1) & 1
        assert not int(_status(ranks[0], "SigBlk"), 16)
        pod.process.kill()
        pod.wait()
        until(lambda: not set(ranks) & set(pod.processes()), "no rank", seconds=5)


@pytest.fixture
def pid_1(tmp_path: Path) -> Iterator[Pod]:
    if subprocess.run([*PID_1, "true"], check=False).returncode:
        pytest.skip("no right to make a PID namespace")
    pod = _pod(tmp_path, "leaves_an_orphan", ranks=1)
    pod.start(as_pid_1=True)
    yield pod
    pod.process.kill()
    pod.wait()


def _init(pod: Pod) -> int | None:
    """The process that is PID 1 in the pod's namespace, by its number outside."""
    outer = pod.process.pid
    children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    return int(children[0]) if children else None


def test_pid_1_hears_a_stop_while_it_still_imports(pid_1: Pod) -> None:
    """The kernel drops a signal to PID 1 that has no handler."""
    init = until(lambda: _init(pid_1), "PID 1")
    # Before it is Python it is `unshare`, which holds the signal back as well, and lets it go.
    until(lambda: Path(f"/proc/{init}/exe").readlink() == Path(sys.executable).resolve(), "Python")
    until(lambda: int(_status(init, "SigBlk"), 16) >> (signal.SIGTERM - 1) & 1, "held back")
    os.kill(init, signal.SIGTERM)
    pid_1.wait()
    assert pid_1.record().exit_code == ExitCode.PREEMPTED


def test_pid_1_reaps_what_others_leave_behind(pid_1: Pod) -> None:
    pid_1.intend()
    pid_1.until_state("Training")
    until((pid_1.run_directory / "orphan").exists, "an orphan")
    init = until(lambda: _init(pid_1), "PID 1")

    def zombies() -> list[str]:
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return [child for child in children if _status(int(child), "State") == "Z"]

    until(lambda: not zombies(), "no zombie", seconds=5)
    os.kill(init, signal.SIGTERM)
    pid_1.wait()
    assert pid_1.record().exit_code == ExitCode.PREEMPTED


def test_a_killed_fork_server_ends_the_pod_with_its_ranks(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "ignores_the_stop")
    with pods(pod):
        pod.intend()
        ranks = [pod.rank_process(0), pod.rank_process(1)]
        os.kill(int(_status(ranks[0], "PPid")), signal.SIGKILL)
        assert pod.wait() == ExitCode.UNKNOWN
        until(lambda: not set(ranks) & set(pod.processes()), "no rank", seconds=5)
    assert pod.record().reason == "ForkServerEnded"
    assert "with SIGKILL" in pod.record().message


PRELOADS = "tests.trainer.supervisor_preloads:never"
MEMORY_LIMIT = 200 * 2**20


@pytest.mark.parametrize("as_pid_1", [False, True])
@pytest.mark.parametrize(("fault", "words"), [("killed", "SIGKILL"), ("segfault", "SIGSEGV")])
def test_a_fork_server_that_ends_while_it_imports_is_named(
    tmp_path: Path, fault: str, words: str, as_pid_1: bool
) -> None:
    """P4: not by the exception of the pipe that broke."""
    if as_pid_1 and subprocess.run([*PID_1, "true"], check=False).returncode:
        pytest.skip("no right to make a PID namespace")
    pod = _pod(tmp_path, PRELOADS)
    pod.environment = {FAULT: fault}
    pod.intend()
    pod.start(as_pid_1=as_pid_1)
    pod.wait()
    record = pod.record()
    assert (record.failure_class, record.reason) == (FailureClass.UNKNOWN, "ForkServerEnded")
    assert f"ended with {words}" in record.message
    assert record.frames == []


@pytest.mark.parametrize(("function", "who"), [("eats", "rank 0"), (PRELOADS, "the fork server")])
def test_what_the_kernel_kills_for_memory_is_out_of_memory(
    tmp_path: Path, function: str, who: str
) -> None:
    """P4: with the limit and the field that sets it; in a cgroup as a container has one."""
    pod = _pod(tmp_path, function)
    pod.environment = {FAULT: "eats"}
    with memory_cgroup(MEMORY_LIMIT) as cgroup:
        pod.cgroup = cgroup
        with pods(pod):
            pod.intend()
            assert pod.wait() == ExitCode.OUT_OF_MEMORY
    record = pod.record()
    assert (record.failure_class, record.reason) == (FailureClass.OUT_OF_MEMORY, "OutOfMemory")
    assert f"the kernel killed {who} because memory ran out at 200Mi" in record.message
    assert "workers.resources.memory" in record.message


def _status(process: int, field: str) -> str:
    """A field of /proc/<process>/status."""
    text = Path(f"/proc/{process}/status").read_text()
    return text.partition(f"{field}:")[2].split()[0]


def test_a_report_without_nan_says_so(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "says_nan", ranks=1)
    with pods(pod):
        pod.intend()
        report = pod.until_state("Training")
        assert (report.step, report.loss, report.loss_is_finite) == (3, None, False)
        assert report.gradient_norm is None
        assert b"nan" not in pod.get("/metrics").lower()
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED


def test_seconds_by_state_add_up_to_the_life_of_the_supervisor(tmp_path: Path) -> None:
    """P9: asked twice, the accounts grew by exactly the time between."""
    pod = _pod(tmp_path, "trains_until_stopped")
    with pods(pod):
        pod.until_state("Waiting")
        pod.intend()
        first = pod.until_state("Training")
        step = first.step
        until(lambda: (r := pod.report()) is not None and r.step > step + 50, "50 steps")
        second = pod.report()
        assert second is not None
        grown = sum(second.time_seconds.values()) - sum(first.time_seconds.values())
        passed = (second.report_time - first.report_time).total_seconds()
        assert grown == pytest.approx(passed, rel=0.1)
        assert second.time_seconds["Waiting"] == first.time_seconds["Waiting"] > 0
        assert max(r.heartbeat_age_seconds for r in second.ranks) < 5
        assert len(second.ranks) == 2
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED


def test_the_next_lead_reports_how_the_attempt_before_ended(tmp_path: Path) -> None:
    before = _pod(tmp_path, "diverges")
    with pods(before):
        before.intend()
        before.wait()
    after = _pod(tmp_path, "trains_until_stopped", attempt=2)
    with pods(after):
        after.intend()
        report = after.until_state("Training")
        assert report.last_exit == before.record()
        after.process.terminate()
        after.wait()


@pytest.mark.parametrize("wrong", ["{", '{"jobName": "job"}', None])
def test_a_bad_job_file_is_a_bad_configuration(tmp_path: Path, wrong: str | None) -> None:
    pod = _pod(tmp_path, "finishes")
    job_file = pod.home / "job.json"
    job_file.write_text(wrong) if wrong else job_file.unlink()
    with pods(pod):
        assert pod.wait() == ExitCode.CONFIGURATION
    assert str(job_file) in pod.record().message


def test_clients_that_are_slow_or_hostile_hold_nobody_up(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "trains_until_stopped", ranks=1)
    with pods(pod):
        pod.intend()
        pod.until_state("Training")
        silent = [socket.create_connection((pod.address, pod.port)) for _ in range(32)]
        for client in silent[::2]:
            client.sendall(b"GET /report HTTP/1.1\r\nX: ")
        for _ in range(50):
            assert pod.report() is not None  # answered though the others are not done
        silent[0].settimeout(20)
        assert silent[0].recv(1) == b""  # hung up on
        for client in silent:
            client.close()
        for request, status in [
            (b"POST /report HTTP/1.1\r\n\r\n", b"405"),
            (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"),
            (b"\x16\x03\x01 nonsense\r\n\r\n", b"400"),
        ]:
            with socket.create_connection((pod.address, pod.port), timeout=5) as client:
                client.sendall(request)
                assert status in client.recv(64)
        with socket.create_connection((pod.address, pod.port), timeout=5) as client:
            client.sendall(b"GET /" + b"x" * 100_000)
        assert pod.get("/healthz") == b"ok\n"
        assert b"lmtraining_step{" in pod.get("/metrics")
        pod.process.terminate()
        assert pod.wait() == ExitCode.PREEMPTED


def test_a_taken_report_port_is_said(tmp_path: Path) -> None:
    pod = _pod(tmp_path, "finishes")
    with socket.socket() as taken:
        taken.bind((pod.address, pod.port))
        taken.listen()
        with pods(pod):
            assert pod.wait() == ExitCode.CONFIGURATION
    assert str(pod.port) in pod.record().message


def test_an_unwritable_run_directory_does_not_change_the_exit(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file is in the way")
    pod = _pod(tmp_path, "leaves_without_a_word")
    with pods(pod):
        pod.intend()
        assert pod.wait() == ExitCode.CRASH
    assert isinstance(pod.record(), ExitRecord)
