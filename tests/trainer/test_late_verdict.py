"""The verdict read one step late, as on a GPU: the same run to the last bit.

Run on the CPU, where it is never chosen; the GPU's streams, events and NCCL are not in it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from lmtraining_api import JobFile
from lmtraining_trainer import loop
from lmtraining_trainer.step import reads_late
from tests.trainer.injections import Injection
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    exported,
    job_of,
    run_alone,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_guard_injections import at, remedies

pytestmark = pytest.mark.trainer


def job_in(directory: Path, **blocks: Any) -> JobFile:
    spec = tiny_spec(
        write_text(directory / "text.jsonl", documents=200),
        training={
            "budget": {"steps": 48},
            "batchTokens": 128,
            "evaluation": {"everySteps": 24, "sequences": 8},
        },
        checkpoint={"everySteps": 12},
        stability={"healthySteps": 5},
        **blocks,
    )
    return job_of(spec, directory)


CASES = {
    "no fault": (),
    "a NaN": (Injection(position=at(30), what="nan"),),
    "a NaN at a step that is saved": (Injection(position=at(35), what="nan"),),
    "two NaN in a row": tuple(Injection(position=at(step), what="nan") for step in (30, 31)),
    "a spike": (Injection(position=at(30), what="spike", factor=5.0),),
    "gradients of zero": (Injection(position=at(30), what="zero-gradient"),),
    "a flipped bit, once": (Injection(position=at(30), what="gradient-bit", times=1),),
    "a rewind": tuple(Injection(position=at(step), what="nan") for step in range(30, 40)),
}


@pytest.mark.parametrize("faults", CASES.values(), ids=CASES)
def test_p6_a_verdict_read_late_gives_the_same_run(
    tmp_path: Path, faults: tuple[Injection, ...]
) -> None:
    """Dropout and adaptive clipping are on: what the random numbers or the window are ahead or
    behind by would show."""
    for name, late in (("at-once", False), ("late", True)):
        job = job_in(tmp_path / name)
        outcome = run_alone(job, faults=Faults(inject={0: faults}, late=late))
        assert outcome.end == "finished", outcome
    assert remedies(tmp_path / "late") == remedies(tmp_path / "at-once")
    assert len(remedies(tmp_path / "late")) == min(3, len(faults))
    assert_equal_tensors(*(exported(job_in(tmp_path / name)) for name in ("at-once", "late")))


def test_p7_two_ranks_stopped_and_resumed_give_the_same_run(tmp_path: Path) -> None:
    nan = {1: (Injection(position=at(30), what="nan"),)}
    workers = {"ranksPerReplica": 2}
    straight = job_in(tmp_path / "straight", workers=workers)
    assert run_gang(straight, 2, faults=Faults(inject=nan))[0].end == "finished"
    broken = job_in(tmp_path / "broken", workers=workers)
    faults = Faults(inject=nan, stop_at={1: 32}, late=True)
    stopped = run_gang(broken, 2, faults=faults)
    assert {(outcome.end, outcome.step) for outcome in stopped} == {("preempted", 33)}
    assert run_gang(broken, 2, attempt=2, faults=Faults(late=True))[0].end == "finished"
    assert_equal_tensors(exported(straight), exported(broken))


def test_the_next_batch_is_computed_before_the_verdict_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = []

    def noted(name: str, work: Any) -> Any:
        def noting(*arguments: Any, **fields: Any) -> Any:
            happened.append(name)
            return work(*arguments, **fields)

        return noting

    monkeypatch.setattr(loop, "_computed", noted("computed", loop._computed))
    monkeypatch.setattr(loop.Asked, "read", noted("read", loop.Asked.read))
    run_alone(job_in(tmp_path), faults=Faults(late=True))
    assert happened[:5] == ["computed", "computed", "read", "computed", "read"]
    assert happened.count("computed") == 48
    assert happened.count("read") == 48 - 4  # those that are saved are read at once


def test_it_is_for_a_gpu_and_an_optimizer_that_can_skip_there() -> None:
    model = torch.nn.Linear(2, 2)
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    plain = torch.optim.AdamW(model.parameters(), fused=False)
    assert reads_late(torch.device("cuda"), fused)
    assert not reads_late(torch.device("cuda"), plain)
    assert not reads_late(torch.device("cpu"), fused)
