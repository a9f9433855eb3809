"""Every query of the shipped boards, as Grafana would send it.

Read from the JSON that the chart ships, not from the code that makes it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "charts/lm-training-operator/files/dashboards"
FILES = sorted(FOLDER.glob("*.json"))


@dataclass(frozen=True)
class BoardQuery:
    """One query, and the panel, annotation or variable that asks it."""

    board: str
    panel: str
    expr: str

    def with_values(self, variables: Mapping[str, str]) -> str:
        """Without what Grafana fills in."""
        filled = self.expr
        for name, value in variables.items():
            filled = filled.replace(f"${name}", value)
        assert "$" not in filled.replace('"$1"', ""), f"{self}: a variable without a value"
        return filled


def load(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def panel_queries() -> list[BoardQuery]:
    return [
        BoardQuery(board["uid"], panel["title"], target["expr"])
        for board in map(load, FILES)
        for panel in panels(board)
        for target in panel["targets"]
    ]


def other_queries() -> list[BoardQuery]:
    """Annotations, and the selectors of variables."""
    found = []
    for board in map(load, FILES):
        uid = board["uid"]
        for mark in board["annotations"].get("list", []):
            found.append(BoardQuery(uid, mark["name"], mark["expr"]))
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
                assert asked, variable
                found.append(BoardQuery(uid, variable["name"], asked[1]))
    return found
