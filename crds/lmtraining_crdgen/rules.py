"""The contract's rules as `x-kubernetes-validations`.

Promise: the API server refuses what the models refuse, with the same sentence.
Trap avoided: `"..." + string(self.x)` in a messageExpression costs a hundred times the budget of a
CRD; `"...".format([self.x])` does not. A sentence without values stands by, for the case that
the expression cannot be evaluated.
"""

from pydantic import BaseModel

from lmtraining_api import Rule, SpecModel, TransitionRule
from lmtraining_crdgen.convert import Schema, UnsupportedSchemaError

_REASON = {"reason": "FieldValueInvalid"}


def with_rules(model: type[BaseModel], node: Schema) -> Schema:
    """The object's schema with the rules of its class."""
    if not issubclass(model, SpecModel):
        return node
    validations = [validation(rule, node) for rule in model.rules]
    validations += [transition(rule) for rule in model.transition_rules]
    return node | ({"x-kubernetes-validations": validations} if validations else {})


def validation(rule: Rule, node: Schema) -> Schema:
    """One rule of the object that `node` describes."""
    message = {"message": rule.text_without_values()}
    if rule.placeholders():
        message["messageExpression"] = message_expression(rule, node)
    return {"rule": rule.cel, **message, **_REASON, **_field_path(rule.at)}


def transition(rule: TransitionRule) -> Schema:
    """A rule about a change."""
    return {"rule": rule.cel, "message": rule.message, **_REASON, **_field_path(rule.at)}


def message_expression(rule: Rule, node: Schema) -> str:
    """'heads %d ...'.format([self.heads])"""
    names = rule.placeholders()
    forms = {name: _form(rule, name, node) for name in names}
    escaped = Rule(cel="", check=rule.check, message=rule.message.replace("%", "%%"))
    template = escaped.filled(forms.__getitem__).replace("\\", "\\\\").replace("'", "\\'")
    values = (rule.terms[name].cel if name in rule.terms else f"self.{name}" for name in names)
    return f"'{template}'.format([{', '.join(values)}])"


def _form(rule: Rule, name: str, node: Schema) -> str:
    """%d for whole numbers, %s for text; others print differently in CEL and here."""
    if name in rule.terms:
        return "%d"
    for part in name.split("."):
        node = node.get("properties", {}).get(part, {})
    if node.get("type") == "integer":
        return "%d"
    if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
        return "%s"
    raise UnsupportedSchemaError(f"message names {name}, which is neither text nor a whole number")


def _field_path(at: str) -> Schema:
    return {"fieldPath": f".{at}"} if at else {}
