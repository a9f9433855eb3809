"""The contract's rules as `x-kubernetes-validations`.

Promise: the API server refuses what the models refuse, with the same sentence, and one mistake gets
one sentence.
Traps avoided: an API server asks a rule about a field that is out of its own bounds too, and adds
"modulus by zero", or advice for a value that cannot stay. `"..." + string(self.x)` in a
messageExpression costs a hundred times the budget of a CRD where x has no `maxLength`;
`"...".format([self.x])` does not. A sentence without values stands by, for the case that the
expression cannot be evaluated.
"""

import re

from pydantic import BaseModel

from lmtraining_api import Rule, SpecModel, TransitionRule
from lmtraining_crdgen.convert import Schema, UnsupportedSchemaError

_RULES = "x-kubernetes-validations"
_REASON = {"reason": "FieldValueInvalid"}
_HAS = re.compile(r"has\([^)]*\)")
_PATH = re.compile(r"\bself\.([A-Za-z0-9.]+)")


def with_rules(model: type[BaseModel], node: Schema) -> Schema:
    """The object's schema with the rules of its class."""
    if not issubclass(model, SpecModel):
        return node
    for rule in model.rules:
        node = _with(validation(rule, node), node)
    for change in model.transition_rules:
        node = _with(transition(change), node, *filter(None, change.of.split(".")))
    return node


def _with(rule: Schema, node: Schema, *below: str) -> Schema:
    """The schema with one more rule, of the object itself or of the block below it."""
    if not below:
        return node | {_RULES: [*node.get(_RULES, ()), rule]}
    block, *rest = below
    blocks = node["properties"]
    return node | {"properties": blocks | {block: _with(rule, blocks[block], *rest)}}


def validation(rule: Rule, node: Schema) -> Schema:
    """One rule of the object that `node` describes."""
    asked: Schema = {"rule": guarded(rule.cel, node)}
    if rule.at_creation:
        asked = {"rule": f"oldSelf.hasValue() || {asked['rule']}", "optionalOldSelf": True}
    message = {"message": rule.text_without_values()}
    if rule.placeholders():
        message["messageExpression"] = message_expression(rule, node)
    return {**asked, **message, **_REASON, **_field_path(rule.at)}


def transition(rule: TransitionRule) -> Schema:
    """A rule about a change."""
    at = rule.at.removeprefix(rule.of).removeprefix(".")
    return {"rule": rule.cel, "message": rule.message, **_REASON, **_field_path(at)}


def guarded(cel: str, node: Schema) -> str:
    """The rule, kept by any object in which a field that it reads is out of its own bounds.

    The rule comes first: the API server asks it again at each write of a status, and of a job that
    keeps it nothing else is asked. Of two sides of an "or", one that fails counts for nothing where
    the other holds.
    """
    paths = dict.fromkeys(_PATH.findall(_HAS.sub("", cel)))  # has() reads no value
    unless = [doubt for path in paths for doubt in _out_of_bounds(path.split("."), node)]
    return " || ".join([f"({cel})", *unless]) if unless else cel


def _out_of_bounds(path: list[str], node: Schema) -> list[str]:
    """CEL, one for each bound: the field is there, and its own schema refuses its value.

    Lengths and types are left out: the API server asks no rule at all when one of those is wrong.
    """
    field, there = "self", []
    for name in path:
        if name not in node.get("properties", {}):
            break  # a method of the value
        is_required = name in node.get("required", [])
        field, node = f"{field}.{name}", node["properties"][name]
        is_block = "properties" in node
        if not is_required and not (is_block and "default" in node):
            there.append(f"has({field})")
    return [" && ".join([*there, beyond]) for beyond in _beyond(field, node)]


def _beyond(field: str, node: Schema) -> list[str]:
    beyond = []
    if "minimum" in node:
        beyond.append(f"{field} {'<=' if node.get('exclusiveMinimum') else '<'} {node['minimum']}")
    if "maximum" in node:
        beyond.append(f"{field} {'>=' if node.get('exclusiveMaximum') else '>'} {node['maximum']}")
    if "enum" in node:
        beyond.append(f"!({field} in {node['enum']})")
    if "pattern" in node:
        beyond.append(f"!{field}.matches(r'{node['pattern']}')")
    if node.get("minLength"):
        beyond.append(f"size({field}) == 0")
    return beyond


def message_expression(rule: Rule, node: Schema) -> str:
    """'heads %d ...'.format([self.heads])"""
    names = rule.placeholders()
    forms = {name: _form(rule, name, node) for name in names}
    escaped = Rule(cel="", check=rule.check, message=rule.message.replace("%", "%%"))
    template = escaped.filled(forms.__getitem__).replace("\\", "\\\\").replace("'", "\\'")
    values = (rule.terms[name].cel if name in rule.terms else f"self.{name}" for name in names)
    return f"'{template}'.format([{', '.join(values)}])"


def _form(rule: Rule, name: str, node: Schema) -> str:
    """%d for whole numbers, %s for text and terms; others print differently in CEL and here."""
    if name in rule.terms:
        return "%s"
    for part in name.split("."):
        node = node.get("properties", {}).get(part, {})
    if node.get("type") == "integer":
        return "%d"
    if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
        return "%s"
    raise UnsupportedSchemaError(f"message names {name}, which is neither text nor a whole number")


def _field_path(at: str) -> Schema:
    return {"fieldPath": f".{at}"} if at else {}
