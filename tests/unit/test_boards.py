"""The shipped boards: what they name exists, and every panel says what it shows."""

import re
from pathlib import Path

import pytest

from lmtraining_monitoring import foreign
from lmtraining_monitoring.boards import BOARDS
from tests.board_queries import FILES, BoardQuery, load, other_queries, panel_queries, panels
from tests.unit.promql import names_in
from tests.unit.registry import KNOWN, OURS

pytestmark = pytest.mark.unit

QUERIES = [*panel_queries(), *other_queries()]
CONFIG_MAP_BYTES_MAX = 256 * 1024


def test_there_is_a_file_for_each_board() -> None:
    assert [file.name for file in FILES] == sorted(board.file for board in BOARDS)
    assert len(BOARDS) >= 5


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: f"{q.board}-{q.panel}")
def test_a_query_names_what_is_exported_and_nothing_else(query: BoardQuery) -> None:
    named = names_in(query.expr)
    assert named.metrics
    for metric, labels in named.metrics.items():
        assert labels <= KNOWN[metric] | foreign.TARGET_LABELS, metric
    known = frozenset[str]().union(*(KNOWN[metric] for metric in named.metrics))
    assert named.grouping <= known | foreign.TARGET_LABELS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_panel_has_a_unit_and_says_what_it_shows_and_what_is_missing(file: Path) -> None:
    board = load(file)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        named = {name for target in panel["targets"] for name in names_in(target["expr"]).metrics}
        if named - set(OURS) - {"ALERTS"}:
            assert defaults["noValue"].startswith("no data: "), "which exporter is missing?"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_board_fits_its_width_and_a_config_map(file: Path) -> None:
    assert len(file.read_bytes()) < CONFIG_MAP_BYTES_MAX
    lines: dict[int, int] = {}
    for panel in load(file)["panels"]:
        place = panel["gridPos"]
        lines[place["y"]] = lines.get(place["y"], 0) + place["w"]
    assert set(lines.values()) == {24}


def test_every_metric_of_ours_that_says_how_it_goes_is_on_a_board() -> None:
    shown = {name for query in QUERIES for name in names_in(query.expr).metrics}
    left_out = {
        "lmtraining_parameters",  # of interest once
        "lmtraining_cut_examples",
        "lmtraining_validation_step",
        "lmtraining_zero_weight_share",
    }
    suffix = re.compile(r"_(bucket|sum|count|created)$")
    families = {suffix.sub("", name) for name in OURS}
    assert families - {suffix.sub("", name) for name in shown} == left_out


def test_links_lead_to_boards_that_exist() -> None:
    text = "".join(file.read_text() for file in FILES)
    linked = set(re.findall(r"/d/([a-z-]+)", text))
    assert linked
    assert linked <= {board.uid for board in BOARDS}
