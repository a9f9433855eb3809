"""Every optimizer: its formula, its memory, and that a job's options reach it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmtraining_api import JobFile
from lmtraining_api.job import Optimizer
from lmtraining_api.optimization import DEFAULTS
from lmtraining_trainer.model import build_model
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.step import reads_late, update
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

pytestmark = pytest.mark.trainer

STEPS = 5
RATE = 0.01
SMALL = {"layers": 1, "hiddenSize": 16, "heads": 2}
NAMES = tuple(DEFAULTS)
SHARDABLE = tuple(name for name in NAMES if name not in ("adafactor", "muon"))

State = dict[str, Any]
Formula = Callable[[torch.Tensor, torch.Tensor, State, Mapping[str, float], int], torch.Tensor]


# One step of each, as its paper has it: the new weights, of weights, gradient, memory, options and
# the number of the step; without decay.


def adamw(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Loshchilov & Hutter, algorithm 2."""
    s["m"] = o["beta1"] * s.get("m", 0.0) + (1 - o["beta1"]) * g
    s["v"] = o["beta2"] * s.get("v", 0.0) + (1 - o["beta2"]) * g**2
    m, v = s["m"] / (1 - o["beta1"] ** t), s["v"] / (1 - o["beta2"] ** t)
    return w - RATE * m / (v.sqrt() + o["epsilon"])


def adabelief(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Zhuang et al., algorithm 2."""
    s["m"] = o["beta1"] * s.get("m", 0.0) + (1 - o["beta1"]) * g
    s["s"] = o["beta2"] * s.get("s", 0.0) + (1 - o["beta2"]) * (g - s["m"]) ** 2 + o["epsilon"]
    m, v = s["m"] / (1 - o["beta1"] ** t), s["s"] / (1 - o["beta2"] ** t)
    return w - RATE * m / (v.sqrt() + o["epsilon"])


def sgd(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Polyak's heavy ball, as torch has it."""
    s["m"] = o["momentum"] * s.get("m", 0.0) + g
    return w - RATE * s["m"]


def adagrad(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Duchi et al., figure 1, diagonal."""
    s["n"] = s.get("n", 0.0) + g**2
    return w - RATE * g / (s["n"].sqrt() + o["epsilon"])


def ftrl(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """McMahan et al., algorithm 1, begun at the given weights."""
    if not s:
        s.update(z=-o["epsilon"] / RATE * w, n=torch.zeros_like(w))
    sigma = ((s["n"] + g**2).sqrt() - s["n"].sqrt()) / RATE
    s["z"] = s["z"] + g - sigma * w
    s["n"] = s["n"] + g**2
    pull = (s["z"].abs() - o["l1"]).clamp(min=0.0) * s["z"].sign()
    return -pull / ((o["epsilon"] + s["n"].sqrt()) / RATE)


def lion(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Chen et al., algorithm 2."""
    m = s.get("m", torch.zeros_like(g))
    s["m"] = o["beta2"] * m + (1 - o["beta2"]) * g
    return w - RATE * (o["beta1"] * m + (1 - o["beta1"]) * g).sign()


def adafactor(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Shazeer & Stern, algorithms 4 and 5, its step relative to the weights (section 8)."""
    new = t**-0.8
    if w.dim() == 1:
        s["v"] = (1 - new) * s.get("v", 0.0) + new * g**2
        v = s["v"]
    else:
        s["r"] = (1 - new) * s.get("r", 0.0) + new * (g**2).sum(1, keepdim=True)
        s["c"] = (1 - new) * s.get("c", 0.0) + new * (g**2).sum(0, keepdim=True)
        v = s["r"] @ s["c"] / s["r"].sum()
    u = g / v.sqrt().clamp(min=1e-30)  # 0 of 0, on which the paper is silent
    u = u / max(1.0, float(u.square().mean().sqrt()))
    size = max(1e-3, float(w.square().mean().sqrt()))
    return w - size * min(RATE, 1 / math.sqrt(t)) * u


def muon(w: torch.Tensor, g: torch.Tensor, s: State, o: Mapping[str, float], t: int) -> Any:
    """Jordan 2024, its polynomial on the singular values, scaled as in arXiv 2502.16982."""
    s["m"] = o["momentum"] * s.get("m", torch.zeros_like(g)) + (1 - o["momentum"]) * g
    left, sizes, right = torch.linalg.svd(
        (1 - o["momentum"]) * g + o["momentum"] * s["m"], full_matrices=False
    )
    sizes = sizes / sizes.square().sum().sqrt()
    for _ in range(5):
        sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
    return w - RATE * 0.2 * math.sqrt(max(w.shape)) * (left * sizes) @ right


FORMULAS: dict[str, Formula] = {
    "adamw": adamw, "sgd": sgd, "adagrad": adagrad, "adabelief": adabelief, "ftrl": ftrl,
    "adafactor": adafactor, "lion": lion, "muon": muon,
}  # fmt: skip
TOLERANCE = {"muon": 2e-2}  # of RATE; torch orthogonalises in bf16
DECOUPLED = ("adamw", "adabelief", "adafactor", "lion", "muon")


class Problem(nn.Module):
    """One block with a hidden matrix and a bias, as build_optimizer finds them in a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        block = nn.Module()
        block.matrix = nn.Parameter(torch.randn(6, 4))
        block.bias = nn.Parameter(torch.randn(4))
        self.h = nn.ModuleList([block])
        self.config = type("Config", (), {"num_hidden_layers": 1})

    @property
    def base_model(self) -> nn.Module:
        return self

    def set_gradients(self, step: int) -> None:
        """Of all sizes; one is exactly zero at every step."""
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters():
            size = torch.rand(parameter.shape, generator=generator).add_(0.05)
            drawn = torch.randn(parameter.shape, generator=generator) * size
            parameter.grad = drawn.to(parameter.dtype)
        self.h[0].bias.grad[0] = 0.0


def optimizer_of(problem: Any, name: str, **options: float) -> torch.optim.Optimizer:
    return build_optimizer(problem, Optimizer(name=name, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_its_steps_are_those_of_its_paper(name: str, decay: float) -> None:
    """In fp64, several steps with the same memory; decay of the matrix only."""
    problem = Problem().double()
    options = {**DEFAULTS[name], "weight_decay": decay}  # type: ignore[index]
    optimizer = optimizer_of(problem, name, learning_rate=RATE, weight_decay=decay)
    expected = {key: p.detach().clone() for key, p in problem.named_parameters()}
    memory: dict[str, State] = {key: {} for key in expected}
    for step in range(1, STEPS + 1):
        problem.set_gradients(step)
        for key, parameter in problem.named_parameters():
            weights, gradient = expected[key], parameter.grad.clone()
            own_decay = decay if weights.dim() == 2 else 0.0
            formula = adamw if name == "muon" and weights.dim() == 1 else FORMULAS[name]
            if name in ("sgd", "adagrad"):
                gradient = gradient + own_decay * weights
            expected[key] = formula(weights, gradient, memory[key], options, step)
            if name in DECOUPLED:
                expected[key] -= RATE * own_decay * weights
            if name == "ftrl" and own_decay:
                now = (options["epsilon"] + memory[key]["n"].sqrt()) / RATE
                expected[key] = expected[key] * now / (now + own_decay)
        optimizer.step()
    for key, parameter in problem.named_parameters():
        difference = (parameter.detach() - expected[key]).abs().max()
        assert float(difference) <= TOLERANCE.get(name, 1e-6) * RATE, key


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, options in DEFAULTS.items() for option in options],
)
def test_each_option_has_an_effect(name: str, option: str) -> None:
    """Weights after some steps, with the default and with another value."""
    weights = []
    for options in ({}, {option: {"l1": 1.0, "epsilon": 0.5}.get(option, 0.3)}):
        problem = Problem()
        optimizer = optimizer_of(problem, name, **options)
        for step in range(STEPS):
            problem.set_gradients(step)
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in problem.parameters()]))
    assert not torch.equal(*weights)


def test_ftrl_stays_where_it_is_while_the_rate_changes_and_there_is_no_gradient() -> None:
    """What the libraries' does not: it forgets the first weights, and scales with the rate."""
    problem = Problem()
    optimizer = optimizer_of(problem, "ftrl", epsilon=0.1)
    before = [p.detach().clone() for p in problem.parameters()]
    for rate in (1e-3, 1e-1, 1e-2, 0.0):
        for p in problem.parameters():
            p.grad = torch.zeros_like(p)
        update(problem, optimizer, learning_rate=rate, clip_norm=1.0, gradient_norm=1.0)
    for old, new in zip(before, problem.parameters(), strict=True):
        assert torch.allclose(old, new.detach(), rtol=1e-5)


def test_ftrl_with_l1_leaves_zeros() -> None:
    problem = Problem()
    optimizer = optimizer_of(problem, "ftrl", l1=2.0)
    for step in range(STEPS):
        problem.set_gradients(step)
        optimizer.step()
    share = float((problem.h[0].matrix == 0.0).float().mean())
    assert 0.0 < share < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_p6_one_that_takes_the_flag_leaves_a_bad_update_out(name: str) -> None:
    """And one that does not is never given it: the host waits for the verdict instead."""
    problem = Problem()
    optimizer = optimizer_of(problem, name)
    if not reads_late(torch.device("cuda"), optimizer):
        assert name != "adamw"
        return
    problem.set_gradients(1)
    optimizer.step()
    before = _everything(problem, optimizer)
    problem.h[0].matrix.grad[0, 0] = math.nan
    update(problem, optimizer, learning_rate=RATE, clip_norm=1.0, gradient_norm=1.0,
           skips=torch.ones(()))  # fmt: skip
    assert_equal_tensors(before, _everything(problem, optimizer))


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            weights[f"{name}/{key}"] = value.clone()
    return weights


def job_in(directory: Path, name: str, **how: Any) -> JobFile:
    uri = write_text(directory.parent / "text.jsonl")
    blocks = {
        "model": {"config": {**SMALL, "dropout": 0.1}},
        "training": {"budget": {"steps": 8}, "optimizer": {"name": name}},
    }
    return job_of(tiny_spec(uri, **{**blocks, **how}), directory)


@pytest.mark.parametrize("name", NAMES)
def test_p7_and_p6_a_run_that_is_stopped_and_skips_is_the_run_that_was_not_stopped(
    tmp_path: Path, name: str
) -> None:
    """With a batch that is left out on the way: what an optimizer counts of it would show."""
    nan = {0: (8, 48)}
    straight, broken = job_in(tmp_path / "straight", name), job_in(tmp_path / "broken", name)
    assert run_alone(straight, faults=Faults(poison=nan)).end == "finished"
    stopped = run_alone(broken, faults=Faults(poison=nan, stop_at={0: 3}))
    assert (stopped.end, stopped.step) == ("preempted", 4)
    resumed = run_alone(broken, attempt=2, faults=Faults(poison=nan))
    assert resumed.end == "finished", resumed
    assert resumed.link.report["skipped_steps"] == 2
    assert_equal_tensors(exported(straight), exported(broken))


@pytest.mark.parametrize("name", ["adabelief", "ftrl"])
def test_p7_the_same_with_sharded_moments(tmp_path: Path, name: str) -> None:
    """Those of which the state is not only moments; and the weights are those of ddp."""
    config = {"model": {"config": SMALL}}
    fsdp = {**config, "parallelism": {"layout": "fsdp"}, "world_size": 2}
    straight = job_in(tmp_path / "straight", name, **fsdp)
    broken = job_in(tmp_path / "broken", name, **fsdp)
    alone = job_in(tmp_path / "alone", name, **config)
    assert run_gang(straight, 2)[0].end == "finished"
    assert {each.end for each in run_gang(broken, 2, faults=Faults(stop_at={1: 3}))} == {
        "preempted"
    }
    assert run_gang(broken, 2, attempt=2)[0].end == "finished"
    assert_equal_tensors(exported(straight), exported(broken))
    assert run_alone(alone).end == "finished"
    ours, theirs = exported(straight), exported(alone)
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-4


@pytest.mark.parametrize("name", SHARDABLE)
def test_a_shard_is_updated_as_the_whole(name: str) -> None:
    """The formula of a shardable optimizer looks at one weight at a time: halves that are updated
    on their own give the whole."""
    whole, half = Problem(), Problem()
    half.h[0].matrix = nn.Parameter(half.h[0].matrix.detach()[:3].clone())
    optimizers = [optimizer_of(each, name) for each in (whole, half)]
    for step in range(STEPS):
        whole.set_gradients(step)
        half.h[0].matrix.grad = whole.h[0].matrix.grad[:3].clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(whole.h[0].matrix[:3], half.h[0].matrix, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_with_its_own_defaults(name: str) -> None:
    model = build_model(tiny_spec("file:///x", model={"config": SMALL}))
    optimizer = build_optimizer(model, Optimizer(name=name))  # type: ignore[arg-type]
    tokens = torch.randint(270, (4, 16), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(60):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        update(model, optimizer, learning_rate=optimizer.param_groups[0]["lr"], clip_norm=1.0,
               gradient_norm=1.0)  # fmt: skip
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
