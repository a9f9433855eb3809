"""`python -m lmtraining_crdgen` writes what is made from the contract; `--check` only compares.

Promise: the committed files are those that the models give; `--check` exits 1 where one is not,
names it and says what to run. Trap avoided: a field added to a model and not to the CRD, which the
API server would drop without a word.
"""

import argparse
import sys
from pathlib import Path

from lmtraining_crdgen import manifest, metrics_page, reference

ROOT = Path(__file__).resolve().parents[2]


def outputs() -> dict[str, str]:
    """Each generated file, relative to the repository, and what it should hold."""
    crd = manifest.rendered()
    name = f"{manifest.manifest()['metadata']['name']}.yaml"
    return {
        f"crds/{name}": crd,
        f"charts/lm-training-operator/files/crds/{name}": crd,
        "docs/reference/lmtrainingjob.md": reference.rendered(),
        "docs/conditions.md": reference.conditions_page(),
        "docs/metrics.md": metrics_page.rendered(),
    }


def drifted(root: Path) -> list[str]:
    """The files below `root` that are missing or differ."""
    return [path for path, text in outputs().items() if _content(root / path) != text]


def write(root: Path) -> None:
    """Write all files below `root`."""
    for path, text in outputs().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="lmtraining_crdgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on drift")
    if not parser.parse_args(arguments).check:
        write(root)
        return 0
    paths = drifted(root)
    for path in paths:
        print(f"{path} differs from the models: run `make crds`", file=sys.stderr)  # noqa: T201
    return 1 if paths else 0


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
