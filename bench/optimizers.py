"""What each optimizer and its defaults make of the same small model: a check of sanity, no contest.

    python -m bench.optimizers --steps 200 --seeds 3

Promise: every optimizer sees the same batches and starts from the same weights per seed; the loss
is that of held-out text.
Trap avoided: one seed, whose spread is as large as what is compared.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from lmtraining_api import TrainingSpec
from lmtraining_api.optimization import DEFAULTS
from tests.trainer.rank_support import job_of, run_alone

CORPUS = Path(os.__file__).parent
FILES = ("a*.py", "c*.py", "s*.py", "t*.py")


def validation_loss(name: str, seed: int, steps: int, cache: Path) -> tuple[float, float]:
    """After the steps, and that of a unigram model; nats per token."""
    spec = TrainingSpec.model_validate(
        {
            "model": {"config": {"layers": 2, "hiddenSize": 64, "heads": 2}},
            "data": {
                "train": [{"uri": (CORPUS / files).as_uri()} for files in FILES],
                "tokenizer": {"vocabSize": 1024},
                "sequenceLength": 64,
            },
            "training": {
                "budget": {"steps": steps},
                "batchTokens": 1024,
                "optimizer": {"name": name},
                "evaluation": {"everySteps": steps, "sequences": 128},
                "seed": seed,
            },
            "precision": {"compute": "fp32"},
            "checkpoint": {"everySteps": steps},
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        job = job_of(spec, Path(directory)).model_copy(update={"data_cache_directory": str(cache)})
        outcome = run_alone(job)
    report = outcome.link.report
    if outcome.end != "finished":
        raise SystemExit(f"{name}, seed {seed}: {outcome.message}")
    return report["validation_loss"], report["unigram_loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for name in DEFAULTS:
            found = [
                validation_loss(name, seed, arguments.steps, Path(cache))
                for seed in range(1, arguments.seeds + 1)
            ]
            losses = [loss for loss, _ in found]
            print(  # noqa: T201
                f"{name:<10} {statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f} "
                f"(unigram {found[0][1]:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
