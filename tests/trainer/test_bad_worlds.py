"""Storage, clocks and people that misbehave: each gets a sentence, and nothing good is lost."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import ExitCode, FailureClass
from lmtraining_trainer.checkpoint import write as write_module
from lmtraining_trainer.run import layout
from tests.trainer.rank_support import (
    NO_SECRETS,
    Faults,
    LocalLink,
    Outcome,
    _outcome_of,
    assert_equal_tensors,
    exported,
    job_of,
    place_of,
    run_alone,
    tiny_spec,
    write_text,
)
from tests.trainer.supervisor_pods import corpus, spec
from tests.trainer.terminal import Terminal
from tests.trainer.test_checkpoint import TAKE_OVER, go_on, layout_names, stopped
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

#: Root without the right to pass over permissions: what a pod's user is.
NO_OVERRIDE = [
    *("setpriv", "--bounding-set", "-dac_override,-dac_read_search"),
    *("--inh-caps", "-dac_override,-dac_read_search"),
]
#: A mount namespace of its own, in which the directory of runs can only be read.
READ_ONLY = [
    *("unshare", "--mount", "sh", "-c"),
    'mount --bind runs runs && mount -o remount,ro,bind runs && exec "$@"',
    "sh",
]


class At(LocalLink):
    """A link that does something when a step is reported."""

    def __init__(self, **acts: Callable[[], object]) -> None:
        super().__init__()
        self.acts = acts

    def say(self, state: Any, **fields: object) -> None:
        super().say(state, **fields)
        act = self.acts.pop(f"step_{fields.get('step')}", None)
        if act is not None:
            act()


def limit_files(bytes_max: int) -> None:
    """No file may be longer: the kernel ends a write in its middle, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, hard))


def run_with(link: LocalLink, tmp_path: Path, **blocks: dict[str, object]) -> Outcome:
    job = job_of(tiny_spec((tmp_path / "text.jsonl").as_uri(), **blocks), tmp_path)
    try:
        return _outcome_of(job, place_of(), link, NO_SECRETS)
    finally:
        limit_files(resource.RLIM_INFINITY)


def test_p8_a_disk_that_is_full_in_the_middle_of_a_save_costs_that_save(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    link = At(
        step_6=lambda: limit_files(20_000), step_9=lambda: limit_files(resource.RLIM_INFINITY)
    )
    outcome = run_with(link, tmp_path)
    assert outcome.end == "finished", outcome
    said = [update.fields.get("checkpoint_error", "") for update in link.updates]
    (error,) = {text for text in said if text}
    assert "checkpoint of step 8 could not be written (File too large)" in error
    assert "free space in the storage of checkpoint.storage" in error
    assert link.report["checkpoint_error"] == ""  # and is over with the next good one
    assert layout_names(tmp_path) == ["step-00000000", "step-00000004", "step-00000012"]
    straight = job_of(tiny_spec((tmp_path / "text.jsonl").as_uri()), tmp_path / "straight")
    run_alone(straight)
    assert_equal_tensors(exported(straight), exported(job_of(tiny_spec("file:///x"), tmp_path)))


def test_p8_a_stop_on_a_full_disk_is_an_error_and_the_older_one_is_loaded(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    link = At(step_6=lambda: limit_files(20_000))
    link.faults = Faults(stop_at={0: 6})
    outcome = run_with(link, tmp_path)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "CheckpointFailed")
    assert "step 7 could not be written (File too large)" in outcome.message
    assert layout_names(tmp_path) == ["step-00000000", "step-00000004"]
    assert go_on(tmp_path).link.report["resumed_from_step"] == 4


def test_p3_a_clock_that_is_set_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt lived a day ahead: its files and entries are of the future."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=1)

    with monkeypatch.context() as patch:
        patch.setattr(write_module, "datetime", Ahead)
        stopped(tmp_path)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).timestamp()
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    outcome = go_on(tmp_path)
    assert outcome.end == "finished", outcome
    report = outcome.link.report
    assert report["resumed_from_step"] == 10
    assert 0 <= report["load_seconds"] < 60
    assert report["checkpoint"].time < datetime.now(UTC)
    assert all(
        update.fields[name] >= 0
        for update in outcome.link.updates
        for name in ("eta_seconds", "tokens_per_second", "replayed_steps")
        if update.fields.get(name) is not None
    )
    assert layout_names(tmp_path)[-1] == "step-00000012"
    steps = [entry["step"] for entry in journal(tmp_path) if entry["kind"] == "Saved"]
    assert steps == [0, 4, 8, 10, 12]


def test_a_checkpoint_of_another_job_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    theirs = stopped(tmp_path) / "step-00000010"
    uri = (tmp_path / "text.jsonl").as_uri()
    ours = tmp_path / "ours"
    run_alone(job_of(tiny_spec(uri), ours, uid="uid-2"), faults=Faults(stop_at={0: 5}))
    put = ours / "run" / "checkpoints" / "step-00000010"
    shutil.copytree(theirs, put)
    outcome = run_alone(job_of(tiny_spec(uri), ours, uid="uid-2"), attempt=2)
    assert (outcome.failure_class, outcome.reason) == (
        FailureClass.CONFIGURATION, "CheckpointOfAnotherJob",
    )  # fmt: skip
    for part in (str(put), "job uid-1", "move it away", "checkpoint.existingRun to Resume"):
        assert part in outcome.message
    taken = run_alone(job_of(tiny_spec(uri, **TAKE_OVER), ours, uid="uid-2"), attempt=3)
    assert (taken.end, taken.link.report["resumed_from_step"]) == ("finished", 10)


def test_a_job_that_took_a_run_over_goes_on_from_it_after_a_crash(tmp_path: Path) -> None:
    """Also where it no longer says that it takes it over: the journal knows whose it was."""
    stopped(tmp_path)
    uri = (tmp_path / "text.jsonl").as_uri()
    taken = job_of(tiny_spec(uri, **TAKE_OVER), tmp_path, uid="uid-2")
    assert run_alone(taken, faults=Faults(stop_at={0: 10})).end == "preempted"
    for step in (11, 12):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / layout.directory_name(step), True)
    again = run_alone(job_of(tiny_spec(uri), tmp_path, uid="uid-2"), attempt=2)
    assert (again.end, again.link.report["resumed_from_step"]) == ("finished", 10)


def test_p3_a_checkpoint_of_a_newer_version_is_refused_and_stays(tmp_path: Path) -> None:
    """Passing it over would go back to an older one without a word."""
    checkpoints = stopped(tmp_path)
    newer = checkpoints / "step-00000010"
    manifest = json.loads((newer / layout.MANIFEST).read_text())
    (newer / layout.MANIFEST).write_text(json.dumps(manifest | {"schema_version": 7}))
    layout.mark_intact(newer, layout.manifest_sha256(newer))
    before = layout_names(tmp_path)
    outcome = go_on(tmp_path)
    assert (outcome.failure_class, outcome.reason) == (
        FailureClass.CONFIGURATION, "NewerCheckpoint",
    )  # fmt: skip
    reads = f"reads versions up to {layout.SCHEMA_VERSION}"
    for part in (str(newer), "schema version 7", reads, "workers.image"):
        assert part in outcome.message
    assert layout_names(tmp_path) == before


def started_at(terminal: Terminal, *wrapper: str) -> tuple[int, str]:
    """`lmtraining run` in the world that `wrapper` makes."""
    command = [*wrapper, *terminal.command("run", str(terminal.directory / "job.yaml"))]
    ended = subprocess.run(
        command,
        cwd=terminal.directory,
        env=terminal.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("wrapper", "why"),
    [(NO_OVERRIDE, "Permission denied"), (READ_ONLY, "Read-only file system")],
)
def test_runs_that_cannot_be_written_are_said_at_once(
    terminal: Terminal, wrapper: list[str], why: str
) -> None:
    runs = terminal.directory / "runs"
    runs.mkdir(mode=0o555)
    terminal.job(spec(corpus(terminal.directory / "corpus")))
    trace = terminal.without_torch()
    code, output = started_at(terminal, *wrapper)
    assert (code, why in output) == (ExitCode.STORAGE, True), output
    assert output.splitlines() == [
        f"RunDirectoryUnusable (exit code 87): the run directory {terminal.run} cannot be written "
        f"({why}): free space there or make it writable, or choose another with --runs."
    ]
    assert not trace.exists()
    assert list(runs.iterdir()) == []


def test_p8_a_checkpoint_that_may_not_be_read_is_no_broken_one(terminal: Terminal) -> None:
    terminal.job(spec(corpus(terminal.directory / "corpus")))
    code, output = started_at(terminal)
    assert code == ExitCode.FINISHED, output
    (terminal.run / "finished.json").unlink()
    checkpoints = terminal.run / "checkpoints"
    before = sorted(checkpoints.rglob("*"))
    closed = checkpoints / "step-00000020" / layout.MODEL
    closed.chmod(0)
    code, output = started_at(terminal, *NO_OVERRIDE)
    assert (code, "Permission denied" in output) == (ExitCode.STORAGE, True), output
    assert sorted(checkpoints.rglob("*")) == before
    closed.chmod(0o644)
    assert started_at(terminal)[0] == ExitCode.FINISHED
