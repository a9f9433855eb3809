"""A job that goes on with another's run (existingRun: Resume) and trains it otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmtraining_api import FailureClass, JobFile, RollbackWish, Wishes
from lmtraining_trainer.run import claim_run, layout
from lmtraining_trainer.state import TrainState
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    exported,
    job_of,
    place_of,
    run_alone,
    tiny_spec,
    write_text,
)
from tests.trainer.terminal import journal

pytestmark = pytest.mark.trainer

ADAMW = {"name": "adamw", "learningRate": 1e-3}


def job_in(directory: Path, uid: str, steps: int, **training: Any) -> JobFile:
    spec = tiny_spec(
        write_text(directory / "text.jsonl"),
        model={"config": {"layers": 1, "hiddenSize": 16, "heads": 2}},
        training={
            "budget": {"steps": steps},
            "optimizer": ADAMW,
            "evaluation": {"everySteps": 2, "sequences": 4},
            **training,
        },
        checkpoint={"everySteps": 2, "keepLast": 100, "path": "run", "existingRun": "Resume"},
    )
    return job_of(spec, directory, uid=uid)


def checkpoint(job: JobFile, step: int, what: str = "model") -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(
        Path(job.run_directory) / f"checkpoints/step-{step:08d}/{what}.safetensors"
    )
    return tensors


def moments(job: JobFile, step: int) -> set[str]:
    """What the optimizer remembers of each weight, and the copies beside it."""
    return {name.rpartition("/")[2] for name in checkpoint(job, step, "optimizer")}


def counters(job: JobFile, step: int) -> dict[str, Any]:
    path = Path(job.run_directory) / f"checkpoints/step-{step:08d}/counters.json"
    return dict(json.loads(path.read_text()))


def taken_over(directory: Path, *, then: dict[str, Any], first: dict[str, Any]) -> JobFile:
    """A run of 4 steps, and 2 more by another job."""
    assert run_alone(job_in(directory, "first", 4, **first)).end == "finished"
    job = job_in(directory, "then", 6, **then)
    outcome = run_alone(job)
    assert outcome.end == "finished", outcome
    assert outcome.link.report["resumed_from_step"] == 4
    return job


@pytest.mark.parametrize(
    ("name", "remembers"),
    [
        ("sgd", {"momentum_buffer"}),
        ("adagrad", {"step", "sum"}),
        ("adabelief", {"step", "exp_avg", "exp_avg_var"}),
        ("ftrl", {"z", "n", "rate"}),
        ("adafactor", {"step", "row_var", "col_var", "variance"}),
        ("lion", {"exp_avg"}),
        ("muon", {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}),
    ],
)
def test_another_optimizer_begins_anew_and_the_journal_says_so(
    tmp_path: Path, name: str, remembers: set[str]
) -> None:
    job = taken_over(tmp_path, first={}, then={"optimizer": {"name": name}})
    assert moments(job, 6) == remembers
    loaded = [entry for entry in journal(tmp_path / "run") if entry["kind"] == "Loaded"]
    assert loaded[-1]["detail"]["optimizer"] == "begun anew after adamw"


def test_an_average_that_is_new_begins_at_the_weights(tmp_path: Path) -> None:
    then = {"regularisation": {"averageDecay": 0.999}, "optimizer": {**ADAMW, "learningRate": 1e-9}}
    job = taken_over(tmp_path, first={}, then=then)
    for name, weights in checkpoint(job, 4).items():
        torch.testing.assert_close(exported(job).get(name, weights), weights)


@pytest.mark.parametrize(
    "beside", [{"regularisation": {"averageDecay": 0.5}}, {"earlyStopping": {"patience": 5}}]
)
def test_a_copy_that_is_no_longer_wanted_is_not_kept(
    tmp_path: Path, beside: dict[str, Any]
) -> None:
    job = taken_over(tmp_path, first=beside, then={})
    assert moments(job, 6) == {"step", "exp_avg", "exp_avg_sq"}


def test_p4_early_stopping_that_is_new_counts_from_the_takeover(tmp_path: Path) -> None:
    """No validation of the first job is the best: nobody kept its weights."""
    assert run_alone(job_in(tmp_path, "first", 4)).end == "finished"
    initial = checkpoint(job_in(tmp_path, "first", 4), 0)
    stopping = {"patience": 2, "gainMin": 10.0}
    job = job_in(tmp_path, "then", 20, earlyStopping=stopping)
    outcome = run_alone(job)
    assert (outcome.end, outcome.link.report["step"]) == ("finished", 10)
    assert (counters(job, 10)["best_step"], counters(job, 10)["stale_validations"]) == (6, 2)
    assert_equal_tensors(exported(job), checkpoint(job, 6))
    name = "transformer.wte.weight"
    assert not torch.equal(exported(job)[name], initial[name])


def test_adapters_are_put_beside_the_weights_of_a_run_that_had_none(tmp_path: Path) -> None:
    job = taken_over(tmp_path, first={}, then={"fineTuning": {"lora": {"rank": 2}}})
    base, after = checkpoint(job, 4), checkpoint(job, 6)
    adapters = {name for name in after if "lora_" in name}
    assert {name.replace(".base_layer.", ".") for name in after.keys() - adapters} == base.keys()
    for name in after.keys() - adapters:
        assert torch.equal(after[name], base[name.replace(".base_layer.", ".")])
    remembered = checkpoint(job, 6, "optimizer")
    assert {name.rpartition("/")[0] for name in remembered} == adapters
    assert any(after[name].any() for name in adapters if "lora_B" in name)


def test_p7_a_way_back_to_before_the_adapters_has_them_as_they_were_drawn(tmp_path: Path) -> None:
    ends = []
    for name in ("straight", "back"):
        directory = tmp_path / name
        assert run_alone(job_in(directory, "first", 4)).end == "finished"
        job = job_in(directory, "then", 8, fineTuning={"lora": {"rank": 2}})
        wishes = {0: wish(1), 6: wish(2, rollback=RollbackWish(name="back", to_step=4))}
        outcome = run_alone(job, faults=Faults(wishes=wishes if name == "back" else {}))
        assert outcome.end == "finished", outcome
        assert (outcome.link.report["resumed_from_step"], outcome.link.report["step"]) == (4, 8)
        ends.append(exported(job))
    kinds = [entry["kind"] for entry in journal(tmp_path / "back" / "run")]
    assert kinds.count("Rewound") == 1
    assert_equal_tensors(*ends)


def wish(generation: int, **more: Any) -> Wishes:
    values = {"generation": generation, "budget_steps": 8, "checkpoint_every_steps": 2}
    return Wishes.model_validate({**values, **more})


def test_other_adapters_are_refused_with_both(tmp_path: Path) -> None:
    first = job_in(tmp_path, "first", 4, fineTuning={"lora": {"rank": 2}})
    assert run_alone(first).end == "finished"
    for uid, tuning, words in (
        ("none", {}, "without adapters"),
        ("larger", {"lora": {"rank": 4}}, "with rank 4, alpha 16 and targets all"),
    ):
        outcome = run_alone(job_in(tmp_path, uid, 6, fineTuning=tuning))
        assert (outcome.failure_class, outcome.reason) == (
            FailureClass.CONFIGURATION,
            "AnotherModel",
        )
        assert f"rank 2, alpha 16 and targets all, but the job trains {words}" in outcome.message


def as_an_older_trainer_left_it(job: JobFile) -> None:
    """Whose manifests did not say which optimizer and adapters their state is of."""
    for path in (Path(job.run_directory) / "checkpoints").glob("step-*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["optimizer"], manifest["lora"]
        path.write_text(json.dumps(manifest))
        for mark in path.parent.glob("intact.json"):
            mark.write_text(json.dumps({"manifest_sha256": layout.manifest_sha256(path.parent)}))


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_older_trainers_moments_are_not_taken_for_another_optimizers(
    tmp_path: Path, attempt: int
) -> None:
    """Also in the attempt after one that claimed the run and came no further."""
    first = job_in(tmp_path, "first", 4)
    assert run_alone(first).end == "finished"
    as_an_older_trainer_left_it(first)
    job = job_in(tmp_path, "then", 6, optimizer={"name": "adagrad"})
    if attempt > 1:
        claim_run(job, place_of())
    outcome = run_alone(job, attempt=attempt)
    assert (outcome.end, outcome.link.report["resumed_from_step"]) == ("finished", 4), outcome
    assert moments(job, 6) == {"step", "sum"}


def test_an_older_trainers_adapters_are_compared_too(tmp_path: Path) -> None:
    first = job_in(tmp_path, "first", 4, fineTuning={"lora": {"rank": 2}})
    assert run_alone(first).end == "finished"
    as_an_older_trainer_left_it(first)
    outcome = run_alone(job_in(tmp_path, "then", 6, fineTuning={"lora": {"rank": 4}}))
    assert outcome.reason == "AnotherModel", outcome
    assert "rank 2, alpha 16 and targets all, but the job trains with rank 4" in outcome.message
    same = run_alone(job_in(tmp_path, "same", 6, fineTuning={"lora": {"rank": 2}}))
    assert (same.end, same.link.report["resumed_from_step"]) == ("finished", 4), same


@pytest.mark.parametrize(("is_fused", "device"), [(True, "meta"), (False, "cpu")])
def test_what_the_host_reads_of_the_state_stays_on_the_host(is_fused: bool, device: str) -> None:
    """Of a count on the device each step of Adagrad, Adafactor or FTRL would wait for it."""
    model: Any = torch.nn.Linear(2, 2, bias=False, device="meta")
    optimizer = torch.optim.SGD([{"params": model.parameters(), "fused": None}])
    optimizer.param_groups[0]["fused"] = is_fused
    state = TrainState(model=model, optimizer=optimizer)
    held = {"weight/step": torch.tensor(3.0), "weight/sum": torch.zeros(2, 2)}
    state.load_tensors({"weight": torch.zeros(2, 2)}, held)
    (remembered,) = optimizer.state.values()
    assert remembered["sum"].device.type == "meta"
    assert remembered["step"].device.type == device


def test_what_is_frozen_now_has_no_moments(tmp_path: Path) -> None:
    """Real weights to begin with: what freezing is for."""
    job = taken_over(tmp_path, first={}, then={"fineTuning": {"freeze": ["transformer.wte.*"]}})
    assert torch.equal(
        checkpoint(job, 6)["transformer.wte.weight"], checkpoint(job, 4)["transformer.wte.weight"]
    )
    assert not any(name.startswith("transformer.wte.") for name in checkpoint(job, 6, "optimizer"))
