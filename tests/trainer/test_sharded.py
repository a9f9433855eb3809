"""Layout fsdp: the same training as ddp, and checkpoints of which each rank writes its part."""

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import lmtraining_trainer.loop
from lmtraining_api import FailureClass, JobFile
from lmtraining_api.job import Parallelism
from lmtraining_trainer import saving
from lmtraining_trainer.checkpoint import (
    Chosen,
    needed_parts,
    part_fault,
    tensors,
)
from lmtraining_trainer.errors import TrainerError
from lmtraining_trainer.files import nothing, sync
from lmtraining_trainer.run import inventory, layout
from tests.trainer.injections import Injection
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    assert_equal_tensors,
    checkpoint_names,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.supervisor_pods import until
from tests.trainer.test_checkpoint_beside import saved_steps
from tests.trainer.test_guard_injections import at, remedies
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

SAME_LOSS = 1e-5
"""Relative: ddp and fsdp add the ranks' gradients in another order, in fp32."""
SAME_SAMPLE = 1e-3
"""Relative."""
SAME_WEIGHTS = 1e-4
"""Absolute, after some steps of 3e-3 each."""
HOLD_SECONDS_MAX = 60.0
LLAMA = {"architecture": "llama", "layers": 2, "hiddenSize": 32, "heads": 2, "dropout": 0.0}


def job_in(directory: Path, *, layout: str = "fsdp", ranks: int = 2, **blocks: Any) -> JobFile:
    uri = write_text(directory.parent / "text.jsonl")
    spec = tiny_spec(uri, world_size=ranks, parallelism={"layout": layout}, **blocks)
    return job_of(spec, directory)


def without_dropout(directory: Path, **how: Any) -> JobFile:
    """A job that is the same training for every number of ranks; validation leaves the last rank
    with fewer passes than the first."""
    training = {
        "gradientAccumulation": 2,
        "evaluation": {"everySteps": 6, "sequences": 5, "robustness": {"seeds": 1}},
    }
    return job_in(directory, model={"config": LLAMA}, training=training, **how)


def look_closely() -> None:
    """In a rank: sample and compare oftener than in earnest."""
    lmtraining_trainer.loop.SAMPLE_STEPS = 6
    lmtraining_trainer.loop.REPLICA_CHECK_STEPS = 5


def going_on(
    straight: JobFile, directory: Path, *, layout: Literal["ddp", "fsdp"] = "fsdp", ranks: int = 2
) -> JobFile:
    """The same run as a copy, not marked as finished."""
    shutil.copytree(straight.run_directory, directory / "run")
    shutil.copytree(straight.data_cache_directory, directory / "cache")
    (directory / "run" / "finished.json").unlink()
    spec, workers = straight.spec, straight.spec.workers
    how = {
        "parallelism": Parallelism(layout=layout),
        "workers": workers.model_copy(update={"ranks_per_replica": ranks}),
    }
    return job_of(spec.model_copy(update=how), directory)


def assert_finished(outcomes: list[Outcome]) -> None:
    assert {outcome.end for outcome in outcomes} == {"finished"}, outcomes


def losses(outcome: Outcome) -> list[float]:
    return [update.fields["loss"] for update in outcome.link.updates if "loss" in update.fields]


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[JobFile, list[Outcome]]]:
    """Twelve steps of two ranks, in either layout."""
    directory = tmp_path_factory.mktemp("trained")
    looks = Faults(world={1: look_closely})
    jobs = [(one, without_dropout(directory / one, layout=one)) for one in ("ddp", "fsdp")]
    return {one: (job, run_gang(job, 2, faults=looks)) for one, job in jobs}


def test_fsdp_learns_as_ddp_does(trained: Any) -> None:
    (ddp_job, ddp), (job, fsdp) = trained["ddp"], trained["fsdp"]
    assert_finished([*ddp, *fsdp])
    assert len(losses(fsdp[0])) > 12
    assert losses(fsdp[0]) == pytest.approx(losses(ddp[0]), rel=SAME_LOSS)
    ours, theirs = fsdp[0].link.report, ddp[0].link.report
    for field in ("gradient_norm", "validation_loss", "parameters"):
        assert ours[field] == pytest.approx(theirs[field], rel=SAME_LOSS)
    assert largest_difference(exported(job), exported(ddp_job)) < SAME_WEIGHTS


def test_what_is_looked_at_beside_the_training_is_the_same_in_fsdp(trained: Any) -> None:
    """The sampled figures and the loss under noise; and that a look leaves no trace is seen where
    other runs end with the same bits without."""
    (_, ddp), (_, fsdp) = trained["ddp"], trained["fsdp"]
    ours, theirs = fsdp[0].link.report, ddp[0].link.report
    for field in ("update_rms", "update_ratio", "activation_max", "attention_logit_bound"):
        assert ours[field] == pytest.approx(theirs[field], rel=SAME_SAMPLE)
    assert [noisy["loss"] for noisy in ours["robustness"]] == pytest.approx(
        [noisy["loss"] for noisy in theirs["robustness"]], rel=SAME_LOSS
    )


def test_each_rank_writes_its_part_and_the_manifest_says_how_they_fit(trained: Any) -> None:
    job, _ = trained["fsdp"]
    newest = Path(job.run_directory) / "checkpoints" / "step-00000012"
    manifest = layout.manifest_of(newest) or {}
    assert (manifest["schema_version"], manifest["layout"]) == (2, "fsdp")
    parts = [load_file(newest / layout.part_name(layout.MODEL, rank)) for rank in (0, 1)]
    for name, weight in exported(job).items():
        cut = manifest["cuts"][layout.MODEL][name]
        assert (cut["shape"], cut["starts"]) == (list(weight.shape), [0, len(parts[0][name])])
        assert torch.equal(torch.cat([part[name] for part in parts]), weight)
    assert sorted(manifest["files"]) == sorted(
        [
            *(
                f"{kind}-0000{rank}.safetensors"
                for kind in ("model", "optimizer")
                for rank in (0, 1)
            ),
            "rng-00000.json",
            "rng-00001.json",
            "counters.json",
        ]
    )
    size_bytes = sum((newest / name).stat().st_size for name in manifest["files"])
    row = inventory.rows(newest.parent)[1].split()
    assert (row[:3], row[3]) == (["12", f"{size_bytes / 1e6:.1f}", "MB"], "yes")


def test_a_whole_checkpoint_is_what_it_was(trained: Any) -> None:
    """An older trainer reads it."""
    job, _ = trained["ddp"]
    manifest = layout.manifest_of(Path(job.run_directory) / "checkpoints" / "step-00000012") or {}
    assert manifest["schema_version"] == 1
    assert not {"layout", "cuts"} & manifest.keys()
    assert {layout.MODEL, layout.OPTIMIZER} < manifest["files"].keys()


@pytest.mark.parametrize(
    ("then", "now", "ranks"), [("fsdp", "ddp", 1), ("ddp", "fsdp", 2), ("fsdp", "fsdp", 4)]
)
def test_another_layout_or_number_of_ranks_goes_on_and_says_so(
    tmp_path: Path, trained: Any, then: str, now: Any, ranks: int
) -> None:
    """From step 8 to 12, weights and moments cut anew: the end is that of the straight run."""
    straight, _ = trained[then]
    job = going_on(straight, tmp_path / "again", layout=now, ranks=ranks)
    shutil.rmtree(tmp_path / "again" / "run" / "checkpoints" / "step-00000012")
    outcomes = run_gang(job, ranks, attempt=2) if ranks > 1 else [run_alone(job, attempt=2)]
    assert_finished(outcomes)
    entries = journal(tmp_path / "again")
    (loaded,) = [entry["detail"] for entry in entries if entry["kind"] == "Loaded"]
    assert isinstance(loaded, dict)
    assert (loaded["path"], loaded["world_size_then"], loaded["world_size"]) == (
        "step-00000008",
        2,
        ranks,
    )
    assert (loaded["layout_then"], loaded["layout"]) == (then, now)
    assert largest_difference(exported(job), exported(straight)) < SAME_WEIGHTS


def test_p8_a_broken_part_is_passed_over_for_the_checkpoint_before(
    tmp_path: Path, trained: Any
) -> None:
    """Missing, truncated, and one bit that only the rank whose part it is can find."""
    straight, _ = trained["fsdp"]
    job = going_on(straight, tmp_path / "again")
    checkpoints = tmp_path / "again" / "run" / "checkpoints"
    (checkpoints / "step-00000012" / "model-00000.safetensors").unlink()
    os.truncate(checkpoints / "step-00000008" / "optimizer-00001.safetensors", 1000)
    flipped = checkpoints / "step-00000004" / "model-00001.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    assert_finished(run_gang(job, 2, attempt=2))
    entries = journal(tmp_path / "again")
    whys = [entry["detail"]["why"] for entry in entries if entry["kind"] == "Rejected"]  # type: ignore[index]
    assert whys == [
        "model-00000.safetensors is missing",
        f"optimizer-00001.safetensors has 1000 bytes, not {moments_bytes(straight)}",
        "model-00001.safetensors has another SHA-256 than its manifest says",
    ]
    assert [entry["step"] for entry in entries if entry["kind"] == "Loaded"] == [0]
    assert_equal_tensors(exported(job), exported(straight))


def moments_bytes(job: JobFile) -> int:
    file = Path(job.run_directory) / "checkpoints/step-00000012/optimizer-00001.safetensors"
    return file.stat().st_size


def test_a_rank_that_sees_other_storage_breaks_nothing(tmp_path: Path, trained: Any) -> None:
    """Its own empty volume proves nothing about the checkpoint."""
    job, _ = trained["fsdp"]
    there = Path(job.run_directory) / "checkpoints" / "step-00000012"
    chosen = Chosen(
        step=12,
        directory=str(there),
        manifest_sha256=layout.manifest_sha256(there),
        world_size=2,
        layout="fsdp",
        time="",
        size_bytes=0,
    )
    of_parts = partial(needed_parts, rank=1, world_size=2, is_sharded=True)
    assert part_fault(chosen, nothing, {}, of_parts=of_parts) == ""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = elsewhere / "model-00001.safetensors"
    changes: list[Callable[[], object]] = [
        nothing,
        lambda: shutil.copytree(there, elsewhere, dirs_exist_ok=True) and os.truncate(own, 1000),
        own.unlink,
    ]
    for change in changes:  # another manifest, a part that is cut short, one that is missing
        change()
        with pytest.raises(TrainerError, match="check that all pods see the same storage"):
            part_fault(replace(chosen, directory=str(elsewhere)), nothing, {}, of_parts=of_parts)


@pytest.mark.parametrize(("ranks", "victim"), [(2, 0), (4, 3)])
def test_p7_a_stop_and_a_kill_in_the_midst_of_a_save_leave_no_trace(
    tmp_path: Path, ranks: int, victim: int
) -> None:
    straight = job_in(tmp_path / "straight", ranks=ranks)
    broken = job_in(tmp_path / "broken", ranks=ranks)
    assert_finished(run_gang(straight, ranks))
    stopped = run_gang(broken, ranks, faults=Faults(stop_at={ranks - 1: 5}))
    assert {(outcome.end, outcome.step) for outcome in stopped} == {("preempted", 6)}
    kill = {0: die_in_the_save_of_the_lead, 3: die_in_the_save_of_rank_3}[victim]
    killed = run_gang(broken, ranks, attempt=2, faults=Faults(world={8: kill}))
    assert killed[victim].end == "died"
    assert {outcome.end for outcome in killed} == {"died", "error"}
    assert "step-00000006" in checkpoint_names(broken)
    assert "step-00000008" not in checkpoint_names(broken)
    resumed = run_gang(broken, ranks, attempt=3)
    assert_finished(resumed)
    assert resumed[0].link.report["resumed_from_step"] == 6
    assert not [name for name in checkpoint_names(broken) if name.startswith(".")]
    assert_equal_tensors(exported(straight), exported(broken))


def die_in_the_save_of_the_lead() -> None:
    _in_writes_of(0, lambda: os.kill(os.getpid(), signal.SIGKILL))


def die_in_the_save_of_rank_3() -> None:
    _in_writes_of(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fill_the_disk_of_rank_1() -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _in_writes_of(1, refuse)


def mend_the_disk() -> None:
    tensors.sync = sync


def _in_writes_of(rank: int, act: Any) -> None:
    """Let this befall the writer of a rank, in its process, from now on."""

    def failing(descriptor: int) -> None:
        act()
        sync(descriptor)

    if dist.get_rank() == rank:
        tensors.sync = failing


def test_a_part_that_cannot_be_written_costs_the_save_and_not_the_training(tmp_path: Path) -> None:
    straight, job = job_in(tmp_path / "straight"), job_in(tmp_path / "full")
    run_gang(straight, 2)
    faults = Faults(world={3: fill_the_disk_of_rank_1, 5: mend_the_disk})
    lead, other = run_gang(job, 2, faults=faults)
    assert_finished([lead, other])
    told = [u.fields for u in lead.link.updates if u.fields.get("checkpoint_error")]
    assert told[0]["storage_is_full"] is True
    assert told[0]["checkpoint_error"] == (
        "checkpoint of step 4 could not be written (rank 1: No space left on device): free space "
        "in the storage of checkpoint.storage, or make it writable"
    )
    assert lead.link.report["checkpoint_error"] == ""
    assert "step-00000004" not in checkpoint_names(job)
    assert not [name for name in checkpoint_names(job) if name.startswith(".")]
    assert_equal_tensors(exported(straight), exported(job))


_answers = threading.Event()


def hold_the_disk_of_rank_1() -> None:
    _in_writes_of(1, lambda: _answers.wait(HOLD_SECONDS_MAX))


def let_it_go_on() -> None:
    _answers.set()


def test_the_training_goes_on_while_a_rank_still_writes(tmp_path: Path, trained: Any) -> None:
    """What it writes late is the state of the step at which it was asked; what is due meanwhile is
    left out by all, and said."""
    straight, _ = trained["fsdp"]
    job = without_dropout(tmp_path / "held")
    faults = Faults(saves_beside=True, world={3: hold_the_disk_of_rank_1, 9: let_it_go_on})
    lead, other = run_gang(job, 2, faults=faults)
    assert_finished([lead, other])
    saved = [entry["step"] for entry in journal(tmp_path / "held") if entry["kind"] == "Saved"]
    assert saved == [0, 4, 12]
    errors = [
        u.fields["checkpoint_error"] for u in lead.link.updates if "checkpoint_error" in u.fields
    ]
    assert any("of step 8 was left out, as that of step 4 has been written" in e for e in errors)
    for name in ("model-00001.safetensors", "optimizer-00001.safetensors"):
        ours, theirs = (
            Path(one.run_directory) / "checkpoints" / "step-00000004" / name
            for one in (job, straight)
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert_equal_tensors(exported(straight), exported(job))


def hold_until_it_is_awaited() -> None:
    """The disk of rank 1, by which nobody but a save that waits gets anywhere."""
    settle_all = saving.Saver.settle_all

    def letting_go(saver: saving.Saver, *arguments: float) -> str:
        _answers.set()
        return settle_all(saver, *arguments)

    saving.Saver.settle_all = letting_go  # type: ignore[method-assign]
    hold_the_disk_of_rank_1()


def test_a_checkpoint_that_stays_for_ever_waits_for_every_ranks_writer(tmp_path: Path) -> None:
    job = job_in(tmp_path / "kept", checkpoint={"everySteps": 4, "keepEverySteps": 8})
    faults = Faults(saves_beside=True, world={3: hold_until_it_is_awaited})
    assert_finished(run_gang(job, 2, faults=faults))
    saved = [entry["step"] for entry in journal(tmp_path / "kept") if entry["kind"] == "Saved"]
    assert saved == [0, 4, 8, 12]


def hang_and_soon_give_up() -> None:
    saving.GIVE_UP_SECONDS = 1.0
    hold_the_disk_of_rank_1()


def hang_once_step_8_is_saved(directory: Path) -> None:
    until(lambda: 8 in saved_steps(directory), "step 8 is saved")
    hang_and_soon_give_up()


def test_a_disk_that_hangs_at_the_last_step_costs_the_save_and_not_the_model(
    tmp_path: Path, trained: Any
) -> None:
    """The ranks' talk about it is no sign that it will ever end."""
    straight, _ = trained["fsdp"]
    job = without_dropout(tmp_path / "hangs")
    faults = Faults(
        saves_beside=True, world={11: partial(hang_once_step_8_is_saved, tmp_path / "hangs")}
    )
    lead, other = run_gang(job, 2, faults=faults)
    assert_finished([lead, other])
    assert "step-00000012" not in checkpoint_names(job)
    assert "in the midst of the checkpoint of step 12" in lead.link.report["checkpoint_error"]
    assert_equal_tensors(exported(straight), exported(job))


def test_no_rank_rewinds_while_one_hangs_in_a_save(tmp_path: Path) -> None:
    """What that one would publish later is what the rewind abandons."""
    job = job_in(tmp_path / "hangs", training={"budget": {"steps": 16}})
    bad = {1: (Injection(position=at(6), what="nan-weight", times=1),)}
    faults = Faults(saves_beside=True, inject=bad, world={3: hang_and_soon_give_up})
    outcomes = run_gang(job, 2, faults=faults)
    assert {(each.end, each.failure_class) for each in outcomes} == {
        ("error", FailureClass.STORAGE)
    }
    assert all(each.message.startswith("cannot rewind: ") for each in outcomes), outcomes
    assert not [e for e in journal(tmp_path / "hangs") if e["kind"] == "Rewound"]


def test_p6_a_nan_in_one_part_is_skipped_and_rewound_by_all(tmp_path: Path) -> None:
    """In the weights of rank 1 alone: every batch after it is bad, for every rank."""
    job = job_in(
        tmp_path / "bad",
        training={"budget": {"steps": 16}, "optimizer": {"learningRate": 3e-3}},
        stability={"healthySteps": 2},
    )
    faults = Faults(
        inject={
            1: (
                Injection(position=at(3), what="nan"),
                Injection(position=at(9), what="nan-weight", times=1),
            )
        }
    )
    outcomes = run_gang(job, 2, faults=faults)
    assert_finished(outcomes)
    kinds = [(kind, fault) for kind, _, fault in remedies(tmp_path / "bad")]
    assert kinds[0] == ("Skipped", "NonFinite")
    assert ("Rewound", "NonFinite") in kinds
    assert {outcome.link.report["rewinds"] for outcome in outcomes} == {1}
    assert all(torch.isfinite(weight).all() for weight in exported(job).values())


def test_a_verdict_that_is_read_late_changes_no_bit(tmp_path: Path, trained: Any) -> None:
    straight, _ = trained["fsdp"]
    job = without_dropout(tmp_path / "late")
    assert_finished(run_gang(job, 2, faults=Faults(late=True)))
    assert_equal_tensors(exported(straight), exported(job))


def test_one_rank_has_nothing_to_share(tmp_path: Path) -> None:
    job = job_in(tmp_path / "one", ranks=1, training={"budget": {"steps": 1}})
    assert run_alone(job).end == "finished"
    manifest = layout.manifest_of(Path(job.run_directory) / "checkpoints" / "step-00000001") or {}
    assert (manifest["schema_version"], "layout" in manifest) == (1, False)
