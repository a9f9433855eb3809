"""For each bound of each field of a job: a job that is just outside it.

Made from the schema, so that no field can be forgotten. tests/unit asks the models, tests/api a
real API server.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lmtraining_crdgen.manifest import root_schema
from tests.contract_cases import Document, changed, minimal

#: What a block needs before another field of it can be the only one that is wrong.
BESIDE: Document = {
    "rollback.name": {"toStep": 1},
    "rollback.toStep": {"name": "back"},
    "accelerator.resource": {"count": 1},
    "model.pretrained": {"config": None},
    "pretrained.credentials": {"uri": "s3://bucket/gpt2"},
    "budget.tokens": {"steps": None},
    "budget.epochs": {"steps": None},
    "optimizer.momentum": {"name": "sgd"},
    "optimizer.l1": {"name": "ftrl"},
    "earlyStopping.gainMin": {"patience": 1},
    "storage.credentials": {"uri": "s3://bucket"},
    "mlflow.experiment": {"uri": "http://mlflow:5000"},
    "mlflow.credentials": {"uri": "http://mlflow:5000"},
    "topology.key": {"policy": "Pack"},
    "queue.priorityClass": {"name": "team"},
    "model.masking": {"task": "masked-lm", "config": {"architecture": "bert"}},
}
#: Validated within its budget, so that early stopping goes with it.
EVALUATED = minimal(training={"evaluation": {"everySteps": 10}})
NOT_QUANTITIES = ("2GB", "2gib", "2 G", "10E", "-", "", -1, 0, "100P", "9" * 31)


#: What an entry of a list needs beside the field that is wrong.
ENTRY: Document = {
    "rules": {"failureClass": "Crash", "action": "Retry"},
    "tolerations": {"key": "a", "effect": "NoExecute"},
    "env": {"name": "A", "value": "1"},
}
#: What a list needs beside that entry.
OTHERS: Document = {"train.weight": [{"uri": "s3://train/2", "weight": 1}]}


def just_out_of_bounds() -> list[tuple[str, Document]]:
    """The path of the field as an API server writes it, and the job."""
    spec = root_schema()["properties"]["spec"]
    return [
        (
            f"spec.{'.'.join(location).replace('[]', '[0]')}",
            changed(EVALUATED, **_patch(location, value)),
        )
        for location, field in _fields(spec)
        for value in values_outside(field)
    ]


def _fields(block: Document, *above: str) -> Iterator[tuple[tuple[str, ...], Document]]:
    for name, field in block["properties"].items():
        yield (*above, name), field
        if "properties" in field:
            yield from _fields(field, *above, name)
        elif "properties" in field.get("items", {}):
            yield from _fields(field["items"], *above, f"{name}[]")


def values_outside(field: Document) -> Iterator[Any]:
    """A value beyond each bound; of an exclusive one, the bound itself."""
    step = 1 if field.get("type") == "integer" else 1e-6
    if "minimum" in field:
        yield field["minimum"] - step * ("exclusiveMinimum" not in field)
    if "maximum" in field:
        yield field["maximum"] + step * ("exclusiveMaximum" not in field)
    if "enum" in field:
        yield "nonsense"
    if "pattern" in field:
        yield "-"
    if "minLength" in field:
        yield ""
    if "maxLength" in field:
        yield "a" * (field["maxLength"] + 1)
    if "minItems" in field:
        yield []
    if "maxItems" in field:
        yield [_entry(field["items"], n) for n in range(field["maxItems"] + 1)]
    if "x-kubernetes-int-or-string" in field:
        yield from NOT_QUANTITIES


def _entry(item: Document, number: int) -> Any:
    """An entry of a list that is good by itself and like no other."""
    properties = item.get("properties")
    if properties is None:
        return f"many.{number}"
    if "action" in properties:
        return dict(ENTRY["rules"])
    if "effect" in properties:
        return {"key": f"taint-{number}"}
    return (
        {"name": f"A{number}", "value": ""}
        if "value" in properties
        else {"uri": f"s3://m/{number}"}
    )


def _patch(location: Sequence[str], value: Any) -> Document:
    name, *below = location
    if not below:
        return {name: value}
    inner = _patch(below, value)
    if name.endswith("[]"):
        plain = name.removesuffix("[]")
        entry = ENTRY.get(plain, {"uri": f"s3://{plain}/1"}) | inner
        return {plain: [entry, *OTHERS.get(f"{plain}.{below[0]}", [])]}
    return {name: BESIDE.get(f"{name}.{below[0]}", {}) | inner}
