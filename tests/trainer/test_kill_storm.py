"""P3, P7, P8: killed anywhere, again and again, a training ends with the very same bits."""

from pathlib import Path

import pytest

from tests.soak.__main__ import SEED, seed_of_environment
from tests.soak.storm import survives

pytestmark = pytest.mark.trainer

KILLS = 10


def test_a_storm_of_kills_costs_time_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = seed_of_environment()
    with capsys.disabled():
        print(f"\n{SEED}={seed}")  # noqa: T201 - to repeat this very storm
    survives(tmp_path, seed, KILLS, say=lambda _: None)
