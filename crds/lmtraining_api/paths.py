"""The contract's models as a tree of the paths that a user writes.

Promise: explaining, documenting and testing all walk the same tree.
Trap avoided: our snake_case names never reach a person; a path is camelCase all along.
"""

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel


def aliases(model: type[BaseModel]) -> dict[str, str]:
    """The names a user writes, each with our name for it."""
    return {info.alias or name: name for name, info in model.model_fields.items()}


def objects_below(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The path and class of each object, the outer before the inner; lists as `train[]`."""
    yield path, model
    for alias, name in aliases(model).items():
        annotation = model.model_fields[name].annotation
        inner = model_in(annotation)
        if inner is not None:
            yield from objects_below(inner, joined(path, alias) + ("[]" * is_list(annotation)))


def field_paths(model: type[BaseModel]) -> Iterator[str]:
    """Every field below `model`."""
    for path, owner in objects_below(model):
        yield from (joined(path, alias) for alias in aliases(owner))


def model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model at a location below `model`, in which numbers are list indices."""
    found: type[BaseModel] | None = model
    for part in location:
        if found is None or isinstance(part, int):
            continue
        name = aliases(found).get(part)
        found = model_in(found.model_fields[name].annotation) if name else None
    return found


def model_in(annotation: object) -> type[BaseModel] | None:
    """The model inside `Model`, `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_in(inner))), None)


def joined(path: str, name: str) -> str:
    """`path.name`, where either may be empty."""
    return ".".join(filter(None, (path, name)))


def is_list(annotation: object) -> bool:
    """Whether an annotation is `list[...]`."""
    return getattr(annotation, "__origin__", None) is list
