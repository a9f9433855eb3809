"""A schema's bounds and defaults in the words of a person, for the reference and `kubectl explain`.

Promise: both show the same bounds, read from the schema that the API server enforces.
Trap avoided: `kubectl explain` shows neither defaults nor bounds by itself.
"""

from typing import Any

from lmtraining_crdgen.convert import Schema

#: The bound of a counter: the largest whole number that JSON readers keep exact.
COUNT_MAX = 2**53 - 1


def limits(node: Schema) -> str:
    """What may be written."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("format") == "date-time":
        return "RFC 3339 time"
    return ", ".join(filter(None, (_least(node), _most(node), _sizes(node))))


def plain(value: Any) -> str:
    """A value as YAML would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return '""'
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def explained(node: Schema) -> Schema:
    """The schema with default and bounds at the end of each description."""
    result = dict(node)
    if "properties" in node:
        result["properties"] = {k: explained(_with_facts(v)) for k, v in node["properties"].items()}
    if "items" in node:
        result["items"] = explained(node["items"])
    return result


def _with_facts(node: Schema) -> Schema:
    if node.get("type") == "object" or "description" not in node:
        return node
    facts = [f"default {plain(node['default'])}" if "default" in node else ""]
    facts += ["" if "enum" in node else limits(node)]  # explain shows an enum itself
    text = "; ".join(filter(None, facts))
    return node | ({"description": f"{node['description']} ({text})"} if text else {})


def _least(node: Schema) -> str:
    sign = ">" if node.get("exclusiveMinimum") else "≥"
    return f"{sign} {plain(node['minimum'])}" if "minimum" in node else ""


def _most(node: Schema) -> str:
    if node.get("maximum") in (None, COUNT_MAX):
        return ""
    return f"{'<' if node.get('exclusiveMaximum') else '≤'} {plain(node['maximum'])}"


def _sizes(node: Schema) -> str:
    if "maxItems" in node:
        return f"{node.get('minItems', 0)} to {node['maxItems']} entries"
    if "maxProperties" in node:
        return f"at most {node['maxProperties']} entries"
    if "maxLength" in node and not node.get("x-kubernetes-int-or-string"):
        return f"at most {node['maxLength']} characters"
    return ""
