"""`python -m lmtraining_monitoring` writes alerts, boards and their pages; `--check` only compares.

Promise: the committed files are those that the code gives; `--check` exits 1 where one is not,
names it and says what to run. Trap avoided: an alert mended in the chart and lost at the next
`make monitoring`.
"""

import argparse
import sys
from pathlib import Path

from lmtraining_monitoring import rules, state
from lmtraining_monitoring.boards import BOARDS

ROOT = Path(__file__).resolve().parents[2]
FILES = "charts/lm-training-operator/files"


def outputs() -> dict[str, str]:
    """Each generated file, relative to the repository, and what it should hold."""
    return {
        f"{FILES}/alerts.yaml": rules.rendered(),
        "docs/alerts.md": rules.page(),
        f"{FILES}/kube-state-metrics.yaml": state.rendered(),
        "docs/state-metrics.md": state.page(),
        **{f"{FILES}/dashboards/{board.file}": board.rendered() for board in BOARDS},
    }


def drifted(root: Path) -> list[str]:
    """The files below `root` that are missing or differ."""
    return [path for path, text in outputs().items() if _content(root / path) != text]


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="lmtraining_monitoring", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on drift")
    if not parser.parse_args(arguments).check:
        for path, text in outputs().items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return 0
    paths = drifted(root)
    for path in paths:
        print(f"{path} differs from the code: run `make monitoring`", file=sys.stderr)  # noqa: T201
    return 1 if paths else 0


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
