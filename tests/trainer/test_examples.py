"""The examples that are more than a first job, run here as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.supervisor_pods import ROOT

pytestmark = pytest.mark.trainer

EXAMPLES = ROOT / "examples"


def run_example(name: str, directory: Path) -> str:
    """What `lmtraining run` says of an example that finishes."""
    command = [sys.executable, "-m", "lmtraining_trainer", "run", EXAMPLES / f"{name}.yaml"]
    done = subprocess.run(
        [*command, "--no-progress"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["backward-lm", "masked-lm"])
def test_an_example_beats_a_model_that_only_counts(tmp_path: Path, name: str) -> None:
    run_example(name, tmp_path)
    told = json.loads((tmp_path / "runs" / name / "finished.json").read_text())["report"]
    assert told["validation_loss"] < told["unigram_loss"] - 0.2


def test_poisoned_data_is_found_and_gone_round_and_the_run_succeeds(tmp_path: Path) -> None:
    said = run_example("poisoned-data", tmp_path)
    assert "Finished 1400 steps" in said
    assert "1 skipped" in said
    run = tmp_path / "runs" / "poisoned-data"
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    remedies = [entry for entry in entries if entry["kind"] in {"Skipped", "Rewound", "Rerun"}]
    kinds = [entry["kind"] for entry in remedies]
    # How much of the rubbish is met depends on the length of this machine's manual.
    assert kinds[:2] == ["Skipped", "Rewound"]
    assert set(kinds[1:]) == {"Rewound"}
    assert {entry["detail"]["fault"] for entry in remedies} == {"LossSpike"}
