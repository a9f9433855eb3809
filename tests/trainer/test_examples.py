"""The examples that are more than a first job, run here as they are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_blocks import Tier, blocks_of, clean_copy, typed
from tests.trainer.supervisor_pods import ROOT

pytestmark = pytest.mark.trainer

EXAMPLES = ROOT / "examples"


def run_example(name: str, directory: Path, *, examples: Path = EXAMPLES) -> str:
    """What `lmtraining run` says of an example that finishes."""
    command = [sys.executable, "-m", "lmtraining_trainer", "run", examples / f"{name}.yaml"]
    done = subprocess.run(
        [*command, "--no-progress"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["backward-lm", "masked-lm"])
def test_an_example_beats_a_model_that_only_counts(tmp_path: Path, name: str) -> None:
    run_example(name, tmp_path)
    told = report_of(name, tmp_path)
    assert told["validation_loss"] < told["unigram_loss"] - 0.2


def report_of(name: str, directory: Path) -> dict[str, Any]:
    """What the run of an example said at its end."""
    finished = directory / "runs" / name / "finished.json"
    report: dict[str, Any] = json.loads(finished.read_text())["report"]
    return report


@pytest.mark.parametrize(
    ("name", "script", "file"),
    [
        ("sequence-classification", "labelled_functions.py", "/tmp/labelled-functions.jsonl"),
        ("token-classification", "tagged_code.py", "/tmp/tagged-code.jsonl"),
    ],
)
def test_an_example_with_labels_beats_saying_the_commonest(
    tmp_path: Path, name: str, script: str, file: str
) -> None:
    """Which has an F1 below 0.2, and no entity at all."""
    data = tmp_path / "data.jsonl"
    with data.open("wb") as stream:
        subprocess.run([sys.executable, EXAMPLES / script], stdout=stream, check=True)
    job = (EXAMPLES / f"{name}.yaml").read_text()
    assert file in job
    (tmp_path / f"{name}.yaml").write_text(job.replace(f"file://{file}", data.as_uri()))
    run_example(name, tmp_path, examples=tmp_path)
    told = report_of(name, tmp_path)
    assert told["validation_loss"] < told["unigram_loss"] - 0.2
    assert told["validation_f1"] > 0.5


def test_poisoned_data_is_found_and_gone_round_and_the_run_succeeds(tmp_path: Path) -> None:
    """As the quick start has it typed."""
    where = clean_copy(tmp_path)
    (block,) = blocks_of(Tier.TRAINER)
    said = typed(block, where)
    assert "Finished 1400 steps" in said
    assert "1 skipped" in said
    assert "<polyline" in (where / "poisoned-data.html").read_text()
    run = where / "runs" / "poisoned-data"
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    remedies = [entry for entry in entries if entry["kind"] in {"Skipped", "Rewound", "Rerun"}]
    kinds = [entry["kind"] for entry in remedies]
    # How much of the rubbish is met depends on the length of this machine's manual.
    assert kinds[:2] == ["Skipped", "Rewound"]
    assert set(kinds[1:]) == {"Rewound"}
    assert {entry["detail"]["fault"] for entry in remedies} == {"LossSpike"}
