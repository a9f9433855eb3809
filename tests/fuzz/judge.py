"""What an API server may say to a job that somebody wrote.

Promise: the server and the models must agree, and who is refused must learn the field. Trap
avoided: a refusal that is right and helps nobody, such as a rule that broke while it was asked, or
one whose sentence could not be filled in.
"""

import json
from collections.abc import Iterator

from pydantic import ValidationError

from lmtraining_api import LMTrainingJob
from tests.api.conftest import Answer
from tests.contract_cases import Document

CREATED, BAD_REQUEST, INVALID = 201, 400, 422
OK = 200
ROOTS = ("spec", "metadata")
NAMED_OTHERWISE = ('unknown field "', "ObjectMeta.")
"""How a field is named by what reads JSON, before any schema is asked."""
TROUBLE = ("evaluation error", "no such key", "failed rule", "internal error", "modulus by")
"""What a rule says that could not be asked."""
UNFILLED = "…"
MESSAGE_LENGTH_MAX = 20_000


def complaints(document: Document, answer: Answer) -> Iterator[str]:
    """What is wrong with the answer to a document; nothing where it is a good one."""
    if answer.code in (OK, CREATED):
        yield from _about_accepted(document, answer)
    elif answer.code in (BAD_REQUEST, INVALID):
        yield from about_refusal(document, answer)
        if models_accept_json(document):
            yield f"refused by the server, accepted by the models: {answer.message:.300}"
    else:
        yield f"the server answered {answer.code}: {answer.message:.300}"


def _about_accepted(document: Document, answer: Answer) -> Iterator[str]:
    """The operator reads what the server stores: without unknown fields, and with defaults."""
    try:
        LMTrainingJob.model_validate(answer.body)
    except ValidationError as error:
        yield f"accepted by the server, refused by the models: {error!s:.300}"
    if unknown_fields(document) and "unknown field" not in "".join(answer.warnings):
        yield f"unknown fields are dropped without a warning: {unknown_fields(document)}"


def about_refusal(document: object, answer: Answer) -> Iterator[str]:
    """What is wrong with the way in which something was refused."""
    texts = [message for _, message in answer.causes] or [answer.message]
    is_named = any(field.startswith(ROOTS) for field, _ in answer.causes)
    if not is_named and not any(words in answer.message for words in NAMED_OTHERWISE):
        yield f"no field is named: {answer.message:.300}"
    for text in texts:
        yield from (f"told {word!r}: {text:.300}" for word in TROUBLE if word in text)
        if UNFILLED in text and not _cannot_be_filled_in(document):
            yield f"the sentence is not filled in: {text:.300}"
    if len(answer.message) > MESSAGE_LENGTH_MAX:
        yield f"{len(answer.message)} characters are told: {answer.message:.200}"


def _cannot_be_filled_in(value: object) -> bool:
    """Whether an API server shows a rule's plain sentence instead: it fills in no line break, and a
    whole number that JSON writes with a fraction (5.0) passes for one in a schema, not in CEL."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return any(map(_cannot_be_filled_in, inner))
    if isinstance(value, str):
        return len(value.splitlines()) > 1 or value != value.strip("\n")
    return isinstance(value, float) and value.is_integer()


def models_accept_json(document: Document) -> bool:
    """By the types of JSON: pydantic would also take "5" for a number, and 5.0 for a whole one."""
    try:
        LMTrainingJob.model_validate_json(
            json.dumps(document), strict=True, by_alias=True, by_name=False
        )
    except ValidationError:
        return False
    return True


def unknown_fields(document: Document) -> list[str]:
    """Paths of the fields of the spec that the models do not know."""
    try:
        LMTrainingJob.from_document(document)
    except ValidationError as error:
        unknown = [p["loc"] for p in error.errors() if p["type"] == "extra_forbidden"]
        return [".".join(map(str, path)) for path in unknown if path[0] == "spec"]
    return []
