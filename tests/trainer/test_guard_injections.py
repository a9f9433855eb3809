"""Faults put into real training: found, remedied, reported; the run ends as a clean one would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmtraining_api import FailureClass, JobFile
from lmtraining_trainer.run import layout
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
from tests.trainer.test_resume import journal

pytestmark = pytest.mark.trainer

STEPS = 60
SEQUENCES = 8
"""Of a batch: batchTokens 128 at sequenceLength 16."""


def at(step: int) -> int:
    """Where the batch of a step begins while none has been skipped."""
    return step * SEQUENCES


def job_in(directory: Path, *, world_size: int = 1, **blocks: Any) -> JobFile:
    spec = tiny_spec(
        write_text(directory / "text.jsonl", documents=400),
        world_size=world_size,
        training={
            "budget": {"steps": STEPS},
            "batchTokens": 128,
            "optimizer": {"learningRate": 3e-3},
            "evaluation": {"everySteps": 20, "sequences": 64},
            **blocks.pop("training", {}),
        },
        checkpoint={"everySteps": 10},
        stability={"healthySteps": 5, **blocks.pop("stability", {})},
        **blocks,
    )
    return job_of(spec, directory)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Final validation loss of the run without a fault."""
    outcome = run_alone(job_in(tmp_path_factory.mktemp("clean")))
    assert outcome.link.report["is_stable"] is True
    assert (outcome.link.report["skipped_steps"], outcome.link.report["rewinds"]) == (0, 0)
    return float(outcome.link.report["validation_loss"])


def remedies(directory: Path) -> list[tuple[str, int, str]]:
    """Kind, step and fault of every remedy in the journal."""
    return [
        (entry["kind"], entry["step"], entry["detail"]["fault"])
        for entry in journal(directory)
        if entry["kind"] in {"Skipped", "Rewound", "Rerun"}
    ]


def assert_as_good_as(clean: float, outcome: Outcome, job: JobFile) -> None:
    assert outcome.end == "finished", outcome
    assert outcome.link.report["validation_loss"] == pytest.approx(clean, rel=0.02)
    assert all(torch.isfinite(weight).all() for weight in exported(job).values())


@pytest.mark.parametrize(
    ("injection", "fault"),
    [
        (Injection(position=at(30), what="nan"), "NonFinite"),
        (Injection(position=at(30), what="inf-gradient"), "NonFinite"),
        (Injection(position=at(30), what="zero-gradient"), "ZeroGradient"),
        (Injection(position=at(30), what="spike", factor=5.0), "LossSpike"),
        (Injection(position=at(30), what="spike", factor=50.0), "LossSpike"),
        (Injection(position=at(0), what="nan"), "NonFinite"),
    ],
    ids=["nan", "inf-gradient", "zero-gradient", "spike-5", "spike-50", "nan-at-first"],
)
def test_p6_one_bad_batch_is_skipped_at_once(
    tmp_path: Path, clean: float, injection: Injection, fault: str
) -> None:
    job = job_in(tmp_path)
    outcome = run_alone(job, faults=Faults(inject={0: (injection,)}))
    assert remedies(tmp_path) == [("Skipped", injection.position // SEQUENCES, fault)]
    assert_as_good_as(clean, outcome, job)
    remedy = outcome.link.report["last_remedy"]
    assert (remedy.remedy, remedy.fault) == ("Skip", fault)


def test_p7_a_spike_right_after_a_resume_is_found(tmp_path: Path, clean: float) -> None:
    """What the detectors know comes back with the checkpoint."""
    job = job_in(tmp_path)
    spike = Injection(position=at(31), what="spike", factor=5.0)
    assert run_alone(job, faults=Faults(stop_at={0: 30})).step == 31
    outcome = run_alone(job, attempt=2, faults=Faults(inject={0: (spike,)}))
    assert remedies(tmp_path) == [("Skipped", 31, "LossSpike")]
    assert_as_good_as(clean, outcome, job)


@pytest.mark.parametrize("what", ["nan", "spike", "zero-gradient"])
def test_a_fault_that_does_not_come_again_costs_no_data(tmp_path: Path, what: Any) -> None:
    """A bit that flipped in the computation: the batch is computed again and used, and the run is
    the clean run to the last bit."""
    straight, disturbed = job_in(tmp_path / "straight"), job_in(tmp_path / "disturbed")
    run_alone(straight)
    injection = Injection(position=at(30), what=what, times=1)
    outcome = run_alone(disturbed, faults=Faults(inject={0: (injection,)}))
    assert outcome.end == "finished"
    assert remedies(tmp_path / "disturbed") == [("Rerun", 30, "SilentCorruption")]
    assert_equal_tensors(exported(straight), exported(disturbed))


def test_a_bad_stretch_of_data_is_gone_round(tmp_path: Path, clean: float) -> None:
    job = job_in(tmp_path)
    stretch = tuple(Injection(position=at(step), what="nan") for step in range(33, 43))
    outcome = run_alone(job, faults=Faults(inject={0: stretch}))
    assert remedies(tmp_path) == [
        ("Skipped", 33, "NonFinite"), ("Skipped", 33, "NonFinite"), ("Rewound", 33, "NonFinite"),
    ]  # fmt: skip
    assert_as_good_as(clean, outcome, job)
    report = outcome.link.report
    assert (report["skipped_steps"], report["rewinds"]) == (2, 1)
    assert (report["last_remedy"].remedy, report["last_remedy"].to_step) == ("Rewind", 20)
    # P4: not called stable before five good steps have followed the rewind to step 20.
    stable = {
        update.fields["step"]: update.fields["is_stable"]
        for update in outcome.link.updates
        if "is_stable" in update.fields and "step" in update.fields
    }
    assert [step for step, is_stable in stable.items() if not is_stable] == [21, 22, 23, 24]


def test_p7_a_run_killed_after_a_rewind_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    stretch = tuple(Injection(position=at(step), what="nan") for step in range(33, 36))
    faults = Faults(inject={0: stretch})
    straight = job_in(tmp_path / "straight")
    assert run_alone(straight, faults=faults).end == "finished"
    broken = job_in(tmp_path / "broken")
    (killed,) = run_gang(broken, 1, faults=Faults(inject={0: stretch}, kill_at={0: 45}))
    assert killed.end == "died"
    assert run_alone(broken, attempt=2).end == "finished"  # the fault has gone, the remedy stays
    assert_equal_tensors(exported(straight), exported(broken))
    assert remedies(tmp_path / "straight") == remedies(tmp_path / "broken")


def test_p8_a_crash_between_the_journal_and_the_rewind_repeats_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmtraining_trainer import remedy as remedy_module

    stretch = tuple(Injection(position=at(step), what="nan") for step in range(33, 36))
    straight = job_in(tmp_path / "straight")
    run_alone(straight, faults=Faults(inject={0: stretch}))
    broken = job_in(tmp_path / "broken")

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(remedy_module, "resume", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            run_alone(broken, faults=Faults(inject={0: stretch}))
    assert remedies(tmp_path / "broken")[-1] == ("Rewound", 33, "NonFinite")
    assert run_alone(broken, attempt=2).end == "finished"
    assert remedies(tmp_path / "straight") == remedies(tmp_path / "broken")
    assert_equal_tensors(exported(straight), exported(broken))


def test_p3_checkpoints_behind_a_rewind_are_abandoned(tmp_path: Path) -> None:
    """The newest one is intact, but not healthy: too few good steps have followed it."""
    job = job_in(tmp_path, stability={"healthySteps": 15})
    stretch = tuple(Injection(position=at(step), what="nan") for step in range(33, 36))
    outcome = run_alone(job, faults=Faults(inject={0: stretch}, stop_at={0: 45}))
    rewind = next(entry for entry in journal(tmp_path) if entry["kind"] == "Rewound")
    assert rewind["detail"]["to_step"] == 10
    abandoned = [e["step"] for e in journal(tmp_path) if e["kind"] == "Rejected"]
    assert abandoned == [30, 20]
    assert not outcome.link.report["passed_over"], "they are not broken"
    assert outcome.end == "preempted"
    assert run_alone(job, attempt=2).end == "finished"
    assert [e["step"] for e in journal(tmp_path) if e["kind"] == "Rejected"] == [30, 20]


def test_p8_the_newest_healthy_checkpoint_and_the_next_to_be_are_never_deleted(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path, stability={"healthySteps": 35})
    run_alone(job)
    names = checkpoint_names(job)
    healthy = [
        name
        for name in names
        if layout.is_marked_healthy(Path(job.run_directory) / "checkpoints" / name)
    ]
    assert healthy == ["step-00000020"]
    assert names == [f"step-{step:08d}" for step in (20, 30, 40, 50, 60)]


def test_faults_without_end_stop_the_run_as_diverged(tmp_path: Path) -> None:
    job = job_in(tmp_path, stability={"rewindsMax": 2})
    always = tuple(Injection(position=at(step), what="nan") for step in range(33, 400))
    outcome = run_alone(job, faults=Faults(inject={0: always}))
    assert (outcome.failure_class, outcome.reason) == (FailureClass.DIVERGED, "RemediesSpent")
    assert "rewindsMax 2" in outcome.message
    assert [kind for kind, _, _ in remedies(tmp_path)].count("Rewound") == 2
    rates = [e["detail"]["rate_scale"] for e in journal(tmp_path) if e["kind"] == "Rewound"]
    assert rates == [1.0, 0.5]


def test_a_rate_that_explodes_is_lowered_until_training_holds(tmp_path: Path) -> None:
    job = job_in(
        tmp_path,
        training={"optimizer": {"learningRate": 1.5}, "schedule": {"warmupFraction": 0.5}},
        stability={"rewindsMax": 12, "skippedStepsMax": 1000},
    )
    outcome = run_alone(job)
    kinds = [kind for kind, _, _ in remedies(tmp_path)]
    assert "Rewound" in kinds
    assert all(torch.isfinite(weight).all() for weight in exported(job).values())
    assert outcome.end == "finished", outcome


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_bit_in_one_replica_is_found_and_undone(tmp_path: Path, rank: int) -> None:
    straight = job_in(tmp_path / "straight", world_size=2)
    assert run_gang(straight, 2)[0].end == "finished"
    flipped = job_in(tmp_path / "flipped", world_size=2)
    injection = Injection(position=at(34), what="bit-flip", times=1)
    lead, other = run_gang(flipped, 2, faults=Faults(inject={rank: (injection,)}))
    assert (lead.end, other.end) == ("finished", "finished"), (lead, other)
    assert remedies(tmp_path / "flipped") == [("Rewound", 40, "ReplicaDivergence")]
    assert "of the 2 ranks differ" in lead.link.report["last_remedy"].message
    assert lead.link.report["rewinds"] == 0, "a device that fails is not charged to the data"
    assert_equal_tensors(exported(straight), exported(flipped))


@pytest.mark.parametrize("what", ["nan", "inf-gradient", "spike"])
def test_one_ranks_fault_is_every_ranks_remedy(tmp_path: Path, what: Any) -> None:
    job = job_in(tmp_path, world_size=2)
    injection = Injection(position=at(30), what=what, factor=50.0)
    outcomes = run_gang(job, 2, faults=Faults(inject={1: (injection,)}))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    assert [kind for kind, _, _ in remedies(tmp_path)] == ["Skipped"]


def test_a_device_that_fails_again_and_again_is_hardware(tmp_path: Path) -> None:
    """Another attempt, on other machines, can help; so it is no divergence."""
    job = job_in(tmp_path)
    passing = tuple(
        Injection(position=at(step), what="nan", times=1) for step in (10, 20, 30, 40, 50)
    )
    outcome = run_alone(job, faults=Faults(inject={0: passing}))
    assert (outcome.failure_class, outcome.reason) == (FailureClass.HARDWARE, "SilentCorruption")
    assert remedies(tmp_path) == [("Rerun", step, "SilentCorruption") for step in (10, 20, 30, 40)]
    assert run_alone(job, attempt=2).end == "finished"


@pytest.mark.parametrize("flipped", [0, 2])
def test_of_three_replicas_the_odd_one_is_named(tmp_path: Path, flipped: int) -> None:
    job = job_in(tmp_path, world_size=3, training={"batchTokens": 192})
    injection = Injection(position=34 * 12, what="bit-flip", times=1)
    outcomes = run_gang(job, 3, faults=Faults(inject={flipped: (injection,)}))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 3, outcomes
    assert f"of rank {flipped} are not" in outcomes[0].link.report["last_remedy"].message


def test_the_ranks_clip_by_one_norm_whatever_each_has_measured(tmp_path: Path) -> None:
    """A rank that clips by its own would differ from the others from that step on."""
    job = job_in(tmp_path, world_size=2, training={"gradientClipNorm": 0.05})
    injection = Injection(position=at(30), what="norm", factor=1.5)
    outcomes = run_gang(job, 2, faults=Faults(inject={1: (injection,)}))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    assert remedies(tmp_path) == []
