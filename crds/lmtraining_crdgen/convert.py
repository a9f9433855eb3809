"""pydantic's JSON schema as the structural OpenAPI v3 schema that an API server accepts.

Promise: what comes out means the same as the model, or an error says which keyword has no
equivalent; nothing is dropped because it was not known.
Trap avoided: several of pydantic's forms are refused by the API server ($ref, null branches,
const), and others are accepted and then do nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

Schema = dict[str, Any]

MODEL = "x-model"
_NULL = {"type": "null"}
_DATE_TIME_LENGTH = 64
#: Narrower than an API server's format date-time, which takes 20:00:00x5Z, +99:99 and the year 0:
#: what the operator can read again.
DATE_TIME_PATTERN = (
    r"^([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"(Z|[+-][01][0-9]:[0-5][0-9])$"
)
#: Keywords that mean the same on both sides, in the order in which a person reads them.
_COPIED = (
    *("description", "type", "format", "enum", "required", "multipleOf", "minimum", "maximum"),
    *("minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties"),
    "maxProperties",
)
#: Keywords that another function turns into something else, or that say nothing a CRD needs: title
#: is noise, and closed objects have no equivalent (kubectl and the server see to unknown fields).
_HANDLED = (
    *("title", "$defs", "propertyNames", "additionalProperties", "properties", "items", "default"),
    *("const", "anyOf", "exclusiveMinimum", "exclusiveMaximum", "uniqueItems", MODEL),
)
_KNOWN = frozenset(_COPIED + _HANDLED)
_DEPTH_MAX = 30


class UnsupportedSchemaError(ValueError):
    """The model uses something that a CRD cannot express."""


class _WithModelNames(GenerateJsonSchema):
    """Leaves on each object the class it was made from, so that its rules can be found."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        return super().model_schema(schema) | {MODEL: schema["cls"]}


def structural_schema(
    model: type[BaseModel], decorate: Callable[[type[BaseModel], Schema], Schema]
) -> Schema:
    """The schema of `model`; `decorate` adds to each object what its class says beyond fields."""
    schema = model.model_json_schema(schema_generator=_WithModelNames)
    return _converted(schema, schema.get("$defs", {}), decorate, path=model.__name__)


def without_defaults(schema: Schema) -> Schema:
    """The schema of a status: the server must not speak for the operator."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {n: without_defaults(s) for n, s in kept["properties"].items()}
    for inner in ("items", "additionalProperties"):
        if inner in kept:
            kept[inner] = without_defaults(kept[inner])
    return kept


def without_item_defaults(schema: Schema) -> Schema:
    """The schema with no default for a part of a list's entry.

    A client-side `kubectl apply` compares a list as a whole. An entry to which the server has added
    a default differs from its file for ever, and each apply would send it again.
    """
    kept = dict(schema)
    if "properties" in kept:
        kept["properties"] = {n: without_item_defaults(s) for n, s in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = without_defaults(kept["items"])
    return kept


def _converted(
    node: Schema,
    definitions: Mapping[str, Schema],
    decorate: Callable[[type[BaseModel], Schema], Schema],
    *,
    path: str,
) -> Schema:
    node = _one_branch(_inlined(node, definitions, path), definitions, path)
    unknown = [k for k in node if k not in _KNOWN and not k.startswith("x-kubernetes-")]
    if unknown:
        raise UnsupportedSchemaError(f"{path}: a CRD has no {', '.join(unknown)}")
    result = {key: node[key] for key in _COPIED if key in node}
    result |= {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
    result |= (
        _described(node) | _constant(node) | _bounds(node) | _merge_type(node) | _default(node)
    )
    for name, inner in node.get("properties", {}).items():
        properties = result.setdefault("properties", {})
        properties[name] = _converted(inner, definitions, decorate, path=f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            result[key] = _converted(node[key], definitions, decorate, path=f"{path}[]")
    result |= _above_zero(result)
    return decorate(node[MODEL], result) if MODEL in node else result


def _inlined(node: Schema, definitions: Mapping[str, Schema], path: str) -> Schema:
    """With the definition in place of its $ref; what stands beside the $ref wins."""
    if path.count(".") > _DEPTH_MAX:
        raise UnsupportedSchemaError(f"{path}: a CRD cannot hold a model within itself")
    while "$ref" in node:
        beside = {key: value for key, value in node.items() if key != "$ref"}
        node = definitions[node["$ref"].removeprefix("#/$defs/")] | beside
    return node


def _one_branch(node: Schema, definitions: Mapping[str, Schema], path: str) -> Schema:
    """`X | None` as X, absent when it is None; `int | str` as int-or-string."""
    if "anyOf" not in node:
        return node
    outer = {key: value for key, value in node.items() if key != "anyOf"}
    branches = [_inlined(b, definitions, path) for b in node["anyOf"] if b != _NULL]
    if len(branches) == 1:
        return branches[0] | outer
    if sorted(branch.get("type", "") for branch in branches) == ["integer", "string"]:
        text = next(branch for branch in branches if branch["type"] == "string")
        bounds = {key: text[key] for key in ("maxLength", "pattern") if key in text}
        return {"x-kubernetes-int-or-string": True} | bounds | outer
    raise UnsupportedSchemaError(f"{path}: a CRD has no union of these types")


def _described(node: Schema) -> Schema:
    return {"description": " ".join(node["description"].split())} if "description" in node else {}


def _constant(node: Schema) -> Schema:
    return {"enum": [node["const"]]} if "const" in node else {}


def _bounds(node: Schema) -> Schema:
    """The boolean form of exclusive bounds; a length for the one string format we use."""
    bounds: Schema = {}
    for key, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if key in node:
            bounds |= {inclusive: node[key], key: True}
    if node.get("format") == "date-time":
        bounds |= {"maxLength": _DATE_TIME_LENGTH, "pattern": DATE_TIME_PATTERN}
    return bounds


def _above_zero(node: Schema) -> Schema:
    """A rule beside a minimum between 0 and 1: an API server compares a whole number with the
    bound's whole part, and so would take 0."""
    if node.get("type") != "number" or not 0 < node.get("minimum", 0) < 1:
        return {}
    message = f"should be greater than or equal to {node['minimum']}"
    rule = {"rule": "self != 0.0", "message": message, "reason": "FieldValueInvalid"}
    return {"x-kubernetes-validations": [rule]}


def _merge_type(node: Schema) -> Schema:
    """How server-side apply merges a list or a map: as a whole, unless the field says otherwise.
    Of a map that is merged key by key, an API server makes null once all keys are taken out."""
    if isinstance(node.get("additionalProperties"), dict):
        return {"x-kubernetes-map-type": "atomic"}
    if node.get("type") != "array" or "x-kubernetes-list-type" in node:
        return {}
    return {"x-kubernetes-list-type": "set" if node.get("uniqueItems") else "atomic"}


def _default(node: Schema) -> Schema:
    default = _without_nulls(node.get("default"))
    return {} if default is None else {"default": default}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value
