"""What a job says now that it did not say when its run was last gone on with.

Promise: one line per changed field, by the path that a user writes.
Trap avoided: the number of ranks is the product of fields that differ between a cluster and one
machine, so it is compared as the one number it is.
"""

import json
from collections.abc import Iterator
from typing import Any

from lmtraining_api import TrainingSpec
from lmtraining_trainer.run.directory import spec_as_written

DEFAULT = "default"
RANKS = "workers (ranks in all)"
VALUE_LENGTH_MAX = 200


def changes(record: dict[str, Any], spec: TrainingSpec) -> list[str]:
    """`training.budget.steps: 100 → 200` for each field of `spec` that is not as in run.json."""
    if not isinstance(record.get("spec"), dict):
        return []
    before = {**dict(_fields(record["spec"])), RANKS: str(record.get("ranks"))}
    now = {**dict(_fields(spec_as_written(spec))), RANKS: str(spec.workers.world_size)}
    return [
        f"{path}: {before.get(path, DEFAULT)} → {now.get(path, DEFAULT)}"
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
    ]


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves, each by its path: data.train[0].uri."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _fields(inner, f"{path}[{index}]")
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield path, text if len(text) <= VALUE_LENGTH_MAX else f"{text[: VALUE_LENGTH_MAX - 1]}…"
