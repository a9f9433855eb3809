"""Checkpoints: whole or absent, verified before they are loaded, kept as promised (P8)."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmtraining_api import FailureClass
from lmtraining_trainer.checkpoint import faults as faults_module
from lmtraining_trainer.checkpoint import tensors
from lmtraining_trainer.checkpoint import write as write_module
from lmtraining_trainer.checkpoint import writer as writer_module
from lmtraining_trainer.checkpoint.pace import Pace
from lmtraining_trainer.checkpoint.reading import PART_BYTES, read_hashed
from lmtraining_trainer.checkpoint.tensors import tensors_in, write_tensors
from lmtraining_trainer.files import nothing, sha256_of_file
from lmtraining_trainer.run import Journal, layout
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    assert_equal_tensors,
    checkpoint_names,
    exported,
    job_of,
    run_alone,
    tiny_spec,
    write_text,
)
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer


def stopped(tmp_path: Path, step: int = 10) -> Path:
    """A run that was stopped at `step`; its directory of checkpoints."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job, faults=Faults(stop_at={0: step - 1}))
    assert (outcome.end, outcome.step) == ("preempted", step)
    return tmp_path / "run" / "checkpoints"


TAKE_OVER: dict[str, dict[str, object]] = {
    "checkpoint": {"path": "shared", "existingRun": "Resume"}
}


def go_on(
    tmp_path: Path, attempt: int = 2, uid: str = "uid-1", **blocks: dict[str, object]
) -> Outcome:
    spec = tiny_spec((tmp_path / "text.jsonl").as_uri(), **blocks)
    return run_alone(job_of(spec, tmp_path, uid=uid), attempt=attempt)


def test_what_a_checkpoint_holds(tmp_path: Path) -> None:
    directory = stopped(tmp_path) / "step-00000010"
    manifest = json.loads((directory / "manifest.json").read_text())
    names = {"model.safetensors", "optimizer.safetensors", "counters.json", "rng-00000.json"}
    assert set(manifest["files"]) == names
    assert {path.name for path in directory.iterdir()} == names | {"manifest.json", "intact.json"}
    for name, entry in manifest["files"].items():
        assert (directory / name).stat().st_size == entry["size"]
        assert sha256_of_file(directory / name) == entry["sha256"]
    assert (manifest["job_uid"], manifest["attempt"], manifest["round"]) == ("uid-1", 1, 1)
    assert (manifest["step"], manifest["world_size"]) == (10, 1)
    counters = json.loads((directory / "counters.json").read_text())
    assert (counters["step"], counters["position"]) == (10, 80)


def test_nothing_in_a_run_directory_is_a_pickle(tmp_path: Path) -> None:
    stopped(tmp_path)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(directory: Path) -> None:
    path = directory / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def remove_generators(directory: Path) -> None:
    (directory / "rng-00000.json").unlink()


def tear_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes()[:50])


def remove_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def alter_manifest(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 3'))


def empty_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"step": 10}')


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (alter_manifest, "not the one that was marked intact"),
        (empty_manifest, "its manifest has no files"),
        (truncate, "model.safetensors has"),
        (flip_a_bit, "optimizer.safetensors has another SHA-256"),
        (remove_generators, "rng-00000.json is missing"),
        (tear_manifest, "no manifest"),
        (remove_manifest, "no manifest"),
    ],
)
def test_p8_a_broken_checkpoint_is_passed_over_and_the_journal_says_why(
    tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    checkpoints = stopped(tmp_path)
    damage(checkpoints / "step-00000010")
    outcome = go_on(tmp_path)
    assert outcome.end == "finished", outcome
    assert outcome.link.report["resumed_from_step"] == 8
    said = outcome.link.report["passed_over"]
    assert said.startswith("checkpoints passed over: step 10 (")
    assert why in said
    (rejected,) = [entry for entry in journal(tmp_path) if entry["kind"] == "Rejected"]
    assert rejected["step"] == 10
    assert why in rejected["detail"]["why"]
    assert "rejected-step-00000010" in checkpoint_names(job_of(tiny_spec("file:///x"), tmp_path))
    # The mended run is the run: the broken one cost steps, not bits.
    straight = job_of(tiny_spec((tmp_path / "text.jsonl").as_uri()), tmp_path / "straight")
    run_alone(straight)
    assert_equal_tensors(exported(straight), exported(job_of(tiny_spec("file:///x"), tmp_path)))


def test_p3_where_all_are_broken_the_run_does_not_begin_anew(tmp_path: Path) -> None:
    checkpoints = stopped(tmp_path)
    for directory in checkpoints.iterdir():
        flip_a_bit(directory)
    for attempt in (2, 3):
        outcome = go_on(tmp_path, attempt=attempt)
        assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "CheckpointsLost")
        for part in (str(checkpoints), "4 were saved", "step 10", "checkpoint.path"):
            assert part in outcome.message
    assert [entry["step"] for entry in journal(tmp_path) if entry["kind"] == "Rejected"] == [
        10, 8, 4, 0,
    ]  # fmt: skip


def test_p8_the_newest_broken_one_is_kept_as_evidence(tmp_path: Path) -> None:
    checkpoints = stopped(tmp_path)
    for step in (8, 10):
        flip_a_bit(checkpoints / layout.directory_name(step))
    report = go_on(tmp_path).link.report
    assert report["resumed_from_step"] == 4
    assert "step 10 (" in report["passed_over"]
    assert ", step 8 (" in report["passed_over"]
    kept = [name for name in layout_names(tmp_path) if name.startswith("rejected-")]
    assert kept == ["rejected-step-00000010"]


@pytest.mark.parametrize("unreadable", ["read_hashed", "mark"])
def test_p8_storage_that_does_not_answer_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    stopped(tmp_path)
    before = layout_names(tmp_path)

    def stale(*arguments: object) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        if unreadable == "mark":
            patch.setattr(layout, "sha256_of", stale)
        else:
            patch.setattr(faults_module, unreadable, stale)
        outcome = go_on(tmp_path)
    assert outcome.failure_class is FailureClass.STORAGE
    assert "Stale file handle" in outcome.message
    assert layout_names(tmp_path) == before
    assert go_on(tmp_path, attempt=3).link.report["resumed_from_step"] == 10


def test_a_crash_before_the_mark_is_mended_by_verifying(tmp_path: Path) -> None:
    checkpoints = stopped(tmp_path)
    (checkpoints / "step-00000010" / "intact.json").unlink()
    assert go_on(tmp_path).link.report["resumed_from_step"] == 10


def test_a_half_written_checkpoint_of_an_earlier_attempt_is_removed(tmp_path: Path) -> None:
    checkpoints = stopped(tmp_path)
    for half in (".writing-abc-step-00000011", ".removing-abc-step-00000002"):
        shutil.copytree(checkpoints / "step-00000010", checkpoints / half)
    shutil.copytree(checkpoints / "step-00000010", tmp_path / "run" / ".writing-abc-export")
    assert go_on(tmp_path).link.report["resumed_from_step"] == 10
    assert not list((tmp_path / "run").rglob(".*"))


def test_p8_keep_last_counts_intact_ones_only(tmp_path: Path) -> None:
    spec = tiny_spec(
        write_text(tmp_path / "text.jsonl"),
        checkpoint={"everySteps": 1, "keepLast": 2, "keepBest": 0},
    )
    assert run_alone(job_of(spec, tmp_path), faults=Faults(stop_at={0: 6})).step == 7
    kept_for_a_rewind = ["step-00000000", "step-00000001"]
    assert layout_names(tmp_path) == [*kept_for_a_rewind, "step-00000006", "step-00000007"]
    # A crash loop during saving leaves unmarked directories: they push nothing out.
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (8, 9, 10):
        directory = checkpoints / layout.directory_name(step)
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"half")
    outcome = run_alone(job_of(spec, tmp_path), attempt=2, faults=Faults(stop_at={0: 7}))
    assert (outcome.link.report["resumed_from_step"], outcome.step) == (7, 9)
    assert layout_names(tmp_path) == [
        "rejected-step-00000010", *kept_for_a_rewind, "step-00000008", "step-00000009",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "parts"),
    [
        (
            {"model": {"config": {"layers": 3, "hiddenSize": 32, "heads": 2}}},
            ["layers 2", "layers 3", "checkpoint.path"],
        ),
        (
            {"data": {"sequenceLength": 32}},
            ["sequenceLength 16", "sequenceLength 32", "checkpoint.path"],
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_both_shapes(
    tmp_path: Path, blocks: dict[str, dict[str, object]], parts: list[str]
) -> None:
    checkpoints = stopped(tmp_path)
    outcome = go_on(tmp_path, uid="uid-2", **TAKE_OVER, **blocks)
    assert (outcome.failure_class, outcome.reason) == (FailureClass.CONFIGURATION, "AnotherModel")
    assert all(part in outcome.message for part in [*parts, str(checkpoints)]), outcome.message
    assert "step-00000010" in layout_names(tmp_path)


def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    write_text(tmp_path / "text.jsonl", documents=45)
    outcome = go_on(tmp_path)
    assert (outcome.failure_class, outcome.reason) == (
        FailureClass.CONFIGURATION, "AnotherTokenizer",
    )  # fmt: skip


def test_a_run_keeps_its_data_though_the_sources_changed_or_went(tmp_path: Path) -> None:
    stopped(tmp_path)
    (tmp_path / "text.jsonl").unlink()
    assert go_on(tmp_path).end == "finished"


def test_full_storage_costs_checkpoints_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = write_module.write_tensors, []

    def full_at_first(*arguments: object) -> layout.FileEntry:
        calls.append(arguments)
        if len(calls) == 5:  # the first file of the checkpoint at step 8
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(write_module, "write_tensors", full_at_first)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job)
    assert outcome.end == "finished"
    errors = [update.fields["checkpoint_error"] for update in outcome.link.updates
              if "checkpoint_error" in update.fields]  # fmt: skip
    assert errors[:2] == ["", ""]
    assert "step 8 could not be written (No space left on device)" in errors[2]
    assert errors[3] == ""
    assert layout_names(tmp_path) == ["step-00000000", "step-00000004", "step-00000012"]


def test_a_skip_that_cannot_be_journalled_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.append

    def full(self: Journal, kind: str, step: int, **detail: object) -> None:
        if kind == "Skipped":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, kind, step, **detail)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", full)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job, faults=Faults(poison={0: (16,)}, stop_at={0: 5}))
    assert (outcome.end, outcome.link.report["skipped_steps"]) == ("preempted", 1)
    resumed = run_alone(job, attempt=2)  # the checkpoint knows of it (P7)
    assert (resumed.end, resumed.link.report["skipped_steps"]) == ("finished", 1)


def test_a_stop_that_cannot_save_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> layout.FileEntry:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_module, "write_tensors", full)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job, faults=Faults(stop_at={0: 2}))
    assert (outcome.failure_class, outcome.reason) == (FailureClass.STORAGE, "CheckpointFailed")
    assert layout_names(tmp_path) == []


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back differs from what was written: not marked, not reported, not loaded."""
    real = write_module.publish_directory

    def lying(temporary: Path, final: Path, check: Callable[[], None], **how: Any) -> None:
        real(temporary, final, check, **how)
        if final.name == "step-00000008":
            flip_a_bit(final)

    monkeypatch.setattr(write_module, "publish_directory", lying)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job, faults=Faults(stop_at={0: 8}))
    assert outcome.step == 9
    assert any("step 8" in update.fields.get("checkpoint_error", "")
               for update in outcome.link.updates)  # fmt: skip
    assert layout_names(tmp_path) == ["step-00000000", "step-00000004", "step-00000009"]


def test_old_checkpoints_that_stay_are_said_and_the_new_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*arguments: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(writer_module, "tidy", busy)
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    outcome = run_alone(job, faults=Faults(stop_at={0: 8}))
    assert (outcome.end, outcome.step) == ("preempted", 9)
    report = outcome.link.report
    assert report["checkpoint"].step == 9
    assert "could not be deleted (Device or resource busy)" in report["checkpoint_error"]


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.randn(3).bfloat16(),  # the next one does not begin at a multiple of its size
        "a/weight": torch.randn(3, 5),
        "scalar": torch.tensor(7.0),
        "half": torch.randn(4).bfloat16(),
        "sliced": torch.arange(12).reshape(3, 4)[:, 1:3],
        "empty": torch.zeros(0, 3),
    }
    entry = write_tensors(tmp_path / "t.safetensors", tensors, Pace(1.0))
    write_tensors(tmp_path / "none.safetensors", {}, Pace(1.0))
    paths = [tmp_path / "t.safetensors", tmp_path / "none.safetensors"]
    read = read_hashed(paths, nothing)
    content, sha256 = read[paths[0]]
    assert entry.sha256 == sha256 == sha256_of_file(tmp_path / "t.safetensors")
    assert_equal_tensors(tensors_in(content), tensors)
    assert_equal_tensors(load_file(tmp_path / "t.safetensors"), tensors)
    assert tensors_in(read[paths[1]][0]) == {}


@pytest.mark.parametrize("refuses", [None, errno.EINVAL], ids=["past the cache", "through it"])
def test_p8_what_is_hashed_is_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: int | None
) -> None:
    """Sizes at and beside the edges of sectors and parts; and a filesystem that refuses only once
    it is read."""
    sizes = (0, 1, 4095, 4096, 4097, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 5)
    contents = {tmp_path / str(size): os.urandom(size) for size in sizes}
    for path, content in contents.items():
        path.write_bytes(content)
    refused = []

    def preadv(descriptor: int, rooms: list[memoryview], at: int) -> int:
        if refuses and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(at)
            raise OSError(refuses, os.strerror(refuses))
        return read(descriptor, rooms, at)

    read = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    for path, (content, sha256) in read_hashed(list(contents), nothing).items():
        assert content.numpy().tobytes() == contents[path], path.name
        assert sha256 == hashlib.sha256(contents[path]).hexdigest(), path.name
    assert bool(refused) == bool(refuses)


def layout_names(tmp_path: Path) -> list[str]:
    return checkpoint_names(job_of(tiny_spec("file:///x"), tmp_path))


def test_no_sync_has_much_to_bring_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: so a slow disk does not look like one that hangs."""
    path = tmp_path / "model.safetensors"
    sizes = [0]
    monkeypatch.setattr(
        tensors, "sync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size)
    )
    monkeypatch.setattr(tensors, "SYNC_BYTES", 4096)
    monkeypatch.setattr(tensors, "HASH_CHUNK_BYTES", 1024)
    pace = Pace(1.0)
    tensors.write_tensors(path, {"w": torch.zeros(8192)}, pace)
    assert len(sizes) >= 8
    assert max(after - before for before, after in pairwise(sizes)) <= 2 * (4096 + 1024)
    assert sizes[-1] == path.stat().st_size
    assert pace.turns > path.stat().st_size / 1024
    assert torch.equal(load_file(path)["w"], torch.zeros(8192))


def test_the_best_and_the_milestones_stay(tmp_path: Path) -> None:
    """Milestones are saved though everySteps passes them by; the loss that counts is that of the
    very step."""
    spec = tiny_spec(
        write_text(tmp_path / "text.jsonl"),
        training={
            "budget": {"steps": 12},
            "optimizer": {"learningRate": 1.0},  # the longer the worse
            "schedule": {"warmupFraction": 0.5},
            "evaluation": {"everySteps": 2, "sequences": 8},
        },
        stability={"skippedStepsMax": 0, "divergenceNats": 100.0, "healthySteps": 1},
        checkpoint={"everySteps": 2, "keepLast": 1, "keepEverySteps": 5},
    )
    outcome = run_alone(job_of(spec, tmp_path))
    assert outcome.end == "finished", outcome
    losses = {
        update.fields["validation_step"]: update.fields["validation_loss"]
        for update in outcome.link.updates
        if "validation_step" in update.fields
    }
    best = min(losses, key=lambda step: (losses[step], -step))
    assert best < 10, "or this would show nothing"
    found = {int(name.removeprefix("step-")) for name in layout_names(tmp_path)}
    assert found == {best, 5, 10, 12}
    manifest = tmp_path / "run" / "checkpoints" / f"step-{best:08d}" / "manifest.json"
    assert json.loads(manifest.read_text())["validation_loss"] == losses[best]
    milestone = tmp_path / "run" / "checkpoints" / "step-00000005" / "manifest.json"
    assert json.loads(milestone.read_text())["validation_loss"] is None
