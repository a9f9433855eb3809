"""Storage that is full, read-only, forbidden or hangs costs checkpoints, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmtraining_api import ExitCode, FailureClass
from lmtraining_trainer import saving
from lmtraining_trainer.run import layout
from tests.trainer.rank_support import (
    Faults,
    checkpoint_names,
    job_of,
    run_alone,
    tiny_spec,
    write_text,
)
from tests.trainer.supervisor_pods import Pod, corpus, pods, spec, until
from tests.trainer.test_checkpoint_beside import said, saved_steps
from tests.trainer.volumes import Volume, volume

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("harm", "mend", "words"),
    [
        (Volume.fill, Volume.empty, "No space left on device"),
        (Volume.make_read_only, Volume.make_writable, "Read-only file system"),
        (Volume.forbid, Volume.allow, "Operation not permitted"),
    ],
    ids=["full", "read-only", "forbidden"],
)
def test_p8_a_save_that_fails_is_said_and_costs_nothing_that_is_there(
    tmp_path: Path, harm: Callable[[Volume], None], mend: Callable[[Volume], None], words: str
) -> None:
    with volume(tmp_path / "run") as storage:
        job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
        world = {6: lambda: harm(storage), 10: lambda: mend(storage)}
        outcome = run_alone(job, faults=Faults(world=world))
        assert outcome.end == "finished"
        assert checkpoint_names(job) == ["step-00000000", "step-00000004", "step-00000012"]
        errors = said(outcome, "checkpoint_error")
        assert f"checkpoint of step 8 could not be written ({words})" in errors[2]
        assert [bool(error) for error in errors] == [False, False, True, False]
        is_full = words.startswith("No space")
        assert said(outcome, "storage_is_full") == [False, False, is_full, False]


def test_storage_that_hangs_is_said_and_a_stop_names_what_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: the steps go on, and the report says since when the storage does not answer."""
    monkeypatch.setattr(saving, "HANGING_SECONDS", 0.2)
    with volume(tmp_path / "run") as storage:
        uri = write_text(tmp_path / "text.jsonl", documents=400)
        job = job_of(tiny_spec(uri, training={"budget": {"steps": 100_000}}), tmp_path)
        checkpoints = storage.path / "checkpoints"

        def freeze() -> None:
            until(lambda: 4 in saved_steps(tmp_path), "step 4 is intact")
            storage.freeze()

        def has_come_on() -> bool:
            newest = layout.newest_first(checkpoints)[0]
            return newest.name > "step-00000004" and layout.is_marked_intact(newest)

        outcome = run_alone(
            job,
            faults=Faults(
                saves_beside=True,
                world={7: freeze},
                stop_when=lambda report: "has not answered" in report.get("checkpoint_error", ""),
            ),
        )
        assert (outcome.failure_class, outcome.reason) == (
            FailureClass.STORAGE, "CheckpointFailed",
        )  # fmt: skip
        assert outcome.link.report["step"] > 12
        errors = " ".join(said(outcome, "checkpoint_error"))
        assert "was left out, as that of step" in errors
        for part in ("has not answered since 20", "in the midst of", "that of step 4 stands"):
            assert part in errors
            assert part in outcome.message
        storage.thaw()
        until(has_come_on, "the writer comes on again")


def test_a_pod_whose_storage_hangs_stops_within_its_grace(tmp_path: Path) -> None:
    """P4: training went on, and the record says from where the run goes on."""
    with volume(tmp_path / "run") as storage:
        job = spec(corpus(tmp_path / "corpus"))
        job["training"]["budget"]["steps"] = 1_000_000
        job["checkpoint"]["everySteps"] = 20
        pod = Pod(tmp_path, None, job)
        with pods(pod):
            pod.intend()
            until(lambda: (r := pod.report()) and r.checkpoint and r.step > 20, "a checkpoint")
            storage.freeze()
            frozen = until(pod.report, "a report")
            until(
                lambda: (r := pod.report()) and r.step > frozen.step + 60 and r.checkpoint_error,
                "steps without a checkpoint",
            )
            pod.process.terminate()
            until(pod.termination_log.read_text, "a record within the grace of 60 s", 60.0)
            storage.thaw()
            assert pod.wait() == ExitCode.STORAGE
        record = pod.record()
        assert record.reason == "CheckpointFailed"
        assert record.checkpoint is not None
        assert f"that of step {record.checkpoint.step} stands" in record.message
