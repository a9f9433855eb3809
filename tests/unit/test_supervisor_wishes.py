"""From the intent to rank 0: only ours, whole, and the newest."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import Wishes
from lmtraining_trainer.supervisor.assignment import WISHES_FILE, Assignment
from lmtraining_trainer.supervisor.intent import wishes_of
from lmtraining_trainer.supervisor.wish_post import LOOK_SECONDS, WishPost
from tests.unit.test_supervisor_intent import GOOD, JOB, ME

pytestmark = pytest.mark.unit

WANTED = {"generation": 5, "budgetSteps": 40, "checkpoint": "a"}


def intent(**changes: Any) -> str:
    return json.dumps({**GOOD, "wishes": WANTED, **changes})


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        (intent(), True),
        (intent(peers=[]), True),
        (intent(jobUid="another"), False),
        (intent(attempt=2), False),
        (json.dumps(GOOD), False),
        (intent()[:60], False),
        ("", False),
    ],
)
def test_wishes_are_read_of_an_intent_for_this_life(text: str, is_told: bool) -> None:
    found = wishes_of(text, identity=ME, job=JOB)
    wanted = Wishes(generation=5, budget_steps=40, checkpoint="a")
    assert found == (wanted if is_told else None)


def test_the_newest_wish_is_written_down_for_rank_0_alone(tmp_path: Path) -> None:
    said = [intent()]
    lead = replace(ME, replica=0)
    given = Assignment(identity=lead, job=JOB, read_intent=lambda: said[-1])
    post, path = WishPost(given, tmp_path), tmp_path / WISHES_FILE

    def written() -> Wishes:
        return Wishes.model_validate_json(path.read_bytes())

    post.pass_on(0.0)
    assert written().budget_steps == 40
    said.append(intent(wishes={**WANTED, "budgetSteps": 50}))
    post.pass_on(LOOK_SECONDS / 2)
    assert written().budget_steps == 40, "not so often"
    post.pass_on(LOOK_SECONDS)
    assert written().budget_steps == 50
    said.append("")
    post.pass_on(2 * LOOK_SECONDS)
    assert written().budget_steps == 50, "an intent that cannot be read takes nothing back"
    path.unlink()
    WishPost(replace(given, identity=ME), tmp_path).pass_on(0.0)
    assert not path.exists()


def test_a_wish_that_cannot_be_written_down_waits_until_it_can(tmp_path: Path) -> None:
    """P12: a disk that is full for a while neither ends the gang nor loses the wish."""
    given = Assignment(identity=replace(ME, replica=0), job=JOB, read_intent=intent)
    scratch = tmp_path / "scratch"
    post = WishPost(given, scratch)
    post.pass_on(0.0)
    scratch.mkdir()
    post.pass_on(LOOK_SECONDS)
    assert Wishes.model_validate_json((scratch / WISHES_FILE).read_bytes()).budget_steps == 40
