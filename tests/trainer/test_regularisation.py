"""Every regulariser: its effect, its formula, and that a resume and a skip leave it exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from lmtraining_api import JobFile
from lmtraining_api.job import Regularisation
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.regularise import penalise, set_dropout, shrink
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

SMALL = {"layers": 1, "hiddenSize": 16, "heads": 2}
ALL: dict[str, Any] = {
    "labelSmoothing": 0.1,
    "dropout": 0.1,
    "l1": 1e-4,
    "proximalL1": 0.05,
    "mixup": 0.4,
    "averageDecay": 0.5,
}


def job_in(directory: Path, regularisation: dict[str, Any], **blocks: Any) -> JobFile:
    training = {
        "budget": {"steps": 8},
        "regularisation": regularisation,
        "evaluation": {"everySteps": 4, "sequences": 4},
    }
    uri = write_text(directory.parent / "text.jsonl")
    spec = tiny_spec(uri, model={"config": SMALL}, training=training, **blocks)
    return job_of(spec, directory)


def finished(job: JobFile, faults: Faults | None = None) -> Outcome:
    outcome = run_alone(job, faults=faults)
    assert outcome.end == "finished", outcome
    return outcome


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    job = job_in(tmp_path_factory.mktemp("plain") / "run", {})
    finished(job)
    return exported(job)


@pytest.mark.parametrize("option", ALL)
def test_each_option_has_an_effect(
    tmp_path: Path, option: str, plain: dict[str, torch.Tensor]
) -> None:
    job = job_in(tmp_path / "run", {option: ALL[option]})
    finished(job)
    assert any(not torch.equal(weight, plain[name]) for name, weight in exported(job).items())


def test_p7_p6_all_of_them_are_stopped_skipped_and_read_late_without_a_trace(
    tmp_path: Path,
) -> None:
    nan = {0: (8, 48)}
    ends = {}
    for name, late in (("straight", False), ("late", True), ("broken", False)):
        job = job_in(tmp_path / name, ALL)
        if name == "broken":
            assert run_alone(job, faults=Faults(poison=nan, stop_at={0: 3})).step == 4
        outcome = run_alone(job, attempt=2, faults=Faults(poison=nan, late=late))
        assert outcome.end == "finished", outcome
        ends[name] = (exported(job), outcome.link.report["validation_loss"])
    for name in ("late", "broken"):
        assert_equal_tensors(ends[name][0], ends["straight"][0])
        assert ends[name][1] == ends["straight"][1]


def test_p7_the_same_where_each_rank_has_its_part(tmp_path: Path) -> None:
    how = {"parallelism": {"layout": "fsdp"}, "world_size": 2}
    options = {**ALL, "mixup": 0.0}
    straight = job_in(tmp_path / "straight", options, **how)
    broken = job_in(tmp_path / "broken", options, **how)
    outcomes = run_gang(straight, 2)
    assert outcomes[0].end == "finished", outcomes
    assert run_gang(broken, 2, faults=Faults(stop_at={1: 3}))[0].end == "preempted"
    assert run_gang(broken, 2, attempt=2)[0].end == "finished"
    assert_equal_tensors(exported(straight), exported(broken))


def test_the_average_is_that_of_all_steps_and_is_what_is_exported(tmp_path: Path) -> None:
    job = job_in(
        tmp_path / "run", {"averageDecay": 0.5}, checkpoint={"everySteps": 1, "keepLast": 100}
    )
    finished(job)
    checkpoints = Path(job.run_directory) / "checkpoints"
    weights = [
        load_file(checkpoints / f"step-{step:08d}" / "model.safetensors") for step in range(9)
    ]
    average = {name: weight.double() for name, weight in weights[0].items()}
    for step in range(8):
        decay = min(0.5, (1 + step) / (10 + step))
        for name, weight in weights[step + 1].items():
            average[name] = decay * average[name] + (1 - decay) * weight.double()
    for name, weight in exported(job).items():
        assert torch.allclose(weight.double(), average[name], atol=1e-6), name
        assert not torch.equal(weight, weights[8][name]) or "bias" in name


def test_the_proximal_step_gives_zeros_and_tells_their_share(tmp_path: Path) -> None:
    job = job_in(tmp_path / "run", {"proximalL1": 1.0})
    share = finished(job).link.report["zero_share"]
    matrices = [
        weight for name, weight in exported(job).items() if weight.dim() == 2 and "wpe" not in name
    ]
    zeros = sum(int((weight == 0.0).sum()) for weight in matrices)
    assert 0.01 < share < 0.99
    assert share == pytest.approx(zeros / sum(weight.numel() for weight in matrices))


def test_the_proximal_step_is_the_minimum_of_its_objective() -> None:
    """Of (x - w)² / 2 + rate · lambda · |x|, found by trying; norms and biases stay."""
    spec = tiny_spec("file:///x", model={"config": SMALL})
    model = build_model(spec)
    optimizer = build_optimizer(model, spec.training.optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shrink(optimizer, 5.0, skips=None)
    limit = 5.0 * optimizer.param_groups[0]["lr"]
    tried = torch.linspace(-0.2, 0.2, 4001)
    old = before["transformer.h.0.mlp.c_fc.weight"].flatten()[:64]
    objective = (tried - old[:, None]).square() / 2 + limit * tried.abs()
    best = tried[objective.argmin(dim=1)]
    new = dict(model.named_parameters())["transformer.h.0.mlp.c_fc.weight"].detach().flatten()[:64]
    assert torch.allclose(new, best, atol=1e-4)
    kept = dict(model.named_parameters())["transformer.h.0.ln_1.weight"].detach()
    assert torch.equal(kept, before["transformer.h.0.ln_1.weight"])
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    shrink(optimizer, 5.0, skips=torch.ones(()))  # P6: of a step that was left out
    assert_equal_tensors(held, {name: p.detach() for name, p in model.named_parameters()})


def test_l1_adds_the_sign_to_the_gradient() -> None:
    spec = tiny_spec("file:///x", model={"config": SMALL})
    model = build_model(spec)
    optimizer = build_optimizer(model, spec.training.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalise(optimizer, 0.25)
    named = dict(model.named_parameters())
    matrix, norm = (named[f"transformer.h.0.{n}.weight"] for n in ("mlp.c_fc", "ln_1"))
    assert torch.equal(matrix.grad, 0.25 * matrix.detach().sign())
    assert not norm.grad.any()


@pytest.mark.parametrize("mixup", [0.0, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_smoothed_and_mixed_loss_and_gradients_are_torchs_own(
    smoothing: float, mixup: float
) -> None:
    """Against cross-entropy with a distribution for a target; validation knows of neither."""
    model = build_model(tiny_spec("file:///x", model={"config": SMALL})).double()
    both = torch.randint(270, (4, 17), generator=torch.Generator().manual_seed(1))
    inputs, targets = both[:, :-1], both[:, 1:]
    with_loss = ModelLoss(model, Regularisation(label_smoothing=smoothing, mixup=mixup))
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(mixup, mixup).sample()) if mixup else 1.0
    assert mixup == 0.0 or 0.01 < share < 0.99
    embedded = model.get_input_embeddings()(inputs)
    logits = model(
        inputs_embeds=share * embedded + (1 - share) * embedded.flip(0), use_cache=False
    ).logits
    wanted = share * functional.one_hot(targets, 270) + (1 - share) * functional.one_hot(
        targets.flip(0), 270
    )
    plain = functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(0, 1).double(), label_smoothing=smoothing
    )
    plain.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    loss = with_loss(inputs, targets)
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6), name
    with_loss.train(False)
    validated = with_loss(inputs, targets).item()
    assert validated == pytest.approx(ModelLoss(model)(inputs, targets).item(), rel=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_dropout_reaches_every_architecture(architecture: str) -> None:
    model = build_model(
        tiny_spec("file:///x", model={"config": {**SMALL, "architecture": architecture}})
    )
    tokens = torch.arange(16).reshape(1, 16)
    first, second = (model(input_ids=tokens).logits for _ in range(2))
    assert torch.equal(first, second)
    set_dropout(model, 0.5)
    first, second = (model(input_ids=tokens).logits for _ in range(2))
    assert not torch.equal(first, second)
