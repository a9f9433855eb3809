"""P7: a run that was interrupted ends with the very bits of one that was not."""

import json
import random
from pathlib import Path

import pytest

from lmtraining_api import FailureClass
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    checkpoint_names,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)

KILLS_MAX = 40

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_p7_stop_and_kill_leave_no_trace_in_the_weights(tmp_path: Path, world_size: int) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, world_size=world_size)
    straight = job_of(spec, tmp_path / "straight")
    outcomes = run_gang(straight, world_size)
    assert [outcome.end for outcome in outcomes] == ["finished"] * world_size, outcomes

    broken = job_of(spec, tmp_path / "broken")
    last = world_size - 1
    stopped = run_gang(broken, world_size, faults=Faults(stop_at={last: 5}))
    assert [outcome.end for outcome in stopped] == ["preempted"] * world_size
    # The wish is seen after step 5, agreed on with step 6, and saved there.
    assert {outcome.step for outcome in stopped} == {6}
    assert "step-00000006" in checkpoint_names(broken)

    killed = run_gang(broken, world_size, attempt=2, faults=Faults(kill_at={last: 11}))
    assert killed[last].end == "died"
    for outcome in killed[:last]:
        assert (outcome.reason, outcome.failure_class) == ("PeerLost", FailureClass.PEER_LOST)
        assert f"rank {outcome.rank} lost a peer" in outcome.message
        assert outcome.step is not None and outcome.step >= 10

    resumed = run_gang(broken, world_size, attempt=3)
    assert [outcome.end for outcome in resumed] == ["finished"] * world_size
    report = resumed[0].link.report
    assert report["resumed_from_step"] == 8
    assert report["step"] == 12
    assert_equal_tensors(exported(straight), exported(broken))


def test_p7_a_storm_of_kills_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    """Any rank, any step, again and again: only the time is lost."""
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, world_size=2, checkpoint={"everySteps": 3})
    straight, broken = job_of(spec, tmp_path / "straight"), job_of(spec, tmp_path / "broken")
    run_gang(straight, 2)
    storm = random.Random(11)
    for attempt in range(1, KILLS_MAX):
        saved = [int(name[-8:]) for name in checkpoint_names(broken)] if attempt > 1 else []
        victim, step = storm.randrange(2), max(saved, default=0) + storm.randrange(1, 6)
        outcomes = run_gang(broken, 2, attempt=attempt, faults=Faults(kill_at={victim: step}))
        if all(outcome.end == "finished" for outcome in outcomes):
            break
        assert {outcome.end for outcome in outcomes} <= {"died", "error"}, outcomes
        assert {outcome.reason for outcome in outcomes} <= {"", "PeerLost"}, outcomes
    assert attempt > 5
    assert_equal_tensors(exported(straight), exported(broken))


def test_p7_a_checkpoint_that_is_healthy_by_now_is_so_after_a_stop_too(tmp_path: Path) -> None:
    """The stop comes at the very step at which the checkpoint of step 4 has proved itself, and the
    batches after it are bad: the rewind goes where that of the undisturbed run goes."""
    uri = write_text(tmp_path / "text.jsonl")
    spec = tiny_spec(uri, stability={"healthySteps": 4})
    bad = {0: (64, 72, 80)}
    straight, broken = job_of(spec, tmp_path / "straight"), job_of(spec, tmp_path / "broken")
    assert run_alone(straight, faults=Faults(poison=bad)).end == "finished"
    assert run_alone(broken, faults=Faults(poison=bad, stop_at={0: 7})).step == 8
    assert run_alone(broken, faults=Faults(poison=bad), attempt=2).end == "finished"
    for directory in (tmp_path / "straight", tmp_path / "broken"):
        (rewound,) = [entry for entry in journal(directory) if entry["kind"] == "Rewound"]
        assert (rewound["step"], rewound["detail"]["to_step"]) == (8, 4)  # type: ignore[index]
    assert_equal_tensors(exported(straight), exported(broken))


def test_p7_another_world_size_goes_on_and_says_so(tmp_path: Path) -> None:
    uri = write_text(tmp_path / "text.jsonl")
    one = job_of(tiny_spec(uri, world_size=1), tmp_path)
    assert run_alone(one, faults=Faults(stop_at={0: 5})).step == 6
    two = job_of(tiny_spec(uri, world_size=2), tmp_path)
    outcomes = run_gang(two, 2, attempt=2)
    assert [outcome.end for outcome in outcomes] == ["finished"] * 2
    loaded = [entry for entry in journal(tmp_path) if entry["kind"] == "Loaded"]
    assert loaded[-1]["detail"] == {
        "path": "step-00000006",
        "world_size_then": 1,
        "world_size": 2,
        "layout_then": "ddp",
        "layout": "ddp",
        "generators": "derived",
    }


def journal(directory: Path) -> list[dict[str, object]]:
    lines = (directory / "run" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
