"""The training goes on while a checkpoint is written, and is the same training to the last bit."""

import json
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from lmtraining_trainer.checkpoint import Snapshot, Writer, tensors
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.run import layout
from tests.trainer.rank_support import (
    Faults,
    Injection,
    assert_equal_tensors,
    checkpoint_names,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_guard_injections import at, job_in, remedies
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

HOLD_SECONDS_MAX = 60.0


class Disk:
    """A disk that answers when it is told to; whoever waits for the writer lets it go on."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self._answers.set()
        self.writer: Writer | None = None

    def hold(self) -> None:
        """Answer no more, once nothing is under way."""
        save = self.writer.save if self.writer else None
        if save is not None:
            save.pace.hurry()
            wait([save.written], HOLD_SECONDS_MAX)
        self._answers.clear()

    def go_on(self) -> None:
        self._answers.set()

    def await_answer(self) -> None:
        assert self._answers.wait(HOLD_SECONDS_MAX)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    real_sync, real_begin, real_await = tensors.sync, Writer.begin, Writer.await_all

    def sync(descriptor: int) -> None:
        disk.await_answer()
        real_sync(descriptor)

    def begin(self: Writer, snapshot: Snapshot) -> None:
        disk.writer = self
        real_begin(self, snapshot)

    def await_all(self: Writer, *arguments: Any, **fields: Any) -> bool:
        disk.go_on()
        return real_await(self, *arguments, **fields)

    monkeypatch.setattr(tensors, "sync", sync)
    monkeypatch.setattr(Writer, "begin", begin)
    monkeypatch.setattr(Writer, "await_all", await_all)
    return disk


def said(outcome: Any, field: str) -> list[Any]:
    """All that was said of one field, in order."""
    fields = [update.fields for update in outcome.link.updates]
    return [words[field] for words in fields if field in words]


def saved_steps(directory: Path) -> list[int]:
    return [entry["step"] for entry in journal(directory) if entry["kind"] == "Saved"]  # type: ignore[misc]


def files_of(directory: Path, step: int) -> dict[str, Any]:
    """Sizes and hashes, as the manifest has them; the counters hold times too."""
    manifest = directory / "run" / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    files: dict[str, Any] = json.loads(manifest.read_text())["files"]
    return {name: entry for name, entry in files.items() if name != layout.COUNTERS}


def test_p7_steps_go_on_while_a_slow_disk_writes_and_change_nothing_of_what_is_written(
    tmp_path: Path, disk: Disk
) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    straight, slow = (job_of(tiny_spec(uri), tmp_path / name) for name in ("straight", "slow"))
    assert run_alone(straight).end == "finished"
    outcome = run_alone(slow, faults=Faults(saves_beside=True, world={3: disk.hold, 9: disk.go_on}))
    assert outcome.end == "finished"
    assert checkpoint_names(slow) == ["step-00000000", "step-00000004", "step-00000012"]
    assert saved_steps(tmp_path / "slow") == [0, 4, 12]
    for step in (4, 12):
        assert files_of(tmp_path / "slow", step) == files_of(tmp_path / "straight", step)
    assert_equal_tensors(exported(straight), exported(slow))
    # P4: what was left out is said until a later one is intact, and step 4 only once it is.
    errors = said(outcome, "checkpoint_error")
    assert [error[:45] for error in errors] == [
        "", "the checkpoint of step 8 was left out, as tha", "",
    ]  # fmt: skip
    for part in ("that of step 4 has been written for 2 s", "checkpoint.everySteps", "writerShare"):
        assert part in errors[1]
    assert outcome.link.report_before("step", 9)["checkpoint"].step == 0
    assert outcome.link.report["checkpoint"].step == 12


def test_a_checkpoint_that_stays_for_ever_waits_for_the_one_before(
    tmp_path: Path, disk: Disk
) -> None:
    """Whoever waits lets the disk go on: nobody else does here."""
    spec = tiny_spec(write_text(tmp_path / "text.jsonl"), checkpoint={"keepEverySteps": 8})
    outcome = run_alone(
        job_of(spec, tmp_path), faults=Faults(saves_beside=True, world={3: disk.hold})
    )
    assert outcome.end == "finished"
    assert saved_steps(tmp_path) == [0, 4, 8, 12]
    assert not any(said(outcome, "checkpoint_error"))


def test_p8_only_an_intact_checkpoint_becomes_healthy(tmp_path: Path, disk: Disk) -> None:
    spec = tiny_spec(write_text(tmp_path / "text.jsonl"), stability={"healthySteps": 2})
    faults = Faults(saves_beside=True, world={3: disk.hold, 9: disk.go_on}, stop_at={0: 9})
    outcome = run_alone(job_of(spec, tmp_path), faults=faults)
    assert outcome.link.report_before("step", 9)["healthy_step"] == 0


def test_a_stop_waits_for_what_is_being_written_and_then_saves(tmp_path: Path, disk: Disk) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    faults = Faults(saves_beside=True, world={3: disk.hold}, stop_at={0: 5})
    assert run_alone(job, faults=faults).end == "preempted"
    assert checkpoint_names(job) == ["step-00000000", "step-00000004", "step-00000006"]


def test_p3_a_rewind_waits_for_what_is_being_written_and_abandons_it(
    tmp_path: Path, disk: Disk
) -> None:
    stretch = tuple(Injection(position=at(step), what="nan") for step in range(33, 36))
    straight, slow = job_in(tmp_path / "straight"), job_in(tmp_path / "slow")
    assert run_alone(straight, faults=Faults(inject={0: stretch})).end == "finished"
    faults = Faults(saves_beside=True, inject={0: stretch}, world={29: disk.hold})
    assert run_alone(slow, faults=faults).end == "finished"
    kinds = [
        (entry["kind"], entry["step"])
        for entry in journal(tmp_path / "slow")
        if entry["kind"] in {"Saved", "Rewound", "Rejected"} and entry["step"] in {30, 33}
    ]
    assert kinds[:3] == [("Saved", 30), ("Rewound", 33), ("Rejected", 30)]
    assert remedies(tmp_path / "slow") == remedies(tmp_path / "straight")
    assert_equal_tensors(exported(straight), exported(slow))


@pytest.mark.parametrize("world_size", [1, 2])
def test_p7_a_kill_while_a_checkpoint_is_written_leaves_no_trace(
    tmp_path: Path, world_size: int
) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, world_size=world_size, checkpoint={"writerShare": 0.01})
    straight, broken = (job_of(spec, tmp_path / name) for name in ("straight", "broken"))
    run_gang(straight, world_size)
    faults = Faults(saves_beside=True, kill_at={0: 9})  # step 8 is half written
    killed = run_gang(broken, world_size, faults=faults)
    assert killed[0].end == "died"
    resumed = run_gang(broken, world_size, attempt=2)
    assert [outcome.end for outcome in resumed] == ["finished"] * world_size, resumed
    assert_equal_tensors(exported(straight), exported(broken))


def test_a_throttled_writer_rests_and_one_that_is_waited_for_does_not() -> None:
    pace = Pace(0.01)
    assert pace.is_throttled
    pace.hurry()
    assert not pace.is_throttled
    for _ in range(1000):
        pace.turn()  # at a hundredth of the time, these rests would take seconds
    assert pace.turns == 1000
    assert not Pace(1.0).is_throttled
