"""What a person changes or asks for while a job runs: all ranks follow at one step, and once."""

from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import RollbackWish, Wishes
from lmtraining_trainer.requests import RETRY_SECONDS, Following
from lmtraining_trainer.schedule import learning_rate
from tests.trainer.rank_support import (
    Faults,
    Outcome,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.terminal import journal as journal_of

pytestmark = pytest.mark.trainer


def wish(generation: int = 2, **changes: Any) -> Wishes:
    values: dict[str, Any] = {"budget_steps": 12, "checkpoint_every_steps": 4}
    return Wishes.model_validate({"generation": generation, **values, **changes})


def journal(directory: Path) -> list[dict[str, Any]]:
    return journal_of(directory / "run")


def saved_steps(directory: Path) -> list[int]:
    return [entry["step"] for entry in journal(directory) if entry["kind"] == "Saved"]


def asked(directory: Path) -> list[dict[str, Any]]:
    return [entry for entry in journal(directory) if entry["kind"] == "Asked"]


def rates(outcome: Outcome) -> list[float]:
    said = (update.fields for update in outcome.link.updates)
    return [fields["learning_rate"] for fields in said if "learning_rate" in fields]


LONGER = Faults(wishes={0: wish(1), 4: wish(budget_steps=20)})


def test_p7_a_budget_is_raised_at_one_step_and_a_resume_knows_it(tmp_path: Path) -> None:
    """The steps before keep the rate that they had, also where they are taken again."""
    spec = tiny_spec(write_text(tmp_path / "text.jsonl"))
    straight, broken = job_of(spec, tmp_path / "straight"), job_of(spec, tmp_path / "broken")
    outcome = run_alone(straight, faults=LONGER)
    assert (outcome.end, outcome.link.report["step"]) == ("finished", 20)
    assert outcome.link.report["total_steps"] == 20
    assert outcome.link.report["applied"].generation == 2
    assert rates(outcome) == [
        learning_rate(spec.training, step, total_steps=12 if step < 5 else 20) for step in range(20)
    ]
    (entry,) = asked(tmp_path / "straight")
    assert entry["step"] == 5
    assert (entry["detail"]["from_steps"], entry["detail"]["budget_steps"]) == (12, 20)

    (killed,) = run_gang(broken, 1, faults=Faults(wishes=LONGER.wishes, kill_at={0: 7}))
    assert killed.end == "died"
    resumed = run_alone(broken, attempt=2, faults=Faults(wishes={0: wish(budget_steps=20)}))
    assert resumed.end == "finished", resumed.message
    assert resumed.link.report["resumed_from_step"] == 4
    assert len(asked(tmp_path / "broken")) == 1, "followed once"
    assert_equal_tensors(exported(straight), exported(broken))
    ended = run_alone(broken, attempt=3, faults=Faults(wishes={0: wish(budget_steps=20)}))
    assert ended.link.states == ["Starting", "Finished"], "P2: it is the run that was finished"


def test_all_ranks_follow_what_only_the_lead_is_told(tmp_path: Path) -> None:
    """Also in the very last step."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl"), world_size=2), tmp_path)
    wishes = {12: wish(3, budget_steps=14, checkpoint_every_steps=2, checkpoint="now")}
    outcomes = run_gang(job, 2, faults=Faults(wishes=wishes))
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2, outcomes
    assert outcomes[0].link.report["step"] == 14
    assert outcomes[0].link.report["applied"].checkpoint_step == 12


def test_the_interval_changes_without_a_restart(tmp_path: Path) -> None:
    wishes = {0: wish(1), 4: wish(checkpoint_every_steps=2)}
    run_alone(
        job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path),
        faults=Faults(wishes=wishes),
    )
    assert saved_steps(tmp_path) == [0, 4, 6, 8, 10, 12]


def test_a_checkpoint_that_is_asked_for_is_made_once(tmp_path: Path) -> None:
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    request = wish(checkpoint="before-lunch")
    stopped = run_alone(job, faults=Faults(wishes={0: wish(1), 4: request}, stop_at={0: 6}))
    assert stopped.end == "preempted"
    applied = stopped.link.report["applied"]
    assert (applied.checkpoint, applied.checkpoint_step) == ("before-lunch", 5)
    resumed = run_alone(job, attempt=2, faults=Faults(wishes={0: request}))
    assert resumed.link.report["applied"].checkpoint_step == 5
    assert saved_steps(tmp_path) == [0, 4, 5, 7, 8, 12]


def test_p3_a_rollback_is_journalled_named_and_made_once(tmp_path: Path) -> None:
    """It takes the same steps again: the run ends with the bits of one that never went back."""
    uri = write_text(tmp_path / "text.jsonl")
    straight = job_of(tiny_spec(uri), tmp_path / "straight")
    run_alone(straight)
    job = job_of(tiny_spec(uri), tmp_path)
    back = wish(rollback=RollbackWish(name="back", to_step=4))
    stopped = run_alone(job, faults=Faults(wishes={0: wish(1), 9: back}, stop_at={0: 10}))
    assert stopped.end == "preempted"
    report = stopped.link.report
    assert (report["last_remedy"].remedy, report["last_remedy"].fault) == ("Rewind", "Requested")
    assert (report["last_remedy"].step, report["last_remedy"].to_step) == (10, 4)
    assert (report["rewinds"], report["is_stable"]) == (0, True), "no incident, and no budget"
    kinds = [entry["kind"] for entry in journal(tmp_path)]
    assert kinds.index("Rewound") < len(kinds) - 1 - kinds[::-1].index("Loaded")
    resumed = run_alone(job, attempt=2, faults=Faults(wishes={0: back}))
    assert resumed.end == "finished", resumed.message
    applied = resumed.link.report["applied"]
    assert (applied.rollback, applied.rollback_step) == ("back", 4)
    assert [entry["kind"] for entry in journal(tmp_path)].count("Rewound") == 1
    assert_equal_tensors(exported(straight), exported(job))


def test_a_rollback_to_no_checkpoint_is_refused_with_those_there_are(tmp_path: Path) -> None:
    """And stays refused when there is one of that step: it was asked for when there was none."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    nowhere = wish(rollback=RollbackWish(name="nowhere", to_step=8))
    stopped = run_alone(job, faults=Faults(wishes={0: wish(1), 5: nowhere}, stop_at={0: 9}))
    applied = stopped.link.report["applied"]
    assert (applied.rollback, applied.rollback_step) == ("nowhere", None)
    assert applied.refusal == (
        "there is no intact checkpoint of step 8 to go back to: ask, by a new name, for one of 4, 0"
    )
    outcome = run_alone(job, attempt=2, faults=Faults(wishes={0: nowhere}))
    assert (outcome.end, outcome.link.report["replayed_steps"]) == ("finished", 0)
    assert outcome.link.report["applied"].refusal == applied.refusal


def test_p3_a_request_that_comes_back_is_not_followed_again(tmp_path: Path) -> None:
    """A manifest that is put back to an old name has the answer of then."""
    job = job_of(tiny_spec(write_text(tmp_path / "text.jsonl")), tmp_path)
    first = {"rollback": RollbackWish(name="a", to_step=4), "checkpoint": "one"}
    second = {"rollback": RollbackWish(name="b", to_step=99), "checkpoint": "two"}
    wishes = {0: wish(1), 5: wish(2, **first), 7: wish(3, **second)}
    stopped = run_alone(job, faults=Faults(wishes=wishes, stop_at={0: 8}))
    assert "no intact checkpoint of step 99 " in stopped.link.report["applied"].refusal
    before = [entry for entry in journal(tmp_path) if "request" in entry["detail"]]
    resumed = run_alone(job, attempt=2, faults=Faults(wishes={0: wish(4, **first)}))
    assert (resumed.end, resumed.link.report["replayed_steps"]) == ("finished", 0)
    assert [entry for entry in journal(tmp_path) if "request" in entry["detail"]] == before
    applied = resumed.link.report["applied"]
    assert (applied.rollback, applied.rollback_step, applied.refusal) == ("a", 4, "")
    assert (applied.checkpoint, applied.checkpoint_step) == ("one", 6)


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_p8_a_rollback_to_a_rotten_checkpoint_is_refused_and_gives_nothing_up(
    tmp_path: Path, layout: str
) -> None:
    world_size, part = (1, "") if layout == "ddp" else (2, "-00001")
    spec = tiny_spec(
        write_text(tmp_path / "text.jsonl"),
        world_size=world_size,
        parallelism={"layout": layout},
        checkpoint={"everySteps": 2, "keepLast": 100},
    )
    job = job_of(spec, tmp_path)

    def rot() -> None:
        path = tmp_path / f"run/checkpoints/step-00000004/model{part}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    back = wish(checkpoint_every_steps=2, rollback=RollbackWish(name="back", to_step=4))
    first = wish(1, checkpoint_every_steps=2)
    faults = Faults(world={8: rot}, wishes={0: first, 9: back})
    if world_size == 1:
        outcome = run_alone(job, faults=faults)
    else:  # the damage is done twice where both ranks do it: that is none
        stopped = run_gang(job, 2, faults=Faults(wishes={0: first}, stop_at={0: 8, 1: 8}))
        assert [one.end for one in stopped] == ["preempted"] * 2
        rot()
        outcome = run_gang(job, 2, faults=Faults(wishes={0: back}), attempt=2)[0]
    assert (outcome.end, outcome.link.report["replayed_steps"]) == ("finished", 0), outcome
    refusal = outcome.link.report["applied"].refusal
    assert refusal.startswith(
        f"the checkpoint of step 4 is broken (model{part}.safetensors has another SHA-256 than its "
        "manifest says): ask, by a new name, for one of "
    )
    assert "4" not in refusal.partition("for one of ")[2].split(", ")
    assert not {entry["kind"] for entry in journal(tmp_path)} & {"Rewound", "Rejected"}


def test_what_cannot_be_followed_is_not_tried_at_every_step() -> None:
    now = [100.0]
    following = Following(clock=lambda: now[0])
    assert following.is_news(wish())
    following = following.reading(wish()).later()
    assert not following.is_news(wish())
    now[0] += RETRY_SECONDS
    assert following.is_news(wish())
    following = following.reading(wish()).later()
    assert following.is_news(wish(3, budget_steps=20)), "P12: another wish does not wait for it"
    following = following.followed()
    assert not following.is_news(wish())
    assert following.is_news(wish(checkpoint="again"))


def test_p7_wishes_are_followed_alike_where_verdicts_are_read_late(tmp_path: Path) -> None:
    """As on a GPU: the batch that was computed ahead is dropped."""
    uri = write_text(tmp_path / "text.jsonl")
    back = RollbackWish(name="back", to_step=4)
    wishes = {
        0: wish(1),
        4: wish(2, budget_steps=20),
        9: wish(3, budget_steps=20, checkpoint="now", rollback=back),
    }
    early, late = (job_of(tiny_spec(uri), tmp_path / name) for name in ("early", "late"))
    for job, is_late in ((early, False), (late, True)):
        outcome = run_alone(job, faults=Faults(wishes=wishes, late=is_late))
        assert (outcome.end, outcome.link.report["step"]) == ("finished", 20)
        assert outcome.link.report["applied"].checkpoint_step == 10
    assert_equal_tensors(exported(early), exported(late))
