"""A real run's report in a real browser: it renders, says nothing in the console, and shows the
values of the run."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmtraining_api.history import Point
from lmtraining_cli.report import Content, page
from tests.browser import Page, browser
from tests.trainer.supervisor_pods import corpus, spec
from tests.trainer.terminal import Terminal

pytestmark = pytest.mark.trainer

#: Steps and values of a curve, read back from where the browser drew it.
READ_BACK = """(identity => {
  const svg = document.getElementById(identity), scale = svg.dataset;
  const view = svg.viewBox.baseVal;
  const left = 80, right = 12, top = 12, bottom = 28;
  const number = name => parseFloat(scale[name]);
  return Array.from(svg.querySelector('polyline').points).map(point => [
    number('xMin') + (point.x - left) / (view.width - left - right)
      * (number('xMax') - number('xMin')),
    number('yMin') + (view.height - bottom - point.y) / (view.height - top - bottom)
      * (number('yMax') - number('yMin')),
  ]);
})"""
CURVES = {"loss": "loss", "norm": "gradientNorm", "rate": "learningRate"}
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
DRAWN = (
    "Array.from(document.querySelectorAll('svg.curve')).map(s => s.getBoundingClientRect().height)"
)
#: Numbers of a scale that the edge of their drawing cuts.
CUT_OFF = """Array.from(document.querySelectorAll('svg.curve .tick')).filter(text =>
  text.getBoundingClientRect().left < text.closest('svg').getBoundingClientRect().left
).map(text => text.textContent)"""


def report_of(terminal: Terminal) -> Path:
    """As a user makes it."""
    target = terminal.directory / "tiny.html"
    command = [
        sys.executable, "-m", "lmtraining_cli", "report", "--directory", str(terminal.run),
        "--output", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return target


def test_the_page_shows_the_values_of_the_run(terminal: Terminal) -> None:
    code, output = terminal.type("run", str(terminal.job(spec(corpus(terminal.directory / "c")))))
    assert code == 0, output
    history = json.loads((terminal.run / "history.json").read_text())["points"]
    record = json.loads((terminal.run / "exit.json").read_text())
    assert [point["step"] for point in history] == list(range(1, 21))
    assert history[-1]["loss"] == record["loss"]
    assert history[-1]["validationLoss"] == record["validationLoss"]
    with browser() as tab:
        tab.open(report_of(terminal))
        assert tab.said == []
        assert tab.value("document.querySelector('.state').textContent") == "Completed"
        for identity, field in (
            ("loss", "loss"),
            ("norm", "gradientNorm"),
            ("rate", "learningRate"),
        ):
            _check_curve(tab.value(f"{READ_BACK}('{identity}')"), history, field)
        digests = tab.value("document.body.textContent")
        newest = record["checkpoint"]["sha256"]
        assert newest in digests
        _check_forms(tab)


def _check_curve(drawn: list[list[float]], history: list[dict[str, Any]], field: str) -> None:
    values = [point[field] for point in history]
    width = max(values) - min(values) or 1.0
    assert len(drawn) == len(values)
    for (step, value), point in zip(drawn, history, strict=True):
        assert step == pytest.approx(point["step"], abs=0.01)
        assert value == pytest.approx(point[field], abs=width / 1000)


def _check_forms(tab: Page) -> None:
    """Dark, light, and on a phone."""
    tab.prefer("light")
    light = tab.value(BACKGROUND)
    tab.prefer("dark")
    assert tab.value(BACKGROUND) != light
    tab.narrow(390, 800)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    heights = tab.value(DRAWN)
    assert len(heights) == 4
    assert min(heights) > 50
    assert tab.value(CUT_OFF) == []


def test_a_page_that_asks_for_something_is_heard(tmp_path: Path) -> None:
    """Else no silence above would prove anything."""
    made = datetime(2026, 11, 27, tzinfo=UTC)
    points = [
        Point(step=step, time=made + timedelta(seconds=step), loss=5.0 + step % 3)
        for step in range(1, 100_001)
    ]
    path = tmp_path / "page.html"
    path.write_text(page(Content(name="long", state="Completed", made=made, points=points)))
    with browser() as tab:
        tab.open(path)
        assert tab.said == []
        assert tab.value("document.querySelectorAll('polyline').length") == 1
        text = path.read_text().replace("<main>", '<main><img src="https://127.0.0.1:1/x.png">')
        path.write_text(text)
        tab.open(path)
        assert tab.said, "the page's own policy forbids it"
