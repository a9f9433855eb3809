"""Jobs drawn from the CRD's schema, good and bad, against a real API server and the real operator:
a refusal names the field; what is accepted is handled; an edit that is taken back leaves the job as
it was (P10, P11, P12)."""

import pytest

from tests.api.conftest import Jobs
from tests.api.operator.process import OperatorProcess
from tests.api.operator.stage import Stage
from tests.fuzz.life import World

pytestmark = pytest.mark.api

SEED = 1
JOBS = 100


def test_drawn_jobs_are_refused_in_words_or_handled(
    stage: Stage, jobs: Jobs, operator: OperatorProcess
) -> None:
    """`make soak` draws 5,000; `python -m tests.fuzz --seed 1 --first N --specs 1` repeats one."""
    tally = World(stage, jobs, operator, SEED).live_through(range(JOBS))
    assert not tally.complaints, "\n".join(tally.complaints)
    for what in ("refused", "accepted", "edits refused", "edits that left the pods alone"):
        assert tally.counts[what] >= JOBS // 20, tally.counts
