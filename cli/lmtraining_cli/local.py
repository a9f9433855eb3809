"""`run`: without a cluster, by the trainer's own program."""

import os
import shutil
import sys
from pathlib import Path

from lmtraining_cli.errors import CliError

PROGRAM = "lmtraining"


def hand_over(arguments: list[str]) -> None:
    """Become `lmtraining`. Raises CliError where it is not installed."""
    beside = Path(sys.executable).with_name(PROGRAM)
    found = shutil.which(PROGRAM) or (str(beside) if beside.exists() else None)
    if found is None:
        raise CliError(
            "the trainer is not installed on this machine: pip install "
            "'lm-training-operator[trainer]' (it brings torch), or run the job in a cluster: "
            f"kubectl apply -f {arguments[1]}"
        )
    os.execv(found, [found, *arguments])  # noqa: S606 - no shell, our own program
