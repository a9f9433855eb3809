"""What was found of a hang, kept in the run directory.

Promise: `hangs/<attempt>-<round>/` has the stack of every rank that answered, and what else was
found, of every pod that saw the hang; the newest few stay. Nothing is written into another job's
run.
Trap avoided: it may be the storage that hangs, and the supervisor must not hang with it.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

from lmtraining_trainer.files import read_json
from lmtraining_trainer.run.directory import RUN

HANGS = "hangs"
HANGS_MAX = 8


def keep(
    files: Mapping[str, bytes],
    run_directory: Path,
    *,
    job_uid: str,
    attempt: int,
    round_number: int,
) -> Thread:
    """Write the files, by name, beside the caller; best effort."""
    directory = run_directory / HANGS / f"{attempt}-{round_number}"

    def write() -> None:
        with suppress(OSError):
            if (read_json(run_directory / RUN) or {}).get("job_uid", job_uid) != job_uid:
                return
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (directory / name).write_bytes(content)
            _forget_older(directory.parent)

    writer = Thread(target=write, name="hangs", daemon=True)
    writer.start()
    return writer


def _forget_older(hangs: Path) -> None:
    """All but the newest, by attempt and round."""
    named = [path for path in hangs.iterdir() if path.name.replace("-", "", 1).isdigit()]
    for old in sorted(named, key=_number)[:-HANGS_MAX]:
        shutil.rmtree(old, ignore_errors=True)


def _number(directory: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in directory.name.split("-"))
