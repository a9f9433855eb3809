"""What is wrong with a document, said to the person who wrote it.

Promise: one plain sentence per problem, with the path as the user wrote it, the value and the fix;
the nearest field for a misspelt one. No pydantic vocabulary, no URL.
Trap avoided: the value of an unknown field, of a whole block, of a uri and of anything below
credentials is never repeated, since these sentences reach status and logs and it may be a secret
that was put in the wrong place (P11).
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from lmtraining_api.base import BROKEN_RULES, SpecModel, StatusModel
from lmtraining_api.fields import MESSAGE_LENGTH_MAX, PATTERN_HINTS, one_line
from lmtraining_api.paths import aliases, field_paths, joined, model_at
from lmtraining_api.synonyms import path_meant

PROBLEMS_MAX = 20
VALUE_LENGTH_MAX = 60
#: A text where a block should be was perhaps meant for a field of that block.
_WANT_BLOCK = frozenset({"model_type", "model_attributes_type", "dict_type", "list_type"})
_JSON_TYPES: dict[type, str] = {
    type(None): "empty",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    dict: "a block of fields",
    list: "a list",
    str: "text",
}
#: A number or a truth that quotes have made a text.
_QUOTED = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|true|false", re.IGNORECASE)
#: pydantic's own mark at the end of a place: it is the key before it that is wrong.
_OF_A_KEY = "[key]"
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text (put it in quotes)",
    "list": "a list",
    "dict": "a block of fields",
    "model": "a block of fields",
    "timezone": "a time with its zone, such as 2026-01-31T12:00:00Z",
    "datetime": "a time such as 2026-01-31T12:00:00Z",
    "finite": "a finite number",
}


def explain_validation_error(error: ValidationError, further: Iterable[str] = ()) -> list[str]:
    """One sentence for each thing that is wrong; never empty, never more than PROBLEMS_MAX + 1.

    `further` are sentences that are known already; each is said once.
    """
    model = _model_named(error.title)
    problems = error.errors(include_url=False)
    misspelt = {
        (*problem["loc"][:-1], _meant_here(problem["loc"], model))
        for problem in problems
        if problem["type"] == "extra_forbidden"
    }
    found = [
        sentence
        for problem in problems
        if problem["type"] != "missing" or problem["loc"] not in misspelt  # it is there, misspelt
        for sentence in _sentences(problem, model)
    ]
    sentences = list(dict.fromkeys(map(_one_line, [*found, *further])))
    more = len(sentences) - PROBLEMS_MAX
    return sentences[:PROBLEMS_MAX] + ([f"and {more} more problems"] if more > 0 else [])


def _one_line(sentence: str) -> str:
    """Without the line breaks and control characters of a value that is repeated."""
    return str(one_line(MESSAGE_LENGTH_MAX)(sentence))


def rule_sentence(path: str, text: str) -> str:
    """What a broken rule says, with the field that it points at."""
    return f"{path}: {text}".lstrip(": ")


def _sentences(problem: ErrorDetails, model: type[BaseModel] | None) -> list[str]:
    path = _path(problem["loc"])
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == BROKEN_RULES:
        return [rule_sentence(joined(path, at), text) for at, text in context["broken"]]
    if problem["loc"][-1:] == (_OF_A_KEY,):
        return [rule_sentence(_path(problem["loc"][:-2]), problem["msg"])]
    if kind == "extra_forbidden":
        return [f"{path} {_unknown_field(problem['loc'], model)}"]
    if kind == "missing":
        return [f"{path} is missing: {_meaning(problem['loc'], model)}"]
    return [f"{path or 'the document'} {_wrong_value(problem)}"]


def _wrong_value(problem: ErrorDetails) -> str:
    """What the value is and what it should be."""
    kind, context = problem["type"], problem.get("ctx", {})
    is_secret = kind in _WANT_BLOCK or "credentials" in problem["loc"]
    given = f"is {_type_of(problem['input']) if is_secret else _shown(problem['input'])}"
    if kind in _FIXES:
        return _FIXES[kind](given, context)
    expected = _EXPECTED.get(kind.split("_")[0])
    if expected and isinstance(problem["input"], str) and _QUOTED.fullmatch(problem["input"]):
        expected += ", without quotes"
    return f"{given}: write {expected}" if expected else f"{given}: {problem['msg']}"


_FIXES: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "greater_than_equal": lambda given, c: f"{given}: choose {c['ge']} or more",
    "less_than_equal": lambda given, c: f"{given}: choose {c['le']} or less",
    "greater_than": lambda given, c: f"{given}: choose more than {c['gt']}",
    "less_than": lambda given, c: f"{given}: choose less than {c['lt']}",
    "literal_error": lambda given, c: f"{given}: choose {c['expected']}",
    "enum": lambda given, c: f"{given}: choose {c['expected']}",
    "quantity_fraction": lambda given, c: f'{given}: write it as text, "{c["value"]}"',
    "string_pattern_mismatch": lambda given, c: (
        f"{given}: write {PATTERN_HINTS.get(c['pattern'], 'a match of ' + c['pattern'])}"
    ),
    "string_too_short": lambda given, c: (
        f"is too short: write {c['min_length']} or more characters"
    ),
    "string_too_long": lambda given, c: f"is too long: write {c['max_length']} characters or fewer",
    "too_short": lambda given, c: (
        f"has {c['actual_length']} entries: give {c['min_length']} or more"
    ),
    "too_long": lambda given, c: f"has too many entries: give {c['max_length']} or fewer",
}


def _unknown_field(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """Which field was probably meant: a near one here, or the same name elsewhere."""
    *parent, name = location
    here = _path(tuple(parent)) or "this document"
    owner = model_at(model, tuple(parent)) if model else None
    if model is None or owner is None:
        return f"is not a field of {here}: remove it"
    names, written = aliases(owner), str(name)
    known = _known_elsewhere(written, model)
    if known and to_camel(written) not in names:
        parent_path, _, field = known.rpartition(".")
        path = field if parent_path == here else known
        return f"is not a field of {here}: did you mean {path} ({_meaning_of(known, model)})?"
    near = _meant_here(location, model)
    if near:
        return f"is not a field of {here}: did you mean {near}?"
    elsewhere = [path for path in field_paths(model) if path.split(".")[-1] == to_camel(written)]
    if elsewhere:
        return f"is not a field of {here}: did you mean {' or '.join(elsewhere[:3])}?"
    return f"is not a field of {here}: remove it, or use one of {', '.join(names)}"


def _meant_here(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str | None:
    """The field of the same block that an unknown one was probably meant to be."""
    owner = model_at(model, location[:-1]) if model else None
    if owner is None:
        return None
    names, written = list(aliases(owner)), str(location[-1])
    if to_camel(written) in names:
        return to_camel(written)
    parent_path, _, field = (_known_elsewhere(written, model) or "").rpartition(".")
    return field if parent_path == _path(location[:-1]) and field else _nearest(written, names)


def _known_elsewhere(name: str, model: type[BaseModel] | None) -> str | None:
    """The path of the field that other trainers call so, where the document has such a field."""
    path = path_meant(name)
    return path if model and path and path in field_paths(model) else None


def _nearest(name: str, candidates: list[str]) -> str | None:
    lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.7)
    return lower[found[0]] if found else None


def _meaning(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """What a missing field is for."""
    described = _description(location, model)
    return f"set it ({described})" if described else "set it"


def _meaning_of(path: str, model: type[BaseModel]) -> str:
    return _description(tuple(path.split(".")), model)


def _description(location: tuple[int | str, ...], model: type[BaseModel] | None) -> str:
    """The first sentence about a field; empty where there is none."""
    owner = model_at(model, location[:-1]) if model else None
    name = aliases(owner).get(str(location[-1])) if owner and location else None
    return _first_sentence((owner.model_fields[name].description if owner and name else None) or "")


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def _shown(value: object) -> str:
    """A value as the user wrote it, or its type where it may be large or secret."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str) and "://" not in value:
        return json.dumps(value[:VALUE_LENGTH_MAX], ensure_ascii=False)
    return _type_of(value)


def _type_of(value: object) -> str:
    return _JSON_TYPES.get(type(value), "of another type")


def _path(location: tuple[int | str, ...]) -> str:
    """('spec', 'train', 0, 'uri') as spec.train[0].uri."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).lstrip(".")


def _model_named(title: str) -> type[BaseModel] | None:
    """The model of the contract that raised an error: pydantic gives its name alone."""
    return next(
        (model for model in _subclasses(SpecModel, StatusModel) if model.__name__ == title), None
    )


def _subclasses(*models: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in models:
        yield model
        yield from _subclasses(*model.__subclasses__())
