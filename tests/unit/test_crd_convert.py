"""pydantic's forms become what an API server accepts, or an error; nothing is lost on the way."""

import json
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, Field

from lmtraining_api import Rule, SpecModel, TransitionRule
from lmtraining_api.fields import Quantity
from lmtraining_crdgen.convert import (
    DATE_TIME_PATTERN,
    UnsupportedSchemaError,
    structural_schema,
    without_defaults,
    without_item_defaults,
)
from lmtraining_crdgen.rules import validation, with_rules

pytestmark = pytest.mark.unit


class Inner(SpecModel):
    size: int = Field(default=1, ge=1, le=9)
    """How large."""
    label: str | None = Field(default=None, max_length=5)


class Node(SpecModel):
    """A model that holds itself."""

    child: "Node | None" = None


def schema_of(annotation: Any, default: Any = ...) -> dict[str, Any]:
    """The converted schema of one field."""
    model = type("Model", (SpecModel,), {"__annotations__": {"x": annotation}, "x": default})
    converted: dict[str, Any] = structural_schema(model, with_rules)["properties"]["x"]
    return converted


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Annotated[int, Field(ge=1, le=5)], {"type": "integer", "minimum": 1, "maximum": 5}),
        (
            Annotated[float, Field(gt=0, lt=1)],
            {
                "type": "number",
                "minimum": 0.0,
                "exclusiveMinimum": True,
                "maximum": 1.0,
                "exclusiveMaximum": True,
            },
        ),
        (
            Annotated[float, Field(ge=0.5)],
            {
                "type": "number",
                "minimum": 0.5,
                "x-kubernetes-validations": [
                    {
                        "rule": "self != 0.0",
                        "message": "should be greater than or equal to 0.5",
                        "reason": "FieldValueInvalid",
                    }
                ],
            },
        ),
        (Literal["a"], {"type": "string", "enum": ["a"]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (
            Annotated[int | None, Field(ge=1)],
            {"type": "integer", "minimum": 1},
        ),
        (
            int | Annotated[str, Field(max_length=9)],
            {"x-kubernetes-int-or-string": True, "maxLength": 9},
        ),
        (
            Annotated[list[int], Field(max_length=3)],
            {
                "type": "array",
                "items": {"type": "integer"},
                "maxItems": 3,
                "x-kubernetes-list-type": "atomic",
            },
        ),
        (
            Annotated[set[int], Field(max_length=3)],
            {
                "type": "array",
                "items": {"type": "integer"},
                "maxItems": 3,
                "x-kubernetes-list-type": "set",
            },
        ),
        (
            Annotated[dict[Literal["a"], int], Field(max_length=3)],
            {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "maxProperties": 3,
                "x-kubernetes-map-type": "atomic",
            },
        ),
        (
            AwareDatetime,
            {
                "type": "string",
                "format": "date-time",
                "maxLength": 64,
                "pattern": DATE_TIME_PATTERN,
            },
        ),
    ],
    ids=str,
)
def test_a_form_of_pydantic_becomes_one_of_kubernetes(annotation: Any, expected: Any) -> None:
    assert schema_of(annotation) == expected


def test_a_quantity_is_a_number_or_text() -> None:
    schema = schema_of(Quantity)
    assert schema["x-kubernetes-int-or-string"] is True
    assert "type" not in schema


def test_a_block_is_inlined_with_the_words_of_the_field_and_defaults_without_nulls() -> None:
    schema = schema_of(Annotated[Inner, Field(description="Of the\nfield.")], Inner())
    assert schema == {
        "type": "object",
        "description": "Of the field.",
        "default": {"size": 1},
        "properties": {
            "size": {
                "type": "integer",
                "description": "How large.",
                "minimum": 1,
                "maximum": 9,
                "default": 1,
            },
            "label": {"type": "string", "maxLength": 5},
        },
    }


def test_a_field_named_as_a_keyword_is_kept() -> None:
    class Titled(SpecModel):
        title: str = Field(max_length=5)
        default: int

    schema = structural_schema(Titled, with_rules)
    assert list(schema["properties"]) == ["title", "default"]
    assert schema["required"] == ["title", "default"]


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (int | bool, "union"),
        (tuple[int, str], "prefixItems"),
        (Annotated[int, Field(examples=[3])], "examples"),
        (Node, "within itself"),
    ],
    ids=str,
)
def test_what_a_crd_cannot_express_is_an_error_that_names_the_field(
    annotation: Any, named: str
) -> None:
    with pytest.raises(UnsupportedSchemaError, match=named) as error:
        schema_of(annotation)
    assert ".x" in str(error.value)


def test_a_status_has_no_defaults_but_may_have_a_field_of_that_name() -> None:
    class Row(BaseModel):
        default: int = 3

    class Table(BaseModel):
        rows: list[Row] = []
        by_name: dict[str, Row] = {}

    schema = without_defaults(structural_schema(Table, with_rules))
    row = {"type": "object", "properties": {"default": {"type": "integer"}}}
    assert schema["properties"]["rows"]["items"] == row
    assert schema["properties"]["by_name"]["additionalProperties"] == row
    assert "default" not in schema["properties"]["rows"]


def test_an_entry_of_a_list_has_no_defaults_at_any_depth() -> None:
    class Entry(SpecModel):
        inner: Inner = Inner()

    class Table(SpecModel):
        size: int = 3
        rows: list[Entry] = Field(default=[])

    schema = without_item_defaults(structural_schema(Table, with_rules))
    assert schema["properties"]["size"]["default"] == 3
    assert schema["properties"]["rows"]["default"] == []
    assert '"default"' not in json.dumps(schema["properties"]["rows"]["items"])


NODE = {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "f": {"type": "number"}}}


def test_a_message_with_values_becomes_an_expression_and_keeps_a_fallback() -> None:
    rule = Rule(cel="self.n == 1", message="n {n} isn't 100% of {s}: set 1", check=bool, at="n")
    assert validation(rule, NODE) == {
        "rule": "self.n == 1",
        "message": "n … isn't 100% of …: set 1",
        "messageExpression": "'n %d isn\\'t 100%% of %s: set 1'.format([self.n, self.s])",
        "reason": "FieldValueInvalid",
        "fieldPath": ".n",
    }


def test_a_message_without_values_has_no_expression() -> None:
    rule = Rule(cel="self.n == 1", message="one of a and b: keep one", check=bool)
    assert validation(rule, NODE) == {
        "rule": "self.n == 1",
        "message": "one of a and b: keep one",
        "reason": "FieldValueInvalid",
    }


def test_a_rule_of_new_jobs_alone_is_not_asked_about_one_that_is_there() -> None:
    """P12: it must not stand in the way of an edit elsewhere."""
    rule = Rule(cel="self.n == 1", message="m", check=bool, at_creation=True)
    assert validation(rule, NODE) == {
        "rule": "oldSelf.hasValue() || self.n == 1",
        "optionalOldSelf": True,
        "message": "m",
        "reason": "FieldValueInvalid",
    }


def test_a_rule_about_a_change_is_asked_of_the_block_that_it_is_about() -> None:
    """An API server asks it again at each write of a status, and pays for each block above it."""

    class Inner(SpecModel):
        n: int = 1

    class Outer(SpecModel):
        inner: Inner = Inner()
        transition_rules: ClassVar = (
            TransitionRule(cel="self.n == oldSelf.n", message="m", at="inner.n", of="inner"),
        )

    schema = structural_schema(Outer, with_rules)
    assert "x-kubernetes-validations" not in schema
    (rule,) = schema["properties"]["inner"]["x-kubernetes-validations"]
    assert (rule["rule"], rule["fieldPath"]) == ("self.n == oldSelf.n", ".n")


BOUNDED = {
    "required": ["n"],
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
        "f": {"type": "number", "minimum": 0.0, "exclusiveMinimum": True, "default": 1.0},
        "s": {"type": "string", "minLength": 1, "pattern": "^a$"},
        "word": {"type": "string", "enum": ["a", "b"]},
        "block": {"required": ["n"], "properties": {"n": {"type": "integer", "maximum": 9}}},
    },
}


@pytest.mark.parametrize(
    ("cel", "guards"),
    [
        ("self.n % 2 == 0", "self.n < 1 || self.n > 9"),
        ("self.n + self.n == 2", "self.n < 1 || self.n > 9"),
        ("self.f == 1.0", "has(self.f) && self.f <= 0.0"),
        (
            "self.s.startsWith('a')",
            "has(self.s) && !self.s.matches(r'^a$') || has(self.s) && size(self.s) == 0",
        ),
        ("self.word == 'a'", "has(self.word) && !(self.word in ['a', 'b'])"),
        ("self.block.n == 1", "has(self.block) && self.block.n > 9"),
    ],
)
def test_a_rule_is_silent_where_the_bounds_of_its_fields_speak(cel: str, guards: str) -> None:
    rule = Rule(cel=cel, message="m", check=bool)
    assert validation(rule, BOUNDED)["rule"] == f"({cel}) || {guards}"


@pytest.mark.parametrize("cel", ["has(self.n) != has(self.s)", "has(self.block)"])
def test_a_rule_that_reads_no_value_needs_no_guard(cel: str) -> None:
    rule = Rule(cel=cel, message="m", check=bool)
    assert validation(rule, BOUNDED)["rule"] == cel


@pytest.mark.parametrize("name", ["f", "missing"])
def test_a_message_may_name_only_what_prints_the_same_on_both_sides(name: str) -> None:
    rule = Rule(cel="true", message=f"f {{{name}}}", check=bool)
    with pytest.raises(UnsupportedSchemaError, match=name):
        validation(rule, NODE)
