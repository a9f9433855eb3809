"""`make soak`: a long kill storm, with a table of what was hit.

python -m tests.soak --kills 200 --seed 7
"""

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.soak.storm import PROCESSES, Kill, survives

SEED = "LMTRAINING_STORM_SEED"


def main() -> None:
    """Rage, and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=seed_of_environment())
    wanted = parser.parse_args()
    console, began = Console(), time.monotonic()
    console.print(f"seed {wanted.seed}, {wanted.kills} kills")

    def say(kill: Kill) -> None:
        seconds = time.monotonic() - began
        console.print(
            f"{seconds:7.0f} s  {kill.number:>4}/{wanted.kills}  {kill.process:<14} "
            f"{kill.phase:<14} step {kill.step}",
            highlight=False,
        )

    with tempfile.TemporaryDirectory(prefix="lmtraining-soak-") as directory:
        done = survives(Path(directory), wanted.seed, wanted.kills, say)
    console.print(table_of(done))
    for line in recovery_of(done):
        console.print(line, highlight=False)
    console.print("the weights are those of the undisturbed run, bit for bit")


def seed_of_environment() -> int:
    """The seed to repeat, or any."""
    return int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))


def table_of(done: list[Kill]) -> Table:
    """How often each process was hit in each phase."""
    counts = Counter((kill.phase, kill.process) for kill in done)
    table = Table("phase", *PROCESSES, "all")
    for phase in dict.fromkeys(kill.phase for kill in sorted(done, key=lambda kill: kill.phase)):
        row = [counts[phase, process] for process in PROCESSES]
        table.add_row(phase, *(str(count) if count else "" for count in row), str(sum(row)))
    return table


def recovery_of(done: list[Kill]) -> list[str]:
    """From the kill to the next step, for each kind of process."""
    lines = []
    for kind in ("rank", "fork server", "supervisor"):
        found = sorted(
            kill.to_next_step_seconds
            for kill in done
            if kill.process.startswith(kind) and kill.to_next_step_seconds is not None
        )
        if found:
            lines.append(
                f"{kind} killed to the next step, {len(found)} times: median {median(found):.2f} "
                f"s, longest {found[-1]:.2f} s"
            )
    return lines


if __name__ == "__main__":
    main()
