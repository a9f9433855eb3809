"""What is kept of hangs in the run directory."""

import json
from pathlib import Path

import pytest

from lmtraining_trainer.run.directory import RUN
from lmtraining_trainer.supervisor.hangs import HANGS, HANGS_MAX, keep

pytestmark = pytest.mark.unit


def kept(directory: Path, *, attempt: int = 1, round_number: int = 1) -> None:
    files = {"rank-3.txt": b"stack"}
    keep(files, directory, job_uid="uid", attempt=attempt, round_number=round_number).join()


def test_the_newest_hangs_stay(tmp_path: Path) -> None:
    for number in range(1, HANGS_MAX + 4):
        kept(tmp_path, round_number=number)
    kept(tmp_path, attempt=2)
    names = {path.name for path in (tmp_path / HANGS).iterdir()}
    assert names == {"2-1", *(f"1-{number}" for number in range(5, HANGS_MAX + 4))}


def test_each_file_has_its_name(tmp_path: Path) -> None:
    kept(tmp_path)
    assert (tmp_path / HANGS / "1-1" / "rank-3.txt").read_text() == "stack"


def test_nothing_is_written_into_the_run_of_another_job(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text(json.dumps({"job_uid": "another"}))
    kept(tmp_path)
    assert not (tmp_path / HANGS).exists()


def test_a_run_directory_that_cannot_be_written_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / HANGS).touch()
    kept(tmp_path)
