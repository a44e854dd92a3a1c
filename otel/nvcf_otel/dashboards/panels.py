"""Panels and variables shared by all three dashboards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Panel,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "nvcf"
PANEL_HEIGHT = 8

Queries = Sequence[tuple[str, str]]
"""Legends and their queries."""
_Panel = TypeVar("_Panel", stat.Panel, timeseries.Panel, heatmap.Panel, table.Panel)


def dashboard(uid: str, title: str, description: str) -> Dashboard:
    """Return an empty dashboard with its data source and links to the others."""
    others = (
        DashboardLink("Other dashboards").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(True)
    )
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(others.keep_time(True).include_vars(True))
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )


def variable(name: str, title: str, query: str, *, everything: bool = True) -> QueryVariable:
    """Return a variable with values from Prometheus. Several or all can be selected."""
    made = (
        QueryVariable(name)
        .label(title)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(everything)
    )
    return made.all_value(".*").current(VariableOption(text="All", value="$__all")) if everything else made


def row(board: Dashboard, title: str, *panels: Builder[Panel]) -> Dashboard:
    """Add a row of panels."""
    board = board.with_row(Row(title))
    for panel in panels:
        board = board.with_panel(panel)
    return board


def number(
    title: str,
    description: str,
    query: str,
    unit: str,
    *,
    width: int = 4,
    limits: tuple[float, float] | None = None,
    decimals: int | None = None,
) -> stat.Panel:
    """Return a panel with one number and its trend: yellow from the first limit on, red from the second."""
    panel = (
        _describe(stat.Panel(), title, description, width)
        .height(4)
        .unit(unit)
        .with_target(_target(query, "", exemplar=False))
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.thresholds(_thresholds(limits))


def chart(
    title: str,
    description: str,
    queries: Queries,
    unit: str,
    *,
    width: int = 8,
    stacked: bool = False,
    exemplars: bool = False,
    maximum: float | None = None,
) -> timeseries.Panel:
    """Return a panel of lines over time. With `exemplars`, points link to traces."""
    legends = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST)
    panel = (
        _describe(timeseries.Panel(), title, description, width)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .legend(legends.placement(LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if maximum is not None:
        panel = panel.max(maximum)
    for legend, query in queries:
        panel = panel.with_target(_target(query, legend, exemplar=exemplars))
    return panel


def heat(title: str, description: str, query: str, unit: str, *, width: int = 8) -> heatmap.Panel:
    """Return a heat map of a histogram over time."""
    return (
        _describe(heatmap.Panel(), title, description, width)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .with_target(_target(query, "{{le}}", exemplar=False).format(PromQueryFormat.HEATMAP))
    )


def listing(
    title: str, description: str, columns: Queries, units: Sequence[str], *, width: int = 12
) -> table.Panel:
    """Return a table by labels: one column for each query, in order."""
    panel = _describe(table.Panel(), title, description, width)
    names = {}
    for number_, (legend, query) in enumerate(columns):
        ref = chr(ord("A") + number_)
        target = prometheus.Dataquery().expr(query).instant().format(PromQueryFormat.TABLE).ref_id(ref)
        panel = panel.with_target(target.datasource(SOURCE))
        names[f"Value #{ref}" if len(columns) > 1 else "Value"] = legend
    for (legend, _), unit in zip(columns, units, strict=True):
        panel = panel.override_by_name(legend, [DynamicConfigValue(id_val="unit", value=unit)])
    shown = {"excludeByName": {"Time": True}, "renameByName": names}
    panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    return panel.with_transformation(DataTransformerConfig(id_val="organize", options=shown))


def _describe(panel: _Panel, title: str, description: str, width: int) -> _Panel:
    described = panel.title(title).description(description)
    return described.datasource(SOURCE).span(width).height(PANEL_HEIGHT)


def _target(query: str, legend: str, *, exemplar: bool) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().expr(query).range().legend_format(legend).exemplar(exemplar).datasource(SOURCE)
    )


def _thresholds(limits: tuple[float, float] | None) -> ThresholdsConfig:
    steps = [Threshold(value=None, color="green" if limits else "text")]
    colours: Iterable[Literal["yellow", "red"]] = ("yellow", "red")
    for limit, colour in zip(limits or (), colours, strict=False):
        steps.append(Threshold(value=limit, color=colour))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
