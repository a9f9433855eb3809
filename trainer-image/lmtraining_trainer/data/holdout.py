"""Which text is held out for validation where no source of its own is given.

Promise: whether a piece of text is held out depends on its content and the fraction, not on the
file it lies in, its place there or the text around it: equal pieces are on the same side, and text
that is added moves none. One long document serves as well as many short ones. (One exception: where
the fraction would hold out nothing, the piece with the least draw is, so that a small text can be
trained with the defaults; once more text gives the fraction its due, that piece may change sides.)
Trap avoided: holding out whole documents. With one there is no validation text or no training text,
and among a few the draw is a lottery. A document is whole only up to the length of a piece, and the
cuts are counted from the document's start, so that appending to it moves no cut but the last.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: Characters of one piece; a cut needs a line end, and is made anyway at twice as many.
PIECE_CHARACTERS = 8 * 1024

_STEPS = 2**48


def pieces_of(text: str) -> Iterator[str]:
    """`text` in pieces, whole up to twice PIECE_CHARACTERS. Joined, they are `text`."""
    start = 0
    while len(text) - start > 2 * PIECE_CHARACTERS:
        line_end = text.find("\n", start + PIECE_CHARACTERS, start + 2 * PIECE_CHARACTERS)
        end = line_end + 1 if line_end >= 0 else start + 2 * PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a document, and where it goes."""

    text: str
    draw: float
    """In [0, 1), by the content alone."""
    held_out: bool
    ends_run: bool
    """The document ends here, or goes on on the other side: what follows in the tokens is not what
    followed in the text."""


def draw_of(piece: str) -> float:
    """A number in [0, 1) that depends on the content alone."""
    digest = hashlib.sha256(piece.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:6]) / _STEPS


def held_out_below(draws: Iterable[float], fraction: float) -> float:
    """Pieces that draw less than this are held out: `fraction`, or just enough for the least of
    `draws`; 0.0 where all text is alike, so that nothing would be left to train on.

    Reads no further than the first draw below `fraction`.
    """
    least, greatest = 1.0, 0.0
    for draw in draws:
        if draw < fraction:
            return fraction
        least, greatest = min(least, draw), max(greatest, draw)
    return least + 1 / _STEPS if least < greatest else 0.0


def parts_of(document: str, held_below: float) -> Iterator[Part]:
    """`document` in parts. Joined, their texts are `document`."""
    pending: tuple[str, float] | None = None
    for piece in pieces_of(document):
        following = piece, draw_of(piece)
        if pending is not None:
            ends_run = (pending[1] < held_below) != (following[1] < held_below)
            yield _part(pending, held_below, ends_run=ends_run)
        pending = following
    if pending is not None:
        yield _part(pending, held_below, ends_run=True)


def _part(piece: tuple[str, float], held_below: float, *, ends_run: bool) -> Part:
    text, draw = piece
    return Part(text=text, draw=draw, held_out=draw < held_below, ends_run=ends_run)
