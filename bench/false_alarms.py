"""How often the guard takes a healthy training for a sick one.

    python -m bench.false_alarms --steps 100000

Promise: five generated loss traces with the noise of real ones, judged as the loop judges; each
remedy counts.
Trap avoided: steady noise, which no detector mistakes; some of these have heavy tails, a memory,
two sources or a growing spread.
"""

import argparse

from tests.unit.guard_traces import TRACES, alarms


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of each trace")
    steps = parser.parse_args().steps
    for trace in TRACES:
        found = alarms(trace, steps)
        print(f"{trace.__name__:<20} {len(found)} remedies in {steps} steps", *found)  # noqa: T201


if __name__ == "__main__":
    main()
