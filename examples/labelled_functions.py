"""Writes the data of examples/sequence-classification.yaml: functions of the standard library, each
labelled with the package it is from, as JSON lines.

    python3 examples/labelled_functions.py > /tmp/labelled-functions.jsonl
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("asyncio", "email", "tkinter", "unittest")
CHARACTERS_MIN = 120


def functions(file: Path) -> Iterator[str]:
    """The source of each function of a file, its indentation removed."""
    text = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            source = ast.get_source_segment(text, node) or ""
            if len(source) >= CHARACTERS_MIN:
                yield source


def main() -> None:
    """Write the records to the standard output."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for file in sorted((library / package).rglob("*.py")):
            for source in functions(file):
                sys.stdout.write(json.dumps({"text": source, "label": package}) + "\n")


if __name__ == "__main__":
    main()
