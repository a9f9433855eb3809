"""The run directory: journal, fence, progress mark, ownership."""

import json
import resource
from pathlib import Path

import pytest

from lmtraining_api import BEGUN, FailureClass, JobFile
from lmtraining_trainer import files
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.rank_link import RankPlace
from lmtraining_trainer.run import Fence, Journal, Run, claim_run
from lmtraining_trainer.run import fence as fence_module
from lmtraining_trainer.run.progress_mark import ProgressMark
from tests.trainer.supervisor_pods import until

pytestmark = pytest.mark.trainer


def fence(directory: Path, attempt: int = 1, round_: int = 1, uid: str = "a") -> Fence:
    return Fence(directory=directory, job_uid=uid, attempt=attempt, round=round_)


def test_the_torn_last_line_of_a_crash_is_dropped_and_the_next_entry_is_whole(
    tmp_path: Path,
) -> None:
    first = Journal(fence(tmp_path))
    first.append("Started", 0)
    first.append("Skipped", 3, position=24, loss=None)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(whole + whole.splitlines(keepends=True)[0][:cut].rstrip(b"\n"))
        again = Journal(fence(tmp_path))
        assert [entry.kind for entry in again.entries] == ["Started", "Skipped"]
        assert path.read_bytes() == whole
    again.append("Saved", 4)
    assert [entry.sequence for entry in Journal(fence(tmp_path)).entries] == [0, 1, 2]


def test_a_damaged_journal_is_named_with_its_line(tmp_path: Path) -> None:
    Journal(fence(tmp_path)).append("Started", 0)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(TrainerError) as raised:
        Journal(fence(tmp_path))
    assert raised.value.reason == "JournalDamaged"
    assert f"{path} line 1" in raised.value.message


def test_a_journal_entry_that_the_disk_refused_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(fence(tmp_path))
    journal.append("Started", 0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lmtraining_trainer.run.journal.sync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append("Skipped", 1, position=8)
    journal.append("Saved", 2)
    assert [entry.kind for entry in Journal(fence(tmp_path)).entries] == ["Started", "Saved"]


def test_half_a_line_on_a_full_disk_is_taken_back(tmp_path: Path) -> None:
    """A limit on the file's size does what a full disk does: a part is written, no more."""
    journal = Journal(fence(tmp_path))
    journal.append("Started", 0)
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            journal.append("Skipped", 1, position=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    journal.append("Saved", 2)
    assert [entry.kind for entry in Journal(fence(tmp_path)).entries] == ["Started", "Saved"]


@pytest.mark.parametrize(
    ("newest", "ours", "may_write"),
    [
        ((1, 1), (1, 1), True),
        ((1, 1), (1, 2), True),
        ((1, 9), (2, 1), True),
        ((1, 2), (1, 1), False),
        ((2, 1), (1, 9), False),
    ],
)
def test_p1_only_the_newest_gang_may_write(
    tmp_path: Path, newest: tuple[int, int], ours: tuple[int, int], may_write: bool
) -> None:
    fence(tmp_path, *newest).raise_it()
    if may_write:
        fence(tmp_path, *ours).raise_it()
        Journal(fence(tmp_path, *ours)).append("Started", 0)
        return
    before = sorted(tmp_path.rglob("*"))
    for act in (
        fence(tmp_path, *ours).check,
        fence(tmp_path, *ours).raise_it,
        lambda: Journal(fence(tmp_path, *ours)).append("Started", 0),
    ):
        with pytest.raises(TrainerError) as raised:
            act()
        assert raised.value.reason == "Fenced"
    assert sorted(tmp_path.rglob("*")) == before


def test_p1_the_fence_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old gang that is held up while it raises the fence finds that a newer one was faster."""
    real, newer = fence_module.sync_directory, fence(tmp_path, 2)

    def slow(path: Path) -> None:
        real(path)
        if not newer_raised:
            newer_raised.append(True)
            newer.raise_it()

    newer_raised: list[bool] = []
    monkeypatch.setattr(fence_module, "sync_directory", slow)
    with pytest.raises(TrainerError, match="replaced by attempt 2"):
        fence(tmp_path, 1).raise_it()
    newer.check()
    fence(tmp_path, 3).raise_it()
    assert len(list((tmp_path / "fence").iterdir())) == 1


def test_p1_a_gang_of_a_job_that_lost_its_run_may_not_write(tmp_path: Path) -> None:
    ours = fence(tmp_path, 5, 5, uid="old")
    ours.raise_it()
    fence(tmp_path, 1, 1, uid="new").raise_it()
    with pytest.raises(TrainerError, match="taken over by another job"):
        ours.check()


def job(
    directory: Path,
    *,
    uid: str,
    existing_run: str = "Refuse",
    steps: int = 5,
    **blocks: dict[str, object],
) -> JobFile:
    spec: dict[str, dict[str, object]] = {
        "model": {"config": {"layers": 1, "hiddenSize": 8, "heads": 1}},
        "data": {"train": [{"uri": "file:///x"}], "sequenceLength": 8},
        "training": {"budget": {"steps": steps}, "batchTokens": 8},
        "checkpoint": {"path": "shared", "existingRun": existing_run},
    }
    for name, block in blocks.items():
        spec[name] = {**spec.get(name, {}), **block}
    return JobFile.model_validate(
        {
            "job_name": f"name-of-{uid}",
            "namespace": "test",
            "job_uid": uid,
            "run_directory": str(directory / "run"),
            "data_cache_directory": str(directory / "cache"),
            "spec": spec,
        }
    )


def claim(job_file: JobFile, attempt: int = 1) -> Run:
    place = RankPlace(
        rank=0,
        world_size=1,
        local_rank=0,
        replica=0,
        attempt=attempt,
        round=1,
        lead_address="127.0.0.1",
        rendezvous_port=0,
    )
    return claim_run(job_file, place)


def test_another_jobs_run_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    claim(job(tmp_path, uid="one"))
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(TrainerError) as raised:
        claim(job(tmp_path, uid="two"))
    assert raised.value.failure_class is FailureClass.CONFIGURATION
    message = raised.value.message
    for part in (str(tmp_path / "run"), "name-of-one", "(one)", "checkpoint.path", "Resume"):
        assert part in message
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_resume_takes_a_run_over_and_the_old_job_loses_it(tmp_path: Path) -> None:
    old = claim(job(tmp_path, uid="one"), attempt=7)
    new = claim(job(tmp_path, uid="two", existing_run="Resume"), attempt=1)
    assert new.record["job_uid"] == "two"
    assert new.journal.entries[-1].detail["taken_over"] is True
    with pytest.raises(TrainerError, match="another job"):
        old.journal.append("Saved", 1)
    with pytest.raises(TrainerError, match="holds the run of another job"):
        claim(job(tmp_path, uid="one"), attempt=8)


ANOTHER_TRAINING: list[tuple[str, dict[str, object]]] = [
    ("model", {"config": {"layers": 2, "hiddenSize": 8, "heads": 1}}),
    ("data", {"train": [{"uri": "file:///y"}]}),
    ("training", {"optimizer": {"learningRate": 1e-5}}),
    ("training", {"seed": 2}),
    ("precision", {"compute": "fp32"}),
]


@pytest.mark.parametrize(("block", "change"), ANOTHER_TRAINING)
def test_another_training_in_a_jobs_own_run_is_refused(
    tmp_path: Path, block: str, change: dict[str, object]
) -> None:
    run = claim(job(tmp_path, uid="one"))
    (run.checkpoints / "step-00000000").mkdir()
    with pytest.raises(TrainerError) as raised:
        claim(job(tmp_path, uid="one", **{block: change}), attempt=2)
    assert raised.value.failure_class is FailureClass.CONFIGURATION
    for part in (str(tmp_path / "run"), f"other values in {block} ", "--runs", "checkpoint.path"):
        assert part in raised.value.message
    claim(job(tmp_path, uid="one"), attempt=3)
    taken = claim(job(tmp_path, uid="two", existing_run="Resume", **{block: change}))
    assert taken.journal.entries[-1].detail["changed"] == block
    claim(job(tmp_path, uid="two", **{block: change}), attempt=2)


@pytest.mark.parametrize(("block", "change"), ANOTHER_TRAINING)
def test_before_the_first_checkpoint_everything_may_be_changed(
    tmp_path: Path, block: str, change: dict[str, object]
) -> None:
    """Whoever follows the advice of a refusal must not be refused for having followed it."""
    claim(job(tmp_path, uid="one"))
    run = claim(job(tmp_path, uid="one", **{block: change}), attempt=2)
    (run.checkpoints / "step-00000000").mkdir()
    claim(job(tmp_path, uid="one", **{block: change}), attempt=3)
    with pytest.raises(TrainerError, match="other values"):
        claim(job(tmp_path, uid="one"), attempt=4)


THE_SAME_TRAINING: list[tuple[str, dict[str, object]]] = [
    ("training", {"budget": {"steps": 9}}),
    ("training", {"gradientAccumulation": 1, "evaluation": {"everySteps": 3}}),
    ("checkpoint", {"everySteps": 3, "keepLast": 5}),
    ("stability", {"skippedStepsMax": 3}),
]


@pytest.mark.parametrize(("block", "change"), THE_SAME_TRAINING)
def test_what_does_not_change_the_mathematics_may_be_changed(
    tmp_path: Path, block: str, change: dict[str, object]
) -> None:
    claim(job(tmp_path, uid="one"))
    claim(job(tmp_path, uid="one", **{block: change}), attempt=2)


def test_p10_a_run_that_is_older_than_a_rule_goes_on(tmp_path: Path) -> None:
    """As it was begun, and without the dropout that had no effect."""
    spec = RUN_OF_AN_OLDER_TRAINER["spec"]
    assert isinstance(spec, dict)
    config = spec["model"]["config"] | {"dropout": 0.5}
    training = spec["training"] | {"regularisation": {"dropout": 0.25}}
    older = {"spec": spec | {"model": {"config": config}, "training": training}}
    begun_by(RUN_OF_AN_OLDER_TRAINER | older, tmp_path)
    mended = job(tmp_path, uid="one", training={"regularisation": {"dropout": 0.25}})
    as_begun = {"spec": mended.spec.model_dump() | {"model": {"config": config}}}
    claim(JobFile.model_validate(mended.model_dump() | as_begun, context=BEGUN), attempt=2)
    claim(mended, attempt=3)
    with pytest.raises(TrainerError, match="other values in model and training"):
        claim(job(tmp_path, uid="one"), attempt=4)


def test_other_credentials_for_the_same_data_are_the_same_training(tmp_path: Path) -> None:
    for attempt, secret in enumerate(("old", "new"), 1):
        source = {"uri": "s3://b/x", "credentials": {"secretRef": {"name": secret}}}
        claim(job(tmp_path, uid="one", data={"train": [source]}), attempt=attempt)


#: What an older trainer wrote, before budgets in tokens and epochs, optimizers, regularisation,
#: fine-tuning and early stopping; each hash is of a block with that trainer's defaults.
RUN_OF_AN_OLDER_TRAINER = {
    "job_uid": "one",
    "job_name": "name-of-one",
    "created": "2026-06-01T00:00:00+00:00",
    "ranks": 1,
    "spec": {
        "model": {"config": {"layers": 1, "hiddenSize": 8, "heads": 1}},
        "data": {"train": [{"uri": "file:///x"}], "sequenceLength": 8},
        "training": {"budget": {"steps": 5}, "batchTokens": 8},
        "checkpoint": {"path": "shared"},
    },
    "training_sha256": {
        "model": "b20adca042fdec4722849b31454fad0fa5ffaf923ffd2fa9f2258e0335bfcc27",
        "data": "5ba6a1b173479c395cec1160736132673e1ba083a1936e55f72381f5abe39483",
        "training": "d7c8e35e6d969cc3630172299ce346f3a2b6c3dae4fb4313c309ad20c7db7d1e",
        "precision": "4fad03c4ac7420cb0ba2161d1167b6d7e25a76fdba6ce25c934edb9e43f02448",
    },
}


def begun_by(record: dict[str, object], directory: Path) -> None:
    """A run directory that some trainer left, with a checkpoint in it."""
    (directory / "run" / "checkpoints" / "step-00000000").mkdir(parents=True)
    (directory / "run" / "run.json").write_text(json.dumps(record))


def test_p10_a_newer_trainer_goes_on_with_the_run_of_an_older_one(tmp_path: Path) -> None:
    begun_by(RUN_OF_AN_OLDER_TRAINER, tmp_path)
    run = claim(job(tmp_path, uid="one"), attempt=2)
    assert run.journal.entries[-1].detail["changed"] is None
    with pytest.raises(TrainerError, match="other values in training "):
        claim(job(tmp_path, uid="one", training={"seed": 2}), attempt=3)


def test_a_run_of_a_newer_trainer_is_gone_on_with_where_that_said_nothing_unknown(
    tmp_path: Path,
) -> None:
    spec = {**RUN_OF_AN_OLDER_TRAINER["spec"], "checkpoint": {"path": "shared", "later": 1}}  # type: ignore[dict-item]
    begun_by({**RUN_OF_AN_OLDER_TRAINER, "spec": spec}, tmp_path)
    claim(job(tmp_path, uid="one"), attempt=2)
    spec["precision"] = {"later": 1}
    begun_by({**RUN_OF_AN_OLDER_TRAINER, "spec": spec}, tmp_path / "other")
    with pytest.raises(TrainerError, match="other values in precision "):
        claim(job(tmp_path / "other", uid="one"), attempt=2)


def test_a_default_that_is_written_out_is_the_same_training(tmp_path: Path) -> None:
    begun_by(RUN_OF_AN_OLDER_TRAINER, tmp_path)
    written = {"optimizer": {"name": "adamw", "learningRate": 6.0e-4}}
    run = claim(job(tmp_path, uid="one", training=written), attempt=2)
    run.finish(job(tmp_path, uid="one").spec, {"step": 5})
    assert run.finished(job(tmp_path, uid="one", training=written).spec) == {"step": 5}  # P2


def test_p2_a_newer_trainer_sees_that_a_run_is_finished(tmp_path: Path) -> None:
    run = claim(job(tmp_path, uid="one"))
    marker = {"job_uid": "one", "spec": RUN_OF_AN_OLDER_TRAINER["spec"], "report": {"step": 5}}
    (run.directory / "finished.json").write_text(json.dumps(marker))
    assert run.finished(job(tmp_path, uid="one").spec) == {"step": 5}


@pytest.mark.parametrize(
    ("uid", "done", "steps", "is_finished"),
    [
        ("one", 5, 5, True),
        ("one", 5, 6, False),  # raised since
        ("one", 6, 6, True),  # raised while it ran
        ("one", 4, 5, False),  # raised since, by the older trainer, which did not get there
        ("two", 5, 5, False),
    ],
)
def test_p2_a_finished_marker_with_a_hash_alone_is_of_the_spec_of_its_run(
    tmp_path: Path, uid: str, done: int, steps: int, is_finished: bool
) -> None:
    """In every attempt; though run.json is of the newest one from its start on."""
    begun_by(RUN_OF_AN_OLDER_TRAINER, tmp_path)
    report = {"step": done, "total_steps": done}
    marker = {"job_uid": uid, "spec_sha256": "0" * 64, "report": report}
    (tmp_path / "run" / "finished.json").write_text(json.dumps(marker))
    for attempt in (2, 3):
        now = job(tmp_path, uid="one", steps=steps)
        assert claim(now, attempt).finished(now.spec) == (report if is_finished else None)


def test_p2_finished_is_of_one_spec(tmp_path: Path) -> None:
    run = claim(job(tmp_path, uid="one"))
    run.finish(job(tmp_path, uid="one").spec, {"step": 5})
    again = claim(job(tmp_path, uid="one"), attempt=2)
    assert again.finished(job(tmp_path, uid="one").spec) == {"step": 5}
    assert again.finished(job(tmp_path, uid="one", steps=6).spec) is None


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(TrainerError) as raised:
        claim(job(tmp_path, uid="one"))
    assert raised.value.failure_class is FailureClass.STORAGE
    assert str(tmp_path / "run") in raised.value.message


def test_progress_mark_is_never_too_high(tmp_path: Path) -> None:
    mark = ProgressMark(tmp_path)
    mark.record(5)
    mark.record(6)  # within the same second: not written
    until(lambda: ProgressMark(tmp_path).highest, "the mark is written")
    assert ProgressMark(tmp_path).highest == 5
    (tmp_path / "progress").write_text("garb")
    assert ProgressMark(tmp_path).highest == 0


@pytest.mark.parametrize(("kind", "method"), [(Journal, "append"), (Run, "remember")])
def test_a_takeover_that_crashes_half_way_is_a_takeover_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    """The new owner's budgets are its own only if the journal knows of the takeover."""
    claim(job(tmp_path, uid="one"))

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            claim(job(tmp_path, uid="two", existing_run="Resume"))
    run = claim(job(tmp_path, uid="two", existing_run="Resume"), attempt=2)
    assert run.record["job_uid"] == "two"
    starts = [entry for entry in run.journal.entries if entry.kind == "Started"]
    assert any(entry.detail["taken_over"] for entry in starts)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
