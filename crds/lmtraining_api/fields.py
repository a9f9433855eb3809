"""The kinds of text that fields hold, each with its bounds.

Promise: whatever passes here is accepted where it is used later: a name as a Kubernetes name, a
quantity as a resource, an image by the kubelet. A report about a failure never fails itself, so its
own texts are cleaned and cut instead of refused.
Trap avoided: a pattern alone tells a person nothing, so each has a hint for `explain`.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

Member = TypeVar("Member", bound=Enum)

QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
PATH_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
#: An image as the kubelet reads it: host:port/path:tag@sha256:digest.
IMAGE_PATTERN: Final = (
    r"^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[a-f0-9]{64})?$"
)
NODE_CONDITION_PATTERN: Final = r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"
#: In a uri: a path that climbs, and a password.
UPWARDS_PATTERN: Final = r"(^|/)\.\.(/|$)"
USERINFO_PATTERN: Final = r"://[^/@]*:[^/@]*@"
REASON_PATTERN: Final = r"^[A-Z][A-Za-z0-9]*$"
LABEL_KEY_PATTERN: Final = (
    r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
)
LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
WORDS_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9._ -]*$"

#: What to write where a pattern does not match.
PATTERN_HINTS: Final = {
    NAME_PATTERN: "lower-case letters, digits, dashes and dots, with a letter or digit at each end",
    PATH_PATTERN: "a relative path such as team/run-1 of letters, digits and . _ -",
    REASON_PATTERN: "one CamelCase word",
    LABEL_KEY_PATTERN: "at most 63 letters, digits and . _ - with a letter or digit at each end, "
    "after an optional domain and a slash",
    LABEL_VALUE_PATTERN: "letters, digits and . _ - with a letter or digit at each end, or nothing",
    VARIABLE_PATTERN: "letters, digits and _, and no digit at the start",
    WORDS_PATTERN: "letters, digits, spaces and . _ - with a letter, digit or _ at the start",
}

MESSAGE_LENGTH_MAX: Final = 1024
NOTICE_LENGTH_MAX: Final = 512
FRAME_LENGTH_MAX: Final = 256
SHORT_FRAME_LENGTH_MAX: Final = 128
FRAMES_MAX: Final = 20

_MULTIPLIER: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTP", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTP", start=1)},
}
_NOT_ASCII = re.compile(r"[^ -~]")


def matches(pattern: str, text: str | None) -> bool:
    """What CEL's `matches` says, with an absent text passing; `$` is the very end there."""
    return text is None or re.search(pattern.replace("$", r"\Z"), text) is not None


def quantity_value(text: str) -> Decimal:
    """What a Kubernetes quantity amounts to, in cores or bytes."""
    number = text.rstrip("mkKMGTPi")
    return Decimal(number) * _MULTIPLIER[text[len(number) :]]


def _quantity_text(value: object) -> object:
    """Whole numbers as text; fractions refused, as the API server refuses them."""
    if isinstance(value, float):
        raise PydanticCustomError(
            "quantity_fraction", 'write it as text: "{value}"', {"value": value}
        )
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def one_line(length_max: int) -> Callable[[object], object]:
    """Cleans a text of our own making: one line, printable, cut to `length_max` characters."""

    def clean(value: object) -> object:
        if not isinstance(value, str):
            return value
        line = " ".join(_printable(value).split())
        return line if len(line) <= length_max else line[: length_max - 1] + "…"

    return clean


def _printable(text: str) -> str:
    """Also without what is not seen and turns a line around, so that it reads otherwise."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " for one in text)


def ascii_end(length_max: int) -> Callable[[object], object]:
    """The last characters of a text, what is not printable ASCII replaced."""
    return lambda value: (
        _NOT_ASCII.sub("?", value)[-length_max:] if isinstance(value, str) else value
    )


def ascii_start(length_max: int) -> Callable[[object], object]:
    """The first characters of a word, what is not printable ASCII replaced."""
    return lambda value: (
        _NOT_ASCII.sub("?", value)[:length_max] if isinstance(value, str) else value
    )


def first(length_max: int) -> Callable[[object], object]:
    """Keeps the first `length_max` entries of a list."""
    return lambda value: value[:length_max] if isinstance(value, list) else value


def newest(length_max: int) -> Callable[[object], object]:
    """Keeps the last `length_max` entries of a list."""
    return lambda value: value[-length_max:] if isinstance(value, list) else value


def known_or(kind: type[Member], fallback: Member) -> Callable[[Any], Any]:
    """Reads a word that only a newer half knows as `fallback`."""
    known = {member.value for member in kind}
    return lambda value: value if value is None or value in known else fallback


#: A Kubernetes quantity: 2, 500m, 10Gi. Each field has a rule for its form and its bounds, since an
#: API server would answer a pattern with the pattern alone.
Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(max_length=32),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 32}),
]
ObjectName = Annotated[str, Field(pattern=NAME_PATTERN, min_length=1, max_length=253)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
RelativePath = Annotated[str, Field(pattern=PATH_PATTERN, max_length=200)]

#: One sentence of ours for a person.
Message = Annotated[
    str, BeforeValidator(one_line(MESSAGE_LENGTH_MAX)), Field(max_length=MESSAGE_LENGTH_MAX)
]
#: The same where the record has little room.
Notice = Annotated[
    str, BeforeValidator(one_line(NOTICE_LENGTH_MAX)), Field(max_length=NOTICE_LENGTH_MAX)
]
#: One place in the code, where there are many of them in a record.
ShortFrame = Annotated[
    str,
    BeforeValidator(ascii_end(SHORT_FRAME_LENGTH_MAX)),
    Field(max_length=SHORT_FRAME_LENGTH_MAX),
]
#: Where in the code: file:line function, innermost last; the outermost are dropped first.
Frames = Annotated[
    list[
        Annotated[
            str, BeforeValidator(one_line(FRAME_LENGTH_MAX)), Field(max_length=FRAME_LENGTH_MAX)
        ]
    ],
    BeforeValidator(newest(FRAMES_MAX)),
    Field(max_length=FRAMES_MAX),
]
