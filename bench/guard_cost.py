"""What the guard costs: the training loop with it, beside the same loop without.

    python -m bench.guard_cost --layers 4 --hidden-size 128 --heads 4

Promise: one trainer, whose turns of a hundred steps are now with and now without what looks at a
step (the judgement, the samples, the comparison of replicas), so that whatever else the machine
does hits both alike; each turn has a comparison and two samples in it. What is reported is the
ratio, by wall and by CPU time.
Trap avoided: a way to switch the guard off that a job could use.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lmtraining_trainer.rank
from lmtraining_trainer import loop
from lmtraining_trainer.guard import Judgement, Observation, Remedy, Window
from lmtraining_trainer.loop import REPLICA_CHECK_STEPS
from lmtraining_trainer.trainer import Trainer
from tests.trainer.rank_support import job_of, run_alone, tiny_spec

FOREVER = 1_000_000
TEXT = "file:///usr/lib/python3.*/*.py"


def accept_all(window: Window, _: Observation, *, fixed_clip_norm: float, **__: Any) -> Judgement:
    return Judgement(remedy=Remedy.ACCEPT, window=window, clip_norm=fixed_clip_norm)


def computed_once(_: Trainer, first: Any, __: Callable[[], Any]) -> Any:
    return first


@contextmanager
def without_guard() -> Iterator[None]:
    with patch.multiple(
        loop,
        judge=accept_all,
        without_corruption=computed_once,
        compare_replicas=lambda _: True,
        SAMPLE_STEPS=FOREVER,
    ):
        yield


def turn(trainer: Trainer) -> tuple[float, float]:
    """Wall and CPU seconds of a turn."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(REPLICA_CHECK_STEPS):
        loop._step(trainer)
        loop._after_step(trainer)
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(trainer: Trainer, turns: int) -> dict[str, Any]:
    """The ratio of each pair of turns."""
    turn(trainer)  # warm up; fill the window
    guarded, bare = [], []
    for number in range(turns):
        # Now one first and now the other: a machine that slows down must not blame either.
        for is_guarded in (True, False) if number % 2 else (False, True):
            if is_guarded:
                guarded.append(turn(trainer))
            else:
                with without_guard():
                    bare.append(turn(trainer))
    pairs = list(zip(guarded, bare, strict=True))
    return {
        "seconds_per_step_median": round(
            statistics.median(wall for wall, _ in bare) / REPLICA_CHECK_STEPS, 4
        ),
        "with_guard_by_wall": spread([with_[0] / without[0] for with_, without in pairs]),
        "with_guard_by_cpu": spread([with_[1] / without[1] for with_, without in pairs]),
    }


def spread(ratios: list[float]) -> dict[str, float]:
    return {
        "min": round(min(ratios), 3),
        "median": round(statistics.median(ratios), 3),
        "max": round(max(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("layers", 4),
        ("hidden-size", 128),
        ("heads", 4),
        ("vocab-size", 4096),
        ("sequence-length", 128),
        ("sequences", 8),
        ("turns", 4),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    shape = {
        "layers": arguments.layers,
        "hiddenSize": arguments.hidden_size,
        "heads": arguments.heads,
    }
    figures: dict[str, Any] = {}

    def train(trainer: Trainer) -> None:
        figures.update(compare(trainer, arguments.turns))

    with tempfile.TemporaryDirectory() as base:
        spec = tiny_spec(
            TEXT,
            model={"config": shape},
            data={
                "train": [{"uri": TEXT}],
                "tokenizer": {"vocabSize": arguments.vocab_size},
                "sequenceLength": arguments.sequence_length,
            },
            training={
                "budget": {"steps": FOREVER},
                "batchTokens": arguments.sequences * arguments.sequence_length,
                "optimizer": {"learningRate": 1e-4},
                "evaluation": {"everySteps": FOREVER},
            },
            checkpoint={"everySteps": FOREVER},
        )
        with patch.object(lmtraining_trainer.rank, "train", train):
            outcome = run_alone(job_of(spec, Path(base)))
    if not figures:
        raise SystemExit(f"{outcome.end}: {outcome.message}")
    print(json.dumps({"shape": shape, "cores": os.cpu_count(), **figures}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
