"""The kinds of text that fields hold."""

import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lmtraining_api.fields import (
    FRAME_LENGTH_MAX,
    FRAMES_MAX,
    IMAGE_PATTERN,
    MESSAGE_LENGTH_MAX,
    QUANTITY_PATTERN,
    Frames,
    Message,
    matches,
    quantity_value,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("2", 2),
        ("500m", Decimal("0.5")),
        ("1.5k", 1500),
        ("1Ki", 1024),
        ("1.1Gi", Decimal("1.1") * 2**30),
        ("3M", 3_000_000),
        ("2Mi", 2 * 2**20),
        ("1G", 10**9),
        ("1T", 10**12),
        ("1Ti", 2**40),
        ("1P", 10**15),
        ("1Pi", 2**50),
    ],
)
def test_a_quantity_amounts_to(text: str, value: int | Decimal) -> None:
    assert quantity_value(text) == value


@settings(deadline=None)  # a busy machine is no finding
@given(st.from_regex(QUANTITY_PATTERN, fullmatch=True).filter(str.isascii))
def test_every_text_that_looks_like_a_quantity_is_one(text: str) -> None:
    assert quantity_value(text) >= 0


@pytest.mark.parametrize(
    ("image", "valid"),
    [
        ("trainer", True),
        ("trainer:1.0", True),
        ("host/path/trainer:1.0", True),
        ("Host.example:5000/trainer", True),
        ("host/trainer@sha256:" + "0" * 64, True),
        ("a/b__c/d-e.f:T_1-x.y", True),
        ("host/Trainer", False),
        ("trainer:", False),
        ("trainer:a b", False),
        (" trainer", False),
        ("trainer\n", False),
        ("https://host/trainer", False),
        ("trainer@sha256:12", False),
    ],
)
def test_an_image_has_a_name(image: str, valid: bool) -> None:
    assert matches(IMAGE_PATTERN, image) is valid


class TestATextOfOurOwnNeverFailsAReport:
    @settings(deadline=None)
    @given(st.text(st.characters(), max_size=3 * MESSAGE_LENGTH_MAX))
    def test_a_message_is_one_printable_line_within_its_limit(self, text: str) -> None:
        message = TypeAdapter(Message).validate_python(text)
        assert len(message) <= MESSAGE_LENGTH_MAX
        assert not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", message)
        message.encode()

    def test_a_long_one_says_that_it_was_cut(self) -> None:
        message = TypeAdapter(Message).validate_python("a" * (MESSAGE_LENGTH_MAX + 1))
        assert message == "a" * (MESSAGE_LENGTH_MAX - 1) + "…"

    def test_a_short_one_is_left_alone(self) -> None:
        text = "rank 3: loss was not finite at step 12 – see stability"
        assert TypeAdapter(Message).validate_python(text) == text

    def test_the_innermost_frames_are_kept(self) -> None:
        frames = [f"{n}.py:1 f" for n in range(FRAMES_MAX + 2)] + ["x" * (FRAME_LENGTH_MAX + 9)]
        kept = TypeAdapter(Frames).validate_python(frames)
        assert kept[:-1] == frames[3:-1]
        assert len(kept[-1]) == FRAME_LENGTH_MAX
