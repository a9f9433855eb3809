"""Jobs drawn from the CRD's own schema: good ones, and good ones with something put wrong.

Promise: a seed and a number make the same job on any machine, and each field of the schema has its
turn, so that a new one cannot be forgotten. A good job grows field by field from one that is known
to be good; a field stays where the models keep it. Trap avoided: values drawn at random all over
break so many rules that hardly a job gets as far as the operator.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lmtraining_api import LMTrainingJob
from lmtraining_api.fields import NAME_PATTERN, PATH_PATTERN, REASON_PATTERN, WORDS_PATTERN
from lmtraining_crdgen.manifest import root_schema
from tests.contract_bounds import values_outside
from tests.contract_cases import PAIRS, Document, merged
from tests.fuzz.words import KEYS, NAMES, NUMBERS, STRANGE, TEXTS, TIMES, URIS

ITEM = "[]"
FIELDS_GROWN_MAX = 12
WRONGS_MAX = 3
OPTIONAL_SHARE = 0.3
GOOD_SHARE = 0.4
STRICT_SHARE = 0.5
CONFLICT_FIELDS = 4
SPEC: Document = root_schema()["properties"]["spec"]
QUANTITIES = (1, 2, "1", "500m", "0.0015", "64Mi", "1Gi", "1.5Gi", "2Gi", "3G", "64Ti", "1024")
WORDS_OF_PATTERN = {
    NAME_PATTERN: ("a", "s3-key", "a.b", "0", "a" * 63, "a" * 253),
    PATH_PATTERN: ("a", "_", "team/run-1", "a" * 200),
    REASON_PATTERN: ("X", "RankRaised"),
    WORDS_PATTERN: ("a", "_", "Tiny models", "v1.2-x"),
}

FieldPath = tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """A field of the spec; an entry of a list is named `[]`."""

    path: FieldPath
    schema: Document

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One job to be asked for."""

    number: int
    document: Document
    wrongs: tuple[str, ...] = ()
    """What was put wrong, and where; none in a good job."""
    is_strict: bool = True
    """Whether the client asks to be told of unknown fields."""


def fields_below(schema: Document, *above: str) -> Iterator[Field]:
    for name, inner in schema.get("properties", {}).items():
        yield Field((*above, name), inner)
        yield from fields_below(inner, *above, name)
        if "items" in inner:
            yield from fields_below(inner["items"], *above, name, ITEM)


FIELDS = tuple(fields_below(SPEC))


def case(seed: int, number: int) -> Case:
    """The job of that number: a good one, or one with up to WRONGS_MAX things put wrong."""
    chance = random.Random(f"{seed}/{number}")
    document = good_job(chance, f"fuzz-{number}")
    if chance.random() < GOOD_SHARE:
        return Case(number=number, document=document)
    wrongs = tuple(
        wrong
        for _ in range(chance.randint(1, WRONGS_MAX))
        for wrong in chance.choice(WAYS)(chance, document)
    )
    is_strict = chance.random() < STRICT_SHARE
    return Case(number=number, document=document, wrongs=wrongs, is_strict=is_strict)


def good_job(chance: random.Random, name: str) -> Document:
    """A job that the models accept."""
    start = chance.choice(PAIRS).accept
    document = merged(start, {"metadata": {"name": name}})
    return grown(chance, document, FIELDS, tries=chance.randint(0, FIELDS_GROWN_MAX))


def grown(
    chance: random.Random, document: Document, fields: Sequence[Field], *, tries: int
) -> Document:
    """With other values of some of these fields, those that the models take."""
    for _ in range(tries):
        field = chance.choice(fields)
        changed = copy.deepcopy(document)
        put(changed["spec"], field.path, good_value(chance, field.schema))
        if models_accept(changed):
            document = changed
    return document


def models_accept(document: Document) -> bool:
    try:
        LMTrainingJob.from_document(document)
    except ValidationError:
        return False
    return True


# --- values ---------------------------------------------------------------------------------------


def good_value(chance: random.Random, schema: Document) -> Any:
    """A value that the schema itself allows; its bounds come up as often as what lies between."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return chance.choice(QUANTITIES)
    return _OF_TYPE[schema["type"]](chance, schema)


def _whole(chance: random.Random, schema: Document) -> int:
    low, high = schema.get("minimum", -(10**30)), schema.get("maximum", 10**30)
    between = int(math.exp(chance.uniform(0, math.log(high - low + 1))))
    power = 2 ** chance.randint(0, high.bit_length())
    return min(max(chance.choice((low, low + 1, high, low + between, power)), low), high)


def _number(chance: random.Random, schema: Document) -> float:
    if "minimum" not in schema:
        return chance.choice(NUMBERS)
    low, high = schema["minimum"], schema["maximum"]
    least = math.nextafter(low, high) if schema.get("exclusiveMinimum") else low
    most = math.nextafter(high, low) if schema.get("exclusiveMaximum") else high
    return chance.choice((least, most, chance.uniform(least, most)))


def _text(chance: random.Random, schema: Document) -> str:
    is_time = schema.get("format") == "date-time"
    words = TIMES if is_time else WORDS_OF_PATTERN.get(schema.get("pattern", ""), (*TEXTS, *URIS))
    fitting = [word for word in words if len(word) <= schema["maxLength"]]
    return chance.choice(fitting)


def _list(chance: random.Random, schema: Document) -> list[Any]:
    least, most = schema.get("minItems", 0), schema["maxItems"]
    count = chance.choice((least, least + 1, least + 2, most))
    entries = [good_value(chance, schema["items"]) for _ in range(count)]
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys is None:
        return entries
    return list({tuple(entry[key] for key in keys): entry for entry in entries}.values())


def _block(chance: random.Random, schema: Document) -> Document:
    if "additionalProperties" in schema:
        keys = chance.sample(KEYS, chance.randint(0, 2))
        return {key: good_value(chance, schema["additionalProperties"]) for key in keys}
    required = schema.get("required", [])
    return {
        name: good_value(chance, inner)
        for name, inner in schema["properties"].items()
        if name in required or chance.random() < OPTIONAL_SHARE
    }


_OF_TYPE: dict[str, Callable[[random.Random, Document], Any]] = {
    "integer": _whole,
    "number": _number,
    "string": _text,
    "boolean": lambda chance, _: chance.choice((True, False)),
    "array": _list,
    "object": _block,
}


# --- ways to put something wrong: each changes the document and says what it did ------------------


def _strange(chance: random.Random, document: Document) -> list[str]:
    field, value = chance.choice(FIELDS), chance.choice(STRANGE)
    put(_spec(document), field.path, copy.deepcopy(value))
    return [f"{field} is {value!r:.60}"]


def _outside(chance: random.Random, document: Document) -> list[str]:
    field = chance.choice(FIELDS)
    values = list(values_outside(field.schema))
    if not values:
        return _strange(chance, document)
    value = chance.choice(values)
    put(_spec(document), field.path, value)
    return [f"{field} is out of bounds: {value!r:.60}"]


def _missing(chance: random.Random, document: Document) -> list[str]:
    blocks = [block for block in _blocks(document["spec"]) if block]
    if not blocks:
        return []
    block = chance.choice(blocks)
    name = chance.choice(sorted(block))
    del block[name]
    return [f"{name} is left out"]


def _unknown(chance: random.Random, document: Document) -> list[str]:
    block = chance.choice([document, *_blocks(document["spec"])])
    name = f"{chance.choice(sorted(block) or ['a'])}{chance.choice(('s', 'X', '-', '.', 'é'))}"
    block[name] = chance.choice(STRANGE)
    return [f"unknown field {name}"]


def _conflict(chance: random.Random, document: Document) -> list[str]:
    """Fields that are good each by itself, whatever the others say."""
    found = chance.sample(FIELDS, CONFLICT_FIELDS)
    for field in found:
        put(_spec(document), field.path, good_value(chance, field.schema))
    return [f"any {field}" for field in found]


def _twice(chance: random.Random, document: Document) -> list[str]:
    lists = [
        (name, value)
        for block in _blocks(document["spec"])
        for name, value in block.items()
        if isinstance(value, list) and value
    ]
    if not lists:
        return []
    name, entries = chance.choice(lists)
    entries.append(copy.deepcopy(entries[0]))
    return [f"{name} names its first entry twice"]


def _named(chance: random.Random, document: Document) -> list[str]:
    name = chance.choice(NAMES)
    document["metadata"]["name"] = name
    return [f"its name is {name!r:.60}"]


def _no_block(chance: random.Random, document: Document) -> list[str]:
    document["spec"] = chance.choice((None, [], "", 0, {}, [{}]))
    return [f"spec is {document['spec']!r}"]


_COMMON = (_strange, _outside, _missing, _unknown, _conflict)
WAYS = (*_COMMON * 4, _twice, _named, _no_block)


def put(block: Document, path: FieldPath, value: Any) -> None:
    """Set a field, whatever stands in the way."""
    *above, last = path
    place: Any = block
    for name, following in zip(above, path[1:], strict=True):
        empty: Any = [{}] if following == ITEM else {}
        if name == ITEM:
            if not isinstance(place[0], dict):
                place[0] = {}
            place = place[0]
            continue
        if not isinstance(place.get(name), type(empty)) or not place[name]:
            place[name] = empty
        place = place[name]
    place[last] = value


def _spec(document: Document) -> Document:
    if not isinstance(document["spec"], dict):
        document["spec"] = {}
    spec: Document = document["spec"]
    return spec


def _blocks(value: Any) -> Iterator[Document]:
    """Every block at or below."""
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _blocks(one)
