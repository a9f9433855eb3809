"""What is held out is chosen by content, and stays so when text is added."""

from itertools import pairwise

import pytest

from lmtraining_trainer.data.holdout import (
    PIECE_CHARACTERS,
    draw_of,
    held_out_below,
    parts_of,
    pieces_of,
)

pytestmark = pytest.mark.trainer

FRACTION = 0.1


def book(lines: int) -> str:
    return "".join(f"sentence {number} tells of {number * 7919}\n" for number in range(lines))


def held(text: str, fraction: float = FRACTION) -> list[str]:
    return [part.text for part in parts_of(text, fraction) if part.held_out]


@pytest.mark.parametrize("text", ["", "a", "line\n" * 50_000, "no line end " * 20_000])
def test_pieces_join_to_the_text(text: str) -> None:
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text
    assert max(len(piece) for piece in pieces) <= 2 * PIECE_CHARACTERS


def test_text_that_is_added_moves_none() -> None:
    """But for the last piece, whose end moves."""
    before = list(parts_of(book(40_000), FRACTION))
    after = list(parts_of(book(60_000), FRACTION))
    assert len(before) > 100
    assert [(part.text, part.held_out) for part in before[:-1]] == [
        (part.text, part.held_out) for part in after[: len(before) - 1]
    ]


def test_the_share_is_the_fraction_whatever_the_documents_length() -> None:
    long = book(200_000)
    short = [line for line in long.splitlines() if draw_of(line) < FRACTION]
    assert sum(map(len, held(long))) / len(long) == pytest.approx(FRACTION, rel=0.3)
    assert len(short) / 200_000 == pytest.approx(FRACTION, rel=0.05)


def test_a_run_ends_where_the_text_changes_sides_and_with_the_document() -> None:
    """Else the tokens would claim a continuation that the text has not."""
    parts = list(parts_of(book(40_000), FRACTION))
    sides = [part.held_out for part in parts]
    assert {True, False} == set(sides)
    changes = [now != after for now, after in pairwise(sides)]
    assert [part.ends_run for part in parts] == [*changes, True]


@pytest.mark.parametrize(
    ("draws", "below"),
    [
        ([], 0.0),
        ([0.5], 0.0),
        ([0.5, 0.5], 0.0),
        ([0.5, 0.05, 0.01], FRACTION),
        ([0.5, 0.25, 0.75], 0.25 + 2**-48),
    ],
)
def test_the_fraction_decides_or_else_the_least_draw(draws: list[float], below: float) -> None:
    assert held_out_below(iter(draws), FRACTION) == below


def test_the_search_ends_at_the_first_held_out_piece() -> None:
    rest = iter([0.05, 0.5])
    held_out_below(rest, FRACTION)
    assert list(rest) == [0.5]
