"""The examples that are more than a first job, run here as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.supervisor_pods import ROOT

pytestmark = pytest.mark.trainer

EXAMPLES = ROOT / "examples"


def test_poisoned_data_is_found_and_gone_round_and_the_run_succeeds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmtraining_trainer", "run", EXAMPLES / "poisoned-data.yaml"]
    done = subprocess.run(
        [*command, "--no-progress"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Finished 1400 steps" in done.stdout
    assert "1 skipped" in done.stdout
    run = tmp_path / "runs" / "poisoned-data"
    entries = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    remedies = [entry for entry in entries if entry["kind"] in {"Skipped", "Rewound", "Rerun"}]
    kinds = [entry["kind"] for entry in remedies]
    # How much of the rubbish is met depends on the length of this machine's manual.
    assert kinds[:2] == ["Skipped", "Rewound"]
    assert set(kinds[1:]) == {"Rewound"}
    assert {entry["detail"]["fault"] for entry in remedies} == {"LossSpike"}
