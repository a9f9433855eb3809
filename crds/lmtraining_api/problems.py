"""Everything that is wrong with a job's document, told at once.

Promise: a rule is asked even where some other field is refused, as an API server asks it; it is
silent where one of the fields that it reads is refused or absent.
Trap avoided: pydantic asks the rules of a block only once everything in the block is valid, so a
person would mend one mistake, and be told of the next.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lmtraining_api.base import SpecModel
from lmtraining_api.explain import explain_validation_error, rule_sentence
from lmtraining_api.job import LMTrainingJob
from lmtraining_api.paths import aliases, is_list, joined, model_in

_REFUSED: Final = object()
_STRICT: Final = ConfigDict(strict=True)


def problems_of(document: object) -> list[str]:
    """One sentence for each thing that is wrong with a job; none for a good one."""
    try:
        LMTrainingJob.from_document(document)
    except ValidationError as error:
        known = _known(LMTrainingJob, document)
        return explain_validation_error(error, _broken_rules(known))
    return []


def _broken_rules(known: object, path: str = "") -> Iterator[str]:
    """The sentences of the broken rules of an object and of all below it."""
    if isinstance(known, list):
        for index, entry in enumerate(known):
            yield from _broken_rules(entry, f"{path}[{index}]")
    if not isinstance(known, SpecModel):
        return
    for rule in type(known).rules:
        with suppress(AttributeError):  # it reads a field that is not known
            if not rule.check(known):
                yield rule_sentence(joined(path, rule.at), rule.text(known))
    for alias, name in aliases(type(known)).items():
        yield from _broken_rules(vars(known).get(name), joined(path, alias))


def _known(model: type[BaseModel], document: object) -> object:
    """The model with those fields that are good by themselves, and without the others."""
    if not isinstance(document, Mapping):
        return _REFUSED
    fields: dict[str, Any] = {
        name: _known_field(model.model_fields[name], document[alias])
        for alias, name in aliases(model).items()
        if alias in document
    }
    known = model.model_construct(**fields)  # with the defaults of the fields that are absent
    for name in [name for name, value in fields.items() if value is _REFUSED]:
        del vars(known)[name]
    return known


def _known_field(field: FieldInfo, value: object) -> object:
    inner = model_in(field.annotation)
    if inner is not None and isinstance(value, Mapping) and not is_list(field.annotation):
        return _known(inner, value)
    if inner is not None and isinstance(value, list) and is_list(field.annotation):
        entries = [_known(inner, entry) for entry in value]
        return _REFUSED if _REFUSED in entries else entries
    bounded: Any = Annotated[field.annotation, Field(), *field.metadata]
    try:
        return TypeAdapter(bounded, config=None if inner else _STRICT).validate_python(value)
    except ValidationError:
        return _REFUSED
