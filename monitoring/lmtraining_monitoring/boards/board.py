"""What a board is made of, so that a panel is a title, a unit, a sentence and its queries.

Promise: every panel has a unit and says what it shows and what is missing where it is empty; the
same code gives the same bytes. A board works in any Grafana from 10 on, with the data source that
its reader chooses.
Trap avoided: ids and places that change with each save in a browser, which no one can review.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG: Final = "lmtraining"
SOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS: Final = 24
NOT_KNOWN: Final = "not known"
MARK_STEP: Final = "30s"
#: How Grafana's own editor writes a query for the values of a label.
LABEL_VALUES: Final = {"qryType": 1, "refId": "PrometheusVariableQueryEditor-VariableQuery"}

Panel = timeseries.Panel | stat.Panel | table.Panel
Queries = Mapping[str, str]
"""Expression by legend, in which `{{label}}` stands for a label's value."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels that answer one question."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What a reader chooses: the values of a label."""

    name: str
    label: str
    query: str
    """`label_values(...)` of Grafana."""
    is_many: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Moments that are drawn over all panels: where the query has a value."""

    name: str
    expr: str
    colour: str
    is_shown: bool = True


@dataclass(frozen=True, kw_only=True)
class Board:
    """One board."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    marks: Sequence[Mark] = ()

    @property
    def file(self) -> str:
        return f"{self.uid}.json"

    def rendered(self) -> str:
        """Its JSON, as Grafana imports it."""
        made = (
            builder.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .editable()
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .refresh("30s")
            .time("now-6h", "now")
            .timezone("browser")
            .link(_to_the_others())
            .with_variable(
                builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
            )
        )
        for variable in self.variables:
            made = made.with_variable(_variable(variable))
        for mark in self.marks:
            made = made.annotation(_Mark(mark))
        for number, row in enumerate(self.rows):
            made = made.with_row(builder.Row(row.title).id(100 * number + 100))
            for place, panel in enumerate(row.panels):
                made = made.with_panel(panel.id(100 * number + 101 + place))
        return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def lines(
    title: str,
    unit: str,
    description: str,
    queries: Queries,
    *,
    width: int = 8,
    is_stacked: bool = False,
    is_logarithmic: bool = False,
    empty: str = NOT_KNOWN,
) -> Panel:
    """Curves over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .no_value(empty)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(40 if is_stacked else 0)
        .legend(
            common.VizLegendOptions()
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    )
    if is_stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if is_logarithmic:
        panel = panel.scale_distribution(
            common.ScaleDistributionConfig().type(common_model.ScaleDistribution.LOG).log(10)
        )
    for ref, (legend, expr) in zip("ABCDEFGHIJ", queries.items(), strict=False):
        panel = panel.with_target(query(expr, legend=legend).ref_id(ref))
    return panel


def number(
    title: str,
    unit: str,
    description: str,
    expr: str,
    *,
    legend: str = "",
    width: int = 4,
    is_text: bool = False,
) -> Panel:
    """The newest value, large; with `is_text` the legend instead of the value."""
    mode = common_model.BigValueTextMode.NAME if is_text else common_model.BigValueTextMode.AUTO
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(SOURCE)
        .no_value(NOT_KNOWN)
        .span(width)
        .height(4)
        .color_mode(common_model.BigValueColorMode.NONE)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .text_mode(mode)
        .with_target(query(expr, legend=legend).instant().ref_id("A"))
    )
    return panel


def query(expr: str, *, legend: str = "") -> prometheus.Dataquery:
    """One query, on the data source that the reader has chosen."""
    made = prometheus.Dataquery().expr(expr).datasource(SOURCE).format(PromQueryFormat.TIME_SERIES)
    return made.legend_format(legend) if legend else made


def _variable(variable: Variable) -> builder.QueryVariable:
    made = (
        builder.QueryVariable(variable.name)
        .label(variable.label)
        .query({"query": variable.query, **LABEL_VALUES})
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if not variable.is_many:
        return made
    everything = model.VariableOption(text="All", value="$__all")
    return made.multi(True).include_all(True).all_value(".+").current(everything)


class _Moment(model.AnnotationQuery):
    """With the two fields of Prometheus' annotations that the library has no name for."""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "step": MARK_STEP, "titleFormat": self.name}


class _Mark(Builder[model.AnnotationQuery]):
    """A mark, built."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def build(self) -> model.AnnotationQuery:
        return _Moment(
            name=self._mark.name,
            datasource=SOURCE,
            enable=self._mark.is_shown,
            icon_color=self._mark.colour,
            expr=self._mark.expr,
        )


def _to_the_others() -> builder.DashboardLink:
    return (
        builder.DashboardLink("Training boards")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )
