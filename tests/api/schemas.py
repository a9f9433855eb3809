"""JSON schemas for kubeconform, from what a real API server says of itself.

Promise: nothing is fetched from anywhere, and the schemas are those of the version we test with,
custom resources included. A field that is not known is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
PREFIX = "#/definitions/"
#: How kubeconform asks for the file of a kind.
LOCATION = "{{.ResourceKind}}{{.KindSuffix}}.json"
OF_KIND = "x-kubernetes-group-version-kind"
INT_OR_STRING = {"type": ["integer", "string"]}


def write(openapi: Mapping[str, Any], folder: Path) -> None:
    """A file per kind, each with all that it refers to."""
    definitions: dict[str, Schema] = {
        name: strict(schema) for name, schema in openapi["definitions"].items()
    }
    for name, schema in openapi["definitions"].items():
        for kind in schema.get(OF_KIND, []):
            group = kind["group"].partition(".")[0]
            suffix = "-".join(part for part in (group, kind["version"]) if part)
            needed = {one: definitions[one] for one in reached(name, definitions)}
            document = {"$ref": f"{PREFIX}{name}", "definitions": needed}
            file = folder / f"{kind['kind'].lower()}-{suffix}.json"
            file.write_text(json.dumps(document))


def strict(schema: Schema) -> Schema:
    """Without unknown fields; a port may be a number or a name."""
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING
    made = dict(schema)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key])
    if "properties" in schema:
        made["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    return made if is_open or "properties" not in schema else made | {"additionalProperties": False}


def reached(name: str, definitions: Mapping[str, Schema]) -> set[str]:
    """That definition and all that it refers to."""
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += references(definitions[one])
    return found


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"].removeprefix(PREFIX)] if isinstance(value.get("$ref"), str) else []
        return here + [name for item in value.values() for name in references(item)]
    if isinstance(value, list):
        return [name for item in value for name in references(item)]
    return []
