"""Is this operator alive?

Promise: it is not, when the event loop stands still or when the pass of some job has not come back
for a long time; an API server that is away is no reason to restart. Trap avoided: a probe that only
says that the probe's own server runs.
"""

import asyncio
from collections.abc import Callable

from lmtraining_operator.metrics import Metrics

LAG_PROBE_SECONDS = 0.5
LAG_SECONDS_MAX = 10.0
PASS_SECONDS_MAX = 180.0
"""Longest time that a pass may take, with a slow API server."""


async def watch_loop(metrics: Metrics) -> None:
    """Measure, for ever, how late a timer comes."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_PROBE_SECONDS
        await asyncio.sleep(LAG_PROBE_SECONDS)
        metrics.loop_lag_seconds.set(max(loop.time() - due, 0.0))


def problem(*, lag_seconds: float, oldest_pass_seconds: float) -> str:
    """What is wrong, in a sentence; empty when nothing is."""
    if lag_seconds > LAG_SECONDS_MAX:
        return f"the event loop was {lag_seconds:.1f} s late (limit {LAG_SECONDS_MAX:.0f} s)"
    if oldest_pass_seconds > PASS_SECONDS_MAX:
        return (
            f"a pass over a job has lasted {oldest_pass_seconds:.0f} s "
            f"(limit {PASS_SECONDS_MAX:.0f} s)"
        )
    return ""


class UnhealthyError(Exception):
    """Makes the liveness probe fail."""


def probe(metrics: Metrics, oldest_pass_seconds: Callable[[], float]) -> str:
    """ok, or UnhealthyError."""
    lag = metrics.loop_lag_seconds.collect()
    lag_seconds = next((sample.value for family in lag for sample in family.samples), 0.0)
    found = problem(lag_seconds=lag_seconds, oldest_pass_seconds=oldest_pass_seconds())
    if found:
        raise UnhealthyError(found)
    return "ok"
