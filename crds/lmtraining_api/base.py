"""The two kinds of models: what a person writes (strict) and what the halves tell each other.

Promise: a misspelt field in a job is refused by name; a record from a newer or older half is read
as far as it is understood. A cross-field rule is stated once (`Rule`) and enforced twice: as CEL by
the API server and as a validator here, so that `kubectl apply` and `lmtraining run` agree.
Traps avoided: two sets of rules, one of which is forgotten; and a rule that is younger than a job,
which would abandon one that trains, though nobody can mend what is immutable (P10, P12).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9.]+)\}")
#: The kind of pydantic error that carries broken rules, for those who explain it.
BROKEN_RULES = "broken_rules"
_HAS_BEGUN: Final = "has_begun"
#: The context in which to validate what an earlier version has accepted and begun: types and bounds
#: hold, and no rule is asked.
BEGUN: Final = {_HAS_BEGUN: True}


@dataclass(frozen=True, kw_only=True)
class Term:
    """A whole number or a text that a message names and no field holds, as CEL and as Python."""

    cel: str
    value: Callable[[Any], int | str]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cross-field rule.

    `cel` is the API server's form, with `self` the object that carries the rule; `check` is the
    same question here. Neither asks whether the fields it reads are within their own bounds: the
    CRD guards each rule with them, and a model has no field that is out of them. `message` is one
    sentence with the field, the value and the fix;
    `{field.path}` stands for the value at that path below `self` (camelCase, as the user wrote it),
    `{term}` for one of `terms`. A path may be named only if it is present whenever the rule is
    broken. Values that may hold a secret (a uri) are not named (P11). `at` is the field to point
    at, below `self`.
    """

    cel: str
    message: str
    check: Callable[[Any], bool]
    at: str = ""
    terms: Mapping[str, Term] = field(default_factory=dict)
    at_creation: bool = False
    """The API server asks it of new jobs alone: there are jobs that were accepted before it, and it
    must not stand in the way of `suspend: true`. For rules about what is immutable."""

    def placeholders(self) -> list[str]:
        """The field paths and terms that the message names, in order."""
        return _PLACEHOLDER.findall(self.message)

    def text(self, model: BaseModel) -> str:
        """The sentence for a model that breaks the rule."""
        return self.filled(lambda name: str(self._value(model, name)))

    def text_without_values(self) -> str:
        """The sentence for a reader that cannot fill in the values."""
        return self.filled(lambda _: "…")

    def filled(self, value_of: Callable[[str], str]) -> str:
        """The message with each placeholder replaced."""
        return _PLACEHOLDER.sub(lambda match: value_of(match[1]), self.message)

    def _value(self, model: BaseModel, name: str) -> object:
        return self.terms[name].value(model) if name in self.terms else value_at(model, name)


@dataclass(frozen=True, kw_only=True)
class TransitionRule:
    """A rule about a change (`oldSelf`): only an API server can know it, so there is no `check`."""

    cel: str
    message: str
    at: str = ""
    of: str = ""
    """The block below that is `self`, and is always there. The further down, the cheaper: what an
    API server does to read one field grows with the number of fields of each block above it."""


class SpecModel(BaseModel):
    """What a person writes: frozen, camelCase outside, unknown fields refused, and a value of
    another type too ("400" for a number), as an API server refuses it."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    transition_rules: ClassVar[tuple[TransitionRule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(_HAS_BEGUN):
            return self
        broken = [(rule.at, rule.text(self)) for rule in type(self).rules if not rule.check(self)]
        if broken:
            text = "; ".join(sentence for _, sentence in broken)
            text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be shown
            raise PydanticCustomError(BROKEN_RULES, "{text}", {"text": text, "broken": broken})
        return self


class StatusModel(BaseModel):
    """What the operator says back in `.status`: unknown fields of a newer one are ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Record(StatusModel):
    """What crosses between operator and trainer, or between two lives of one run.

    Each record states its `schemaVersion`; readers ignore fields they do not know.
    """

    schema_version: int = 1
    """Version of this record's shape; it grows by addition only."""


def value_at(model: BaseModel, path: str) -> object:
    """The value at a camelCase dotted path below `model`."""
    value: Any = model
    for part in path.split("."):
        names = {info.alias or name: name for name, info in type(value).model_fields.items()}
        value = getattr(value, names[part])
    return value
