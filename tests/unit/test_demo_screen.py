"""The demo's panel: what a person reads while a job runs."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from devcluster.demo.job_view import JobView
from devcluster.demo.screen import StoryLine, job_panel, one_line

pytestmark = pytest.mark.unit

LONG = "waiting until pod tiny-gpt-1-0-0 on node devcluster is gone; PodLost: it was deleted"


def view(state: str = "Pending", message: str = "", **status: Any) -> JobView:
    condition = {
        "type": "Succeeded",
        "status": "Unknown",
        "observedGeneration": 1,
        "reason": state,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    job = {"metadata": {"name": "tiny-gpt"}, "status": {"conditions": [condition], **status}}
    return JobView.of(job)


FRESH = view()
BUSY = view(
    "Recovering",
    LONG,
    progress={"step": 172, "totalSteps": 400, "tokens": 1, "percent": "43%", "eta": "1m32s"},
    metrics={"loss": "5.2223", "validationLoss": "15.2859", "tokensPerSecond": "117628"},
    restarts={"total": 12},
    checkpoint={"lastStep": 125, "lastTime": "2026-01-01T00:00:00Z", "path": "c"},
)


def drawn(job: JobView, *story: StoryLine, columns: int = 80, rows: int = 24) -> list[str]:
    console = Console(file=StringIO(), width=columns)
    console.print(job_panel(job, story, columns=columns, rows=rows))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_figures_change_in_place(columns: int) -> None:
    before, after = drawn(FRESH, columns=columns), drawn(BUSY, columns=columns)
    assert before[1] == after[1], "the titles do not move"
    assert [len(line) for line in before] == [min(columns, 100)] * len(before)
    titles, figures = after[1], after[2]
    for title in ("STEP", "ETA", "LOSS", "VAL LOSS", "TOK/S", "RESTARTS", "CHECKPOINT"):
        end = titles.index(f" {title} ") + len(title) + 1
        assert figures[end - 1] != " ", f"the figure ends where {title} does"
        assert figures[end] == " "


def test_before_the_number_of_steps_is_known_there_is_a_dash() -> None:
    assert "0/" not in "\n".join(drawn(FRESH))
    assert "step       –" in one_line(FRESH)
    assert "172/400" in drawn(BUSY)[2]


def test_no_word_is_cut() -> None:
    words = " ".join(drawn(BUSY, StoryLine(60.8, "Recovering", LONG))[6:-1]).split()
    assert words == ["60.8", "s", "Recovering", *LONG.split()]


def test_a_state_is_said_where_it_begins() -> None:
    lines = drawn(
        FRESH,
        StoryLine(1, "Starting", "a"),
        StoryLine(2, "Starting", "b"),
        StoryLine(3, "", "killed pod"),
        StoryLine(4, "Starting", "c"),
    )
    assert [line.split()[2:] for line in lines[6:-1]] == [
        ["Starting", "a"],
        ["b"],
        ["killed", "pod"],
        ["Starting", "c"],
    ]


def test_of_a_long_story_the_newest_part_is_shown_and_fits() -> None:
    story = [StoryLine(number, "Recovering", f"{number} {LONG}") for number in range(50)]
    lines = drawn(BUSY, *story, rows=24)
    assert len(lines) <= 23, "one row is left for the cursor"
    assert any(" 49 waiting" in line for line in lines)


@pytest.mark.parametrize(
    ("state", "message", "said"),
    [
        ("Starting", "Starting: importing torch", "importing torch"),
        ("Pending", "attempt 1: the pods are being made", "attempt 1: the pods are being made"),
        (
            "Recovering",
            "attempt 2 after PodLost: attempt 2: 0 of 2 pods have started",
            "attempt 2 after PodLost: 0 of 2 pods have started",
        ),
        ("Training", "Training", ""),
    ],
)
def test_nothing_is_said_twice(state: str, message: str, said: str) -> None:
    assert view(state, message).said == said
