"""P1: a gang that was replaced publishes no checkpoint and wrecks none."""

from pathlib import Path

import pytest

from lmtraining_api import FailureClass
from lmtraining_trainer import files, rank
from lmtraining_trainer.checkpoint import write as write_module
from lmtraining_trainer.files import temporary_beside
from lmtraining_trainer.run import Fence, layout
from tests.trainer.rank_support import Faults, job_of, run_alone, tiny_spec, write_text
from tests.trainer.test_checkpoint import go_on, layout_names, stopped

pytestmark = pytest.mark.trainer


def test_p1_two_gangs_that_write_the_same_step_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor's half lies there while the old gang writes, and is what the old one leaves."""
    checkpoints = stopped(tmp_path)
    successors: list[Path] = []
    real = write_module.write_tensors

    def overtaken(path: Path, *arguments: object) -> layout.FileEntry:
        if not successors:
            Fence(directory=tmp_path / "run", job_uid="uid-1", attempt=3, round=1).raise_it()
            successors.append(temporary_beside(path.parent.with_name("step-00000012")))
            successors[0].mkdir()
        return real(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write_module, "write_tensors", overtaken)
    assert go_on(tmp_path).reason == "Fenced"
    assert successors[0].is_dir()
    assert [path.name for path in checkpoints.glob(".*")] == [successors[0].name]
    assert not (checkpoints / "step-00000012").exists()


def test_p1_the_fence_is_looked_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing a large checkpoint takes minutes, in which a gang can be replaced."""
    checkpoints = stopped(tmp_path)
    before = layout_names(tmp_path)
    real = files.sync_directory

    def overtaken(path: Path) -> None:
        real(path)
        if path.name.startswith(files.TEMPORARY_PREFIX):
            Fence(directory=tmp_path / "run", job_uid="uid-1", attempt=3, round=1).raise_it()

    monkeypatch.setattr(files, "sync_directory", overtaken)
    assert go_on(tmp_path).reason == "Fenced"
    assert layout_names(tmp_path) == before
    assert checkpoints.is_dir()


def test_p1_a_replaced_gang_publishes_nothing(tmp_path: Path) -> None:
    """A newer attempt raised the fence while this one was training."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    run_alone(job, faults=Faults(stop_at={0: 5}), attempt=1)
    before = layout_names(tmp_path)
    real = rank.train

    def replaced(trainer: object) -> None:
        Fence(directory=tmp_path / "run", job_uid="uid-1", attempt=3, round=1).raise_it()
        real(trainer)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "train", replaced)
        outcome = run_alone(job, attempt=2)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.PEER_LOST, "Fenced")
    assert layout_names(tmp_path) == before
    assert not (tmp_path / "run" / "export").exists()
