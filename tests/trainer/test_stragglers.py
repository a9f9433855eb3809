"""Real ranks of which one is slow: all come to the same scores, and the slow one is named."""

from pathlib import Path

import pytest

from lmtraining_api import RankScore
from lmtraining_trainer.sampling import SAMPLE_STEPS
from lmtraining_trainer.straggler import COMPARISONS_MIN, SCORE_MIN
from tests.trainer.rank_support import Faults, job_of, run_gang, tiny_spec, write_text

pytestmark = pytest.mark.trainer

STEPS = SAMPLE_STEPS * COMPARISONS_MIN
SLOW_SECONDS = 0.05


def test_a_slow_rank_is_found_though_all_steps_take_as_long(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl", documents=400)
    training = {"budget": {"steps": STEPS}, "evaluation": {"everySteps": STEPS, "sequences": 8}}
    spec = tiny_spec(uri, world_size=2, training=training, checkpoint={"everySteps": STEPS})
    outcomes = run_gang(job_of(spec, tmp_path), 2, faults=Faults(slow={1: SLOW_SECONDS}))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    lead, slow = (outcome.link for outcome in outcomes)
    assert lead.report["score"] == 1.0
    assert slow.report["score"] < SCORE_MIN
    assert "slowest_ranks" not in slow.report
    told: list[list[RankScore]] = [
        update.fields["slowest_ranks"]
        for update in lead.updates
        if "slowest_ranks" in update.fields
    ]
    assert [[rank.rank for rank in ranks] for ranks in told] == [[1, 0]] * COMPARISONS_MIN
    flags = [[rank.is_straggler for rank in ranks] for ranks in told]
    assert flags == [[False, False]] * (COMPARISONS_MIN - 1) + [[True, False]]
    assert told[-1][0].score == slow.report["score"]
    assert told[-1][0].seconds > SLOW_SECONDS > told[-1][1].seconds
