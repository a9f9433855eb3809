"""Many drawn jobs against a real API server and the real operator (`make soak`).

python -m tests.fuzz --specs 5000 --seed 7
python -m tests.fuzz --seed 7 --first 1234 --specs 1
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.api.conftest import Jobs, serving
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage
from tests.fuzz.life import Tally, World
from tests.soak.__main__ import seed_of_environment

NETWORK = 1
TOLD_MAX = 20
SAY_EVERY = 500


def main() -> None:
    """Ask for the jobs, live through their lives, and tell what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--specs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=seed_of_environment())
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    wanted = parser.parse_args()
    numbers = range(wanted.first, wanted.first + wanted.specs)
    console, began = Console(), time.monotonic()
    console.print(f"seed {wanted.seed}, {len(numbers)} jobs")

    def say(number: int) -> None:
        if (number + 1) % SAY_EVERY == 0:
            console.print(f"{time.monotonic() - began:7.0f} s  job {number}", highlight=False)

    with tempfile.TemporaryDirectory(prefix="lmtraining-fuzz-") as directory:
        tally = live_through(Path(directory), wanted.seed, numbers, say)
    console.print(table_of(tally))
    console.print(f"{time.monotonic() - began:.0f} s, {len(tally.complaints)} complaints")
    for complaint in tally.complaints[:TOLD_MAX]:
        console.print(complaint, markup=False, highlight=False)
    sys.exit(bool(tally.complaints))


def live_through(directory: Path, seed: int, numbers: range, say: Callable[[int], None]) -> Tally:
    """In an API server, with an operator, of their own."""
    with serving(directory / "server") as server:
        stage = Stage(server, "default", NETWORK)
        operator = OperatorProcess(server, stage.namespace, directory / "operator.log")
        try:
            operator.wait_ready()
            jobs = Jobs(server, stage.namespace)
            return World(stage, jobs, operator, seed).live_through(numbers, say)
        finally:
            operator.kill()


def table_of(tally: Tally) -> Table:
    table = Table("jobs", "", title="what was asked, and what came of it")
    for name, count in tally.counts.items():
        table.add_row(name, str(count))
    for state, count in tally.states.most_common():
        table.add_row(f"came to: {state}", str(count))
    return table


if __name__ == "__main__":
    main()
