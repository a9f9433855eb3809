"""How fast one step of our loop is, beside a plain loop over the same model of transformers.

    python -m bench.train_speed --layers 4 --hidden-size 128 --vocab-size 4096

Promise: all contenders take turns within one process, so that whatever else the machine does hits
all of them alike; what is reported are ratios, with their spread, and CPU time beside wall time.
Trap avoided: two runs one after the other on a shared machine differ by more than the contenders.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lmtraining_api import TrainingSpec
from lmtraining_trainer.data.micro_batch import MicroBatch
from lmtraining_trainer.device import device_name
from lmtraining_trainer.loss import ModelLoss
from lmtraining_trainer.model import build_model, parameter_count
from lmtraining_trainer.optimizer import build_optimizer
from lmtraining_trainer.precision import Format, autocast
from lmtraining_trainer.step import forward_backward, update

CPU = torch.device("cpu")


@dataclass
class Contender:
    """One way to take a step, and what its rounds took."""

    name: str
    step: Callable[[MicroBatch], None]
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def take_turn(self, batch: MicroBatch, steps: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step(batch)
        self.wall_seconds.append((time.perf_counter() - wall) / steps)
        self.cpu_seconds.append((time.process_time() - cpu) / steps)


def ours(spec: TrainingSpec, precision: Format) -> Callable[[MicroBatch], None]:
    """A step as `loop.train` takes it on one rank."""
    model = build_model(spec)
    with_loss, optimizer = ModelLoss(model), build_optimizer(model, spec.training.optimizer)

    def casting() -> AbstractContextManager[None]:
        return autocast(CPU, precision)

    def step(batch: MicroBatch) -> None:
        measured = forward_backward(with_loss, [batch], casting)
        update(
            model,
            optimizer,
            learning_rate=1e-3,
            clip_norm=1.0,
            gradient_norm=float(measured.gradient_norm),
        )

    return step


def plain_transformers(spec: TrainingSpec) -> Callable[[MicroBatch], None]:
    """The loop of many tutorials: GPT2LMHeadModel as it comes, its own loss, AdamW not fused."""
    config = spec.model.config
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=spec.data.tokenizer.vocab_size,
            n_positions=spec.data.sequence_length,
            n_embd=config.hidden_size,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=False, foreach=False)

    def step(batch: MicroBatch) -> None:
        # It shifts the labels itself; a last column of its own makes the work the same.
        loss = model(input_ids=batch.inputs, labels=batch.inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        loss.item()
        optimizer.step()
        optimizer.zero_grad()

    return step


CONTENDERS: dict[str, Callable[[TrainingSpec], Callable[[MicroBatch], None]]] = {
    "transformers fp32": plain_transformers,
    "ours fp32": partial(ours, precision="fp32"),
    "ours bf16": partial(ours, precision="bf16"),
}


def spec_of(arguments: argparse.Namespace) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {
                "config": {
                    "layers": arguments.layers,
                    "hiddenSize": arguments.hidden_size,
                    "heads": arguments.heads,
                }
            },
            "data": {
                "train": [{"uri": "file:///none"}],
                "tokenizer": {"vocabSize": arguments.vocab_size},
                "sequenceLength": arguments.sequence_length,
            },
            "training": {
                "budget": {"steps": 1},
                "batchTokens": arguments.sequences * arguments.sequence_length,
            },
        }
    )


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Let the contenders take turns; figures by contender, ratios against the plain loop."""
    torch.set_num_threads(arguments.threads)
    spec, batch = spec_of(arguments), batch_of(arguments)
    contenders = [Contender(name, build(spec)) for name, build in CONTENDERS.items()]
    for contender in contenders:
        contender.step(batch)  # warm up
    for _ in range(arguments.rounds):
        for contender in contenders:
            contender.take_turn(batch, arguments.steps)
    base = contenders[0]
    return {
        "device": device_name(CPU),
        "torch": torch.__version__,
        "parameters": parameter_count(build_model(spec)),
        "tokens_per_step": batch.inputs.numel(),
        "rounds": arguments.rounds,
        "contenders": {
            contender.name: _figures(contender, base, batch) for contender in contenders
        },
        "peak_memory_mib": {
            name or "imports alone": _peak_memory_mib(arguments, name)
            for name in (None, *CONTENDERS)
        },
    }


def _peak_memory_mib(arguments: argparse.Namespace, name: str | None) -> int:
    """Peak resident memory of a process that takes two steps, or none, imports included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_two_steps, (arguments, name))


def _two_steps(arguments: argparse.Namespace, name: str | None) -> int:
    torch.set_num_threads(arguments.threads)
    if name is not None:
        step, batch = CONTENDERS[name](spec_of(arguments)), batch_of(arguments)
        step(batch)
        step(batch)
    # Not ru_maxrss: a new process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def batch_of(arguments: argparse.Namespace) -> MicroBatch:
    """Random tokens; their values do not matter for the speed."""
    shape = (arguments.sequences, arguments.sequence_length + 1)
    tokens = torch.randint(arguments.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    return MicroBatch(inputs=tokens[:, :-1].contiguous(), targets=tokens[:, 1:].contiguous())


def _figures(contender: Contender, base: Contender, batch: MicroBatch) -> dict[str, object]:
    return {
        "tokens_per_second_median": round(
            batch.inputs.numel() / statistics.median(contender.wall_seconds)
        ),
        "times_as_fast_by_wall": _spread(base.wall_seconds, contender.wall_seconds),
        "times_as_fast_by_cpu": _spread(base.cpu_seconds, contender.cpu_seconds),
    }


def _spread(base: list[float], own: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(base, own, strict=True))
    return {
        "min": round(ratios[0], 2),
        "median": round(statistics.median(ratios), 2),
        "max": round(ratios[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("layers", 4),
        ("hidden-size", 128),
        ("heads", 4),
        ("vocab-size", 4096),
        ("sequence-length", 128),
        ("sequences", 16),
        ("steps", 3),
        ("rounds", 9),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(json.dumps(compare(parser.parse_args()), indent=1))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
