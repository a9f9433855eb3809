"""Model, loss and optimizer: what they compute, against torch's own words."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from lmtraining_api import TrainingSpec
from lmtraining_trainer import loss as loss_module
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model, fingerprint, parameter_count, shape_of
from lmtraining_trainer.optimizer import build_optimizer, decays
from tests.trainer.rank_support import assert_equal_tensors, tiny_spec

pytestmark = pytest.mark.trainer


def spec_of(architecture: str, **model: object) -> TrainingSpec:
    config = {"architecture": architecture, "layers": 2, "hiddenSize": 32, "heads": 2, **model}
    return tiny_spec("file:///x", model={"config": config})


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randint(270, (3, 17), generator=torch.Generator().manual_seed(1))
    return both[:, :-1], both[:, 1:]


def test_the_scale_of_hidden_gradients_is_not_rounded() -> None:
    """1/48 in bf16 is off by a seven-hundredth of a percent, and so would every gradient be."""
    generator = torch.Generator().manual_seed(1)
    weight, targets = torch.randn(270, 32, generator=generator), torch.arange(48)
    hidden = torch.randn(48, 32, generator=generator).bfloat16().requires_grad_()
    loss_of = loss_module._SlicedCrossEntropy.apply
    labels = ((targets, 1.0),)
    loss_of(hidden, weight, labels).backward()
    assert hidden.grad is not None
    mean = hidden.grad.double()
    hidden.grad = None
    (48 * loss_of(hidden, weight, labels)).backward()  # a scale of exactly 1
    ratio = (48 * mean.norm() / hidden.grad.double().norm()).item()
    assert ratio == pytest.approx(1.0, abs=3e-4)


@pytest.mark.parametrize("of_hidden", [True, False])
def test_no_gradient_is_computed_of_what_is_frozen(of_hidden: bool) -> None:
    """Embeddings that are frozen are the head too, and its gradient is the larger part."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 32, generator=generator) for n in (48, 270))
    wanted = []
    for alone in (False, True):
        hidden.requires_grad_(of_hidden or not alone)
        weight.requires_grad_(not (of_hidden and alone))
        loss = loss_module._SlicedCrossEntropy.apply(hidden, weight, ((torch.arange(48), 1.0),))
        kept = loss.grad_fn.saved_tensors
        assert [one is not None for one in kept] == [hidden.requires_grad, weight.requires_grad]
        (gradient,) = torch.autograd.grad(loss, [hidden if of_hidden else weight])
        wanted.append(gradient)
    assert torch.equal(*wanted)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("slice_elements", [1, 270 * 7, 2**20])
def test_sliced_loss_and_gradients_are_those_of_cross_entropy(
    architecture: str, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss_module.SLICE_ELEMENTS, "cpu", slice_elements)
    model = build_model(spec_of(architecture)).double()
    inputs, targets = tokens()
    plain = functional.cross_entropy(
        model(input_ids=inputs, use_cache=False).logits.flatten(0, 1), targets.flatten()
    )
    plain.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    sliced = ModelLoss(model)(inputs, targets)
    (3 * sliced).backward()  # a slope from behind, as gradient accumulation has one
    assert sliced.item() == pytest.approx(plain.item(), rel=1e-6)  # the loss is fp32
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, 3 * wanted[name], rtol=1e-4, atol=1e-7), name


def test_bf16_loss_is_near_and_its_gradients_are_fp32() -> None:
    model = build_model(spec_of("gpt2"))
    inputs, targets = tokens()
    with torch.no_grad():
        exact = ModelLoss(model)(inputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ModelLoss(model)(inputs, targets)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_seed_gives_the_weights(architecture: str) -> None:
    one, two = build_model(spec_of(architecture)), build_model(spec_of(architecture))
    assert_equal_tensors(dict(one.named_parameters()), dict(two.named_parameters()))
    assert not one.get_input_embeddings().weight.isnan().any()
    assert one.config._attn_implementation == "sdpa"  # fused attention, by default
    # Tied: the vocabulary is in the count once.
    assert parameter_count(one) < 2 * 270 * 32 + 60_000


def test_a_new_model_knows_nothing() -> None:
    inputs, targets = tokens()
    with torch.no_grad():
        loss = ModelLoss(build_model(spec_of("gpt2")))(inputs, targets)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(270.0)).item(), abs=0.3)


def test_weight_decay_leaves_norms_biases_and_positions_alone() -> None:
    model = build_model(spec_of("gpt2"))
    optimizer = build_optimizer(model, spec_of("gpt2").training.optimizer)
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {name for name, parameter in model.named_parameters() if not decays(name, parameter)}
    assert "transformer.wpe.weight" in names
    assert "transformer.wte.weight" not in names
    assert all("wpe" in name or "ln_" in name or name.endswith("bias") for name in names)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [({"dropout": 0.5}, True), ({"layers": 3}, False), ({"heads": 4}, False)],
)
def test_the_fingerprint_is_of_the_shape(change: dict[str, object], is_same: bool) -> None:
    one, two = (fingerprint(shape_of(spec_of("gpt2", **extra))) for extra in ({}, change))
    assert (one == two) is is_same


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model = build_model(spec_of("llama"))
    optimizer = build_optimizer(model, spec_of("llama").training.optimizer)
    inputs, targets = tokens()
    losses = []
    for _ in range(60):
        loss = ModelLoss(model)(inputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.0
