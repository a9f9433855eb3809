"""A table with a line per job, whose columns are queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import table as builder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from lmtraining_monitoring.boards.board import COLUMNS, NOT_KNOWN, SOURCE, query


@dataclass(frozen=True)
class Column:
    """One query, whose values are a column."""

    title: str
    unit: str
    expr: str


def table(
    title: str, description: str, keys: Sequence[str], columns: Sequence[Column], *, link: str
) -> builder.Panel:
    """The lines are those of equal labels `keys`; the last of them leads to `link`."""
    refs = dict(zip(ascii_uppercase, columns, strict=False))
    panel = (
        builder.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .datasource(SOURCE)
        .no_value(NOT_KNOWN)
        .span(COLUMNS)
        .height(10)
        .with_transformation(_transformation("merge", {}))
        .with_transformation(_transformation("organize", _organised(keys, refs)))
        .override_by_name(keys[-1], [_property("links", [{"title": "Its board", "url": link}])])
    )
    for ref, column in refs.items():
        asked = query(column.expr).instant().format(PromQueryFormat.TABLE).ref_id(ref)
        panel = panel.with_target(asked)
        panel = panel.override_by_name(column.title, [_property("unit", column.unit)])
    return panel


def _organised(keys: Sequence[str], refs: dict[str, Column]) -> dict[str, Any]:
    order = [*keys, *(f"Value #{ref}" for ref in refs)]
    return {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate(order)},
        "renameByName": {f"Value #{ref}": column.title for ref, column in refs.items()},
    }


def _transformation(name: str, options: dict[str, Any]) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val=name, options=options)


def _property(name: str, value: object) -> model.DynamicConfigValue:
    return model.DynamicConfigValue(id_val=name, value=value)
