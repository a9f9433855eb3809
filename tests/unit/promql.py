"""Which metrics, and which of their labels, a query names.

Not a parser of PromQL: it knows enough of its words to tell a metric from a function and a label
from a metric. What it does not know it takes for a metric, and so for an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]|\boffset\s+\S+")
_SELECTOR = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)?\s*\{([^}]*)\}")
_WORD = re.compile(r"(?<![A-Za-z0-9_:.$])[A-Za-z_:][A-Za-z0-9_:]*(?!\s*\()(?![A-Za-z0-9_:])")
_OPERATORS = frozenset({"and", "or", "unless", "bool", "inf", "nan", "group_left", "group_right"})


@dataclass
class Named:
    """What a query names."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    """The labels that a selector of each asks for."""
    grouping: set[str] = field(default_factory=set)
    """Labels by which it sums or joins."""


def names_in(query: str) -> Named:
    found = Named()
    bare = _RANGE.sub(" ", _TEXT.sub('""', query))
    for group in _GROUPING.finditer(bare):
        found.grouping |= {label.strip() for label in group[1].split(",") if label.strip()}
    bare = _GROUPING.sub(" ", bare)
    for name, labels in _selectors(bare):
        found.metrics.setdefault(name, set()).update(labels)
    for word in _WORD.findall(_SELECTOR.sub(" ", bare)):
        if word.lower() not in _OPERATORS:
            found.metrics.setdefault(word, set())
    return found


def _selectors(bare: str) -> Iterator[tuple[str, set[str]]]:
    for selector in _SELECTOR.finditer(bare):
        asked = re.findall(r"([A-Za-z_][A-Za-z0-9_]*)\s*(?:=~|!~|!=|=)", selector[2])
        yield selector[1] or "", set(asked)
