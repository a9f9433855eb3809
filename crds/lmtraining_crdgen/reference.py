"""docs/reference/lmtrainingjob.md: the field reference, made from the same models as the CRD.

Promise: what the reference says about a field, a rule, a reason or an exit code is what the code
does. Trap avoided: a hand-written reference is out of date by its second week.
"""

import json
from collections.abc import Iterator, Sequence

from lmtraining_api import LMTrainingJob, SpecModel, names
from lmtraining_api.exits import CLASS_OF_CODE, ExitCode, FailureClass
from lmtraining_api.paths import joined, objects_below
from lmtraining_api.reasons import FAILURE_HELP, QUESTION_OF, REASON_HELP, REASONS_OF
from lmtraining_crdgen.convert import Schema
from lmtraining_crdgen.manifest import COLUMNS, SELECTABLE, WIDE_COLUMNS, root_schema
from lmtraining_crdgen.words import limits, plain

INTRODUCTION = f"""<!-- Made by `make crds` from crds/lmtraining_api. Do not edit. -->
# {names.KIND}

`apiVersion: {names.API_VERSION}`, `kind: {names.KIND}`, short name `{names.SHORT_NAME}`, category
`{names.CATEGORY}`. The same text for one field: `kubectl explain {names.SHORT_NAME}.spec.training`.

A field without a default is required where its block is given, unless it is marked optional.
"""

CONDITIONS_INTRODUCTION = """<!-- Made by `make crds` from crds/lmtraining_api. Do not edit. -->
# What a job says, and what to do

`kubectl describe lmtj NAME` shows the conditions with their messages and the events; the `STATE`
column is the reason of `Succeeded`. The message has the particulars: which pod, which field, which
value.
"""

STATES = """## Conditions, exit codes and failure classes

Each with what to do: [conditions.md](../conditions.md).
"""

UNKNOWN_FIELDS = """## A misspelt field, and one that is there twice

`kubectl` asks the API server for strict checking and answers `unknown field "spec.trainng"`; the
local run suggests the nearest field. An API client that does not ask gets a `Warning:` header in
the answer, and the field is dropped before anyone can see it: neither a rule nor the operator can
know that it was there. So clients other than kubectl should send `?fieldValidation=Strict` with
every write (in Helm, Argo CD or Flux: leave their schema validation on).

Of a key that a block has twice kubectl keeps the last, and no API server ever sees the first.
`lmtraining validate` and `kubectl lmtrain validate` name it, with both lines.
"""


def rendered() -> str:
    """The whole file."""
    root = root_schema()["properties"]
    parts = [
        INTRODUCTION,
        *(_block(path, node, defaults=True) for path, node in _objects("spec", root["spec"], {})),
        _rules(),
        UNKNOWN_FIELDS,
        _commands(),
        STATES,
        *(_block(path, node) for path, node in _objects("status", root["status"], {})),
    ]
    return "\n".join(part.strip() + "\n" for part in parts)


def conditions_page() -> str:
    """docs/conditions.md: what status says, and what a person does about it."""
    parts = [CONDITIONS_INTRODUCTION, _conditions(), _failures()]
    return "\n".join(part.strip() + "\n" for part in parts)


def _objects(path: str, node: Schema, seen: dict[str, str]) -> Iterator[tuple[str, Schema]]:
    """Each object, the outer before the inner; one that came before refers to that place."""
    fields = json.dumps(node["properties"])
    if fields in seen:
        yield path, {"description": f"The same fields as `{seen[fields]}`."}
        return
    seen[fields] = path
    yield path, node
    for name, inner in node["properties"].items():
        below = inner.get("items", inner)
        if "properties" in below:
            yield from _objects(f"{path}.{name}{'' if below is inner else '[]'}", below, seen)


def _block(path: str, node: Schema, *, defaults: bool = False) -> str:
    """One object: its meaning and a table of its fields."""
    text = f"## `{path}`\n\n{_text(node)}\n\n"
    needed, head, rows = node.get("required", []), ["Field", "Type", "Bounds", "Meaning"], []
    for name, inner in node.get("properties", {}).items():
        row = [f"`{name}`", _type(inner), limits(inner), _text(inner)]
        rows.append((*row[:2], _default(inner, name in needed), *row[2:]) if defaults else row)
    if defaults:
        head.insert(2, "Default")
    return text + _table(head, rows) if rows else text


def _text(node: Schema) -> str:
    """A description, with nothing in it that Markdown would take for its own."""
    return str(node.get("description", "")).replace("*", "\\*").replace("<", "&lt;")


def _type(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map to {_type(node['additionalProperties'])}"
    return {"object": "block", "string": "text"}.get(node["type"], str(node["type"]))


def _default(node: Schema, required: bool) -> str:
    if required:
        return "**required**"
    if "default" not in node:
        return "optional"
    value = node["default"]
    return "see below" if isinstance(value, dict) else f"`{plain(value)}`"


def _rules() -> str:
    """Every rule as its sentence, beside the field it points at."""
    rows = []
    for path, model in objects_below(LMTrainingJob):
        if issubclass(model, SpecModel):
            rules = [(rule.at, rule.text_without_values()) for rule in model.rules]
            rules += [(rule.at, rule.message) for rule in model.transition_rules]
            rows += [(f"`{joined(path, at) or 'metadata'}`", text) for at, text in rules]
    return (
        "## Rules\n\nBeyond the bounds of single fields. The API server and the local run refuse "
        "a job that breaks one, with its sentence; … stands for a value of the job.\n\n"
        f"{_table(('Field', 'Sentence'), rows)}"
    )


def _commands() -> str:
    columns = [(f"`{c[0].upper()}`", f"`{c[2]}`", "") for c in COLUMNS]
    columns += [(f"`{c[0].upper()}`", f"`{c[2]}`", "with `-o wide`") for c in WIDE_COLUMNS]
    selectable = ", ".join(f"`{path}`" for path in SELECTABLE)
    return (
        f"## Columns and selectors\n\n`kubectl get {names.SHORT_NAME}` shows\n\n"
        f"{_table(('Column', 'From', ''), columns)}\n\n"
        f"Fields for `kubectl get {names.SHORT_NAME} --field-selector`: {selectable}."
    )


def _conditions() -> str:
    text = ["## Conditions", "", "All are present from the operator's first visit.", ""]
    for condition, reasons in REASONS_OF.items():
        rows = [(f"`{reason.value}`", *REASON_HELP[condition][reason]) for reason in reasons]
        head = ("Reason", "Means", "What to do")
        text += [f"### `{condition}`", "", QUESTION_OF[condition], "", _table(head, rows), ""]
    return "\n".join(text)


def _failures() -> str:
    """Exit codes and failure classes."""
    codes = [(f"{code.value}", f"`{code.name}`", _class_of(code)) for code in ExitCode]
    classes = [
        (f"`{kind.value}`", "yes" if kind.may_retry else "no", *FAILURE_HELP[kind])
        for kind in FailureClass
    ]
    return (
        "## Exit codes\n\nOf a trainer pod, of `lmtraining run`, and of `lmtraining validate` and "
        "`kubectl lmtrain validate`.\n\n"
        f"{_table(('Code', 'Name', 'Failure class'), codes)}\n\n"
        "## Failure classes\n\nIn `status.lastFailure.failureClass` and "
        "`status.restarts.byReason`.\n\n"
        f"{_table(('Class', 'Tried again', 'Means', 'What to do'), classes)}"
    )


def _class_of(code: ExitCode) -> str:
    return f"`{CLASS_OF_CODE[code].value}`" if code in CLASS_OF_CODE else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
