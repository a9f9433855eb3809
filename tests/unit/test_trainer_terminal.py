"""What a person sees of a local run, whatever the width of the terminal."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from lmtraining_api import RemedyReport, TrainerReport
from lmtraining_trainer.report import Snapshot, StateClock
from lmtraining_trainer.report_terminal import ProgressView, fitting, line_of

pytestmark = pytest.mark.unit


def _report(state: str, **fields: Any) -> TrainerReport:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return TrainerReport(
        job_uid="u", attempt=1, round=1, state=state, report_time=now, total_steps=1000, **fields
    )


STARTING = _report("Starting", message="importing torch")
TRAINING = _report(
    "Training",
    step=120,
    loss=2.34,
    validation_loss=2.5,
    tokens_per_second=18_500.0,
    eta_seconds=4000.0,
)
WORDS = "told to stop: saving a checkpoint; Ctrl-C again stops without it"
STOPPING = TRAINING.model_copy(update={"state": "Stopping", "message": WORDS})
FIGURES = ["120/1000", "loss 2.3400", "validation 2.5000", "18.5k tok/s", "eta 1:06:40"]


def _shown(report: TrainerReport, width: int) -> str:
    """All that the bar has printed."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with ProgressView(console, bar=True) as view:
        view.show(Snapshot(report=report, clock=StateClock(state=report.state, since=0.0)))
    return screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_figure_is_shown_whole_or_not_at_all(width: int) -> None:
    shown = _shown(TRAINING, width)
    assert "Training" in shown
    assert "120/1000" in shown
    assert "…" not in shown
    parts = fitting(TRAINING, width - 35).split("  ")
    assert set(parts) <= set(FIGURES)
    assert all(part in shown for part in parts)
    if width == 140:
        assert parts == FIGURES


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_a_message_loses_whole_words_only(width: int) -> None:
    shown = fitting(STOPPING, width - 35)
    message, more, _ = shown.partition("…")
    words = message.split("  ")[0].split()
    assert words == WORDS.split()[: len(words)]
    assert bool(more) == (width < 140)


@pytest.mark.parametrize("bar", [False, True])
def test_a_remedy_is_said_once_and_counted(bar: bool) -> None:
    """P4: also where the bar has moved on since."""
    remedy = RemedyReport(
        remedy="Rewind",
        fault="NonFinite",
        step=40,
        to_step=30,
        message="the loss is nan",
        time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    taken = {"last_remedy": remedy, "rewinds": 1, "skipped_steps": 2}
    rewound = TRAINING.model_copy(update=taken)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=bar, width=140, color_system=None)
    with ProgressView(console, bar=bar) as view:
        for report in (TRAINING, rewound, rewound):
            view.show(Snapshot(report=report, clock=StateClock(state=report.state, since=0.0)))
    assert screen.getvalue().count("Rewind at step 40 to step 30: the loss is nan") == 1
    assert "2 skipped  1 rewind  " in fitting(rewound, 140)


def test_before_the_first_step_there_are_no_steps_and_no_word_twice() -> None:
    assert fitting(STARTING, 80) == "importing torch"
    assert line_of(STARTING).split() == ["Starting", "importing", "torch"]
    assert "0/" not in _shown(STARTING, 80)
    assert "None" not in _shown(STARTING, 80)


def test_trouble_with_saving_is_told_once_and_so_is_its_end() -> None:
    full = "checkpoint of step {} could not be written (No space left on device): free space"
    errors = [full.format(125), full.format(150), ""]
    screen = io.StringIO()
    with ProgressView(Console(file=screen, width=200), bar=False) as view:
        for error in errors:
            report = TRAINING.model_copy(update={"checkpoint_error": error})
            view.show(Snapshot(report=report, clock=StateClock(state="Training", since=0.0)))
    lines = [line for line in screen.getvalue().splitlines() if "newest: none" in line]
    assert [line.partition(";")[0] for line in lines] == [errors[0], "checkpoints are saved again"]


def test_a_broken_checkpoint_that_was_passed_over_is_told_once() -> None:
    broken = "checkpoints passed over: step 10 (model.safetensors has 12 bytes, not 90)"
    screen = io.StringIO()
    with ProgressView(Console(file=screen, width=200), bar=False) as view:
        for state in ("Loading", "Training"):
            report = TRAINING.model_copy(
                update={"state": state, "passed_over": broken, "resumed_from_step": 8}
            )
            view.show(Snapshot(report=report, clock=StateClock(state=state, since=0.0)))
    assert screen.getvalue().count(f"{broken}; going on from step 8\n") == 1
