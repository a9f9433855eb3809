"""Every task: what it reads, that its export is the trained model, and that a stop leaves no trace.

What a task alone does is in a file of its own.
"""

from pathlib import Path
from typing import Any

import pytest

from lmtraining_api import JobFile
from tests.trainer.rank_support import (
    Faults,
    assert_equal_tensors,
    exported,
    job_of,
    run_gang,
    tiny_spec,
    write_text,
)
from tests.trainer.test_sequence_classification import write_labelled
from tests.trainer.test_token_classification import write_tagged

pytestmark = pytest.mark.trainer

SMALL: dict[str, Any] = {"layers": 1, "hiddenSize": 32, "heads": 2, "dropout": 0.1}
BERT = {**SMALL, "architecture": "bert"}
MODELS: dict[str, dict[str, Any]] = {
    "backward-lm": {"task": "backward-lm", "config": SMALL},
    "masked-lm": {"task": "masked-lm", "config": BERT, "masking": {"wholeWords": True}},
    "sequence-classification": {"task": "sequence-classification", "config": BERT},
    "token-classification": {"task": "token-classification", "config": BERT},
}
WRITERS = {"sequence-classification": write_labelled, "token-classification": write_tagged}


def job_in(directory: Path, task: str, *, world_size: int, **blocks: Any) -> JobFile:
    uri = WRITERS.get(task, write_text)(directory.parent / "text.jsonl")
    spec = tiny_spec(uri, world_size=world_size, model=MODELS[task], **blocks)
    return job_of(spec, directory)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("task", MODELS)
def test_p7_a_stop_leaves_no_trace(tmp_path: Path, task: str, world_size: int) -> None:
    straight = job_in(tmp_path / "straight", task, world_size=world_size)
    broken = job_in(tmp_path / "broken", task, world_size=world_size)
    whole = run_gang(straight, world_size)
    assert [outcome.end for outcome in whole] == ["finished"] * world_size, whole
    stopped = run_gang(broken, world_size, faults=Faults(stop_at={world_size - 1: 5}))
    assert {outcome.step for outcome in stopped} == {6}, stopped
    resumed = run_gang(broken, world_size, attempt=2)
    assert [outcome.end for outcome in resumed] == ["finished"] * world_size, resumed
    assert_equal_tensors(exported(straight), exported(broken))
    for figure in ("validation_loss", "validation_accuracy", "validation_f1"):
        told = [outcomes[0].link.report[figure] for outcomes in (whole, resumed)]
        assert told[0] == told[1], figure
