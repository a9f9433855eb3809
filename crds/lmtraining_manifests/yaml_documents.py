"""YAML as kubectl reads it.

Promise: a plain word becomes here what it becomes on its way to an API server: `6e-4` is a number,
`010` is 8, `y` is true, `2026-01-01` is text and so is every key. Tried word by word against
kubectl in tests/api/test_manifests.py. A key that is written twice, of which kubectl keeps the last
without a word, is told with its lines.
Trap avoided: PyYAML takes `6e-4` for text, `1:30` for 90 and a date for a date; with models that
take no text for a number a good job would be refused.
"""

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError

_TAG: Final = "tag:yaml.org,2002:"
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), "null"),
    **dict.fromkeys(("<<",), "merge"),
    **dict.fromkeys(
        (word for low in ("y", "yes", "on", "true", "n", "no", "off", "false")
         for word in (low, low.capitalize(), low.upper())),
        "bool",
    ),
}  # fmt: skip
_TRUE: Final = frozenset({"y", "yes", "on", "true"})
_INTEGER: Final = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A key that its block has already."""

    key: str
    first_line: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a text."""

    content: object
    repeated: tuple[Repeated, ...]
    """Keys that are written more than once, of which the last holds."""


def documents(text: bytes) -> Iterator[Document]:
    """Those that are not empty, up to the first that is not YAML. Raises yaml.YAMLError and
    UnicodeDecodeError."""
    loader = _Loader(text)
    try:
        while loader.check_data():  # type: ignore[no-untyped-call]
            loader.repeated.clear()
            content = loader.get_data()
            if content is not None:
                yield Document(content=content, repeated=tuple(loader.repeated))
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Resolves plain words as kubectl does."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.repeated: list[Repeated] = []

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node; of a plain word by our own rules."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _kind_of(str(value))
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Here, since a merge (`<<`) later makes one list of the keys of both blocks."""
        node = super().compose_mapping_node(anchor)
        self.repeated += _repeated(node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """With texts for keys, and not by way of the base class: True and 1 are one key there."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # which says what is wrong
        self.flatten_mapping(node)
        return {self._key(key): self.construct_object(value, deep) for key, value in node.value}

    def _key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        if isinstance(key, bool):
            return str(key).lower()
        if isinstance(key, int | float):
            return f"{key:g}" if isinstance(key, float) else str(key)
        raise ConstructorError(None, None, "a key is neither a word nor a number", node.start_mark)

    def construct_number(self, node: Any) -> int | float:
        """A whole number or another."""
        text = str(node.value)
        plain = text.replace("_", "")
        if _INTEGER.fullmatch(plain):
            is_octal = re.fullmatch(r"[-+]?0[0-7]+", plain)
            whole = int(plain, 8 if is_octal else 0)
            return whole if -(2**63) <= whole < 2**64 else float(whole)
        if _FLOAT.fullmatch(plain):
            number = float(plain)  # 400.0 is written as 400 in the JSON that kubectl makes of it
            return int(number) if number.is_integer() and abs(number) < 2**63 else number
        if _NOT_FINITE.fullmatch(text):
            return float(text.replace(".", ""))
        raise ConstructorError(None, None, f"{text!r} is no number", node.start_mark)

    def construct_truth(self, node: Any) -> bool:
        """true or false."""
        return str(node.value).lower() in _TRUE


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_number)
_Loader.add_constructor(f"{_TAG}bool", _Loader.construct_truth)


def _kind_of(text: str) -> str:
    """What a plain word is."""
    if text in _WORDS:
        return _WORDS[text]
    plain = "" if text.startswith("_") else text.replace("_", "")
    if _INTEGER.fullmatch(plain):
        return "int"
    return "float" if _FLOAT.fullmatch(plain) or _NOT_FINITE.fullmatch(text) else "str"


def _repeated(block: yaml.MappingNode) -> Iterator[Repeated]:
    lines: dict[str, int] = {}
    for key, _ in block.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
            continue
        line = key.start_mark.line + 1
        if key.value in lines:
            yield Repeated(key=key.value, first_line=lines[key.value], line=line)
        lines.setdefault(key.value, line)
