"""Charts drawn with Bokeh: the only module that knows the plotting library.

Colours are set twice: here those of the light theme, and in the page by what they mean, which a
model's tags say ("line_color=series-1"); ``page.js`` follows them when the theme changes.

Not here: what is drawn (``curves``, ``movement``, ``data_audit``), and the page around it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.language import phrase
from counterpoint.report.charts import Chart, ChartLine, HeatMap, Histogram, LineChart
from counterpoint.report.columns import (
    ALARMS,
    Columns,
    Mark,
    alarm_columns,
    bar_columns,
    cell_columns,
    line_columns,
    scale_of,
)
from counterpoint.report.palette import colour, shades

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

_FONT = "ui-sans-serif, system-ui, sans-serif"
_HEIGHT, _ROW, _AROUND, _TALLEST = 250, 15, 110, 900
_MOST_NAMES = 40


@dataclass(frozen=True, slots=True)
class Drawing:
    """Charts, ready for BokehJS.

    Args:
        document: all of them, as JSON.
        places: the id of each chart's model, and that of the element it goes into.
    """

    document: Mapping[str, Any]
    places: Mapping[str, str]


def place_of(chart: Chart) -> str:
    """The id of the element that a chart goes into."""
    return f"plot-{chart.key}"


def draw(charts: Sequence[Chart], marks: Sequence[Mark] = (), *, axis: str = "step") -> Drawing:
    """Draw charts that share their axis of steps.

    Args:
        charts: with keys unlike each other.
        marks: alarms, for every chart over steps.
        axis: name of the axis of steps.

    Raises:
        SetupError: CP502 where Bokeh is not installed.
    """
    check_bokeh()
    from bokeh.document import Document
    from bokeh.models import DataRange1d

    document = Document()
    steps = DataRange1d(range_padding=0.01, name="steps")
    alarms = _source(ALARMS, alarm_columns(marks))
    places = {}
    for chart in charts:
        figure = _figure_of(chart, steps)
        if not isinstance(chart, Histogram):
            figure.xaxis.axis_label = axis
            if marks:
                _mark(figure, alarms)
        document.add_root(figure)
        places[figure.id] = place_of(chart)
    return Drawing(document.to_json(deferred=False), places)


def check_bokeh() -> None:
    """Refuse to draw without the plotting library.

    Raises:
        SetupError: CP502, with the command that installs it.
    """
    try:
        importlib.import_module("bokeh")
    except ImportError as error:
        raise SetupError(
            "CP502",
            "a report needs the package bokeh, which is not installed: "
            + installing(EXTRAS["report"]),
        ) from error


def library() -> str:
    """BokehJS, for a page that is to open without a network."""
    check_bokeh()
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def _source(name: str, data: Columns) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(data=dict(data), name=name)


def _coloured(**roles: str) -> dict[str, Any]:
    """Keywords for colours by what they mean, with the tags that say so."""
    tags = [f"{attribute}={role}" for attribute, role in roles.items()]
    return {attribute: colour(role) for attribute, role in roles.items()} | {"tags": tags}


def _figure(height: int, **more: Any) -> Figure:
    from bokeh.models import BoxZoomTool, PanTool, ResetTool, SaveTool, WheelZoomTool
    from bokeh.plotting import figure

    made = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=[
            zoom := BoxZoomTool(dimensions="width"),
            PanTool(dimensions="width"),
            WheelZoomTool(dimensions="width"),
            ResetTool(),
            SaveTool(),
        ],
        active_drag=zoom,
        active_scroll=None,  # the wheel is for the page
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=54,
        min_border_right=12,
        **more,
    )
    made.toolbar.autohide = True
    made.toolbar.logo = None
    for axis in made.axis:
        axis.major_label_text_font = axis.axis_label_text_font = _FONT
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
        axis.update(
            **_coloured(
                axis_line_color="rule",
                major_tick_line_color="rule",
                major_label_text_color="soft",
                axis_label_text_color="soft",
            )
        )
    made.xgrid.grid_line_color = None
    made.ygrid.update(**_coloured(grid_line_color="grid"))
    return made


def _figure_of(chart: Chart, steps: Any) -> Figure:
    if isinstance(chart, Histogram):
        return _histogram(chart)
    return _lines(chart, steps) if isinstance(chart, LineChart) else _heat_map(chart, steps)


def _format_axes(figure: Figure) -> None:
    from bokeh.models import NumeralTickFormatter, PrintfTickFormatter

    figure.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    figure.yaxis.formatter = PrintfTickFormatter(format="%.4g")


def _lines(chart: LineChart, steps: Any) -> Figure:
    from bokeh.models import HoverTool

    figure = _figure(_HEIGHT, x_range=steps, y_axis_type="log" if chart.log else "linear")
    _format_axes(figure)
    if not chart.log:
        figure.y_range.default_span = _span_around(chart)
    drawn = [_line(figure, line) for line in chart.lines]
    figure.add_tools(
        HoverTool(
            renderers=drawn,
            mode="vline",
            tooltips=[("$name", phrase("{value} at {step}", value="@y{%.4g}", step="@step{0,0}"))],
            formatters={"@y": "printf"},
            visible=False,
        )
    )
    return figure


def _span_around(chart: LineChart) -> float:
    """How much of the axis a chart of one value shows: of the value's own size.

    The library's own 2 would show a learning rate of 1e-6 as 0.
    """
    values = {y for line in chart.lines for y in line.y if math.isfinite(y) and y}
    return max(map(abs, values), default=0.0) / 5 or 2.0


def _line(figure: Figure, line: ChartLine) -> Any:
    source = _source(line.key, line_columns(line))
    colours = _coloured(line_color=line.role)
    if line.low and line.high:
        band = figure.varea("step", "low", "high", source=source, fill_alpha=0.15)
        band.glyph.update(**_coloured(fill_color=line.role))
        band.tags = [f"line={line.key}"]
        band.nonselection_glyph = band.muted_glyph = None
    drawn = figure.line(
        "step", "y", source=source, line_width=1.6, line_dash=line.dash, name=line.label
    )
    drawn.glyph.update(**colours)
    # a toggle of the legend finds its line by this
    drawn.tags = [f"line={line.key}"]
    drawn.nonselection_glyph = drawn.muted_glyph = None
    if line.dotted:
        dots = figure.scatter("step", "y", source=source, size=6, name=line.label)
        dots.glyph.update(**_coloured(line_color=line.role, fill_color="card"), line_width=1.6)
        dots.tags = [f"line={line.key}"]
        dots.nonselection_glyph = dots.muted_glyph = None
    return drawn


def _mark(figure: Figure, alarms: Any) -> None:
    from bokeh.core.properties import value
    from bokeh.models import HoverTool, LabelSet

    strip = figure.vstrip("since", "step", source=alarms, line_color=None, fill_alpha=0.09)
    strip.level = "underlay"
    strip.glyph.update(**_coloured(fill_color="alarm"))
    span = figure.vspan("step", source=alarms, line_width=1.5, line_dash=[5, 3])
    span.glyph.update(**_coloured(line_color="alarm"))
    for drawn in (strip, span):
        drawn.nonselection_glyph = drawn.muted_glyph = None
    figure.add_layout(
        LabelSet(
            x="step",
            y=2,
            y_units="screen",
            x_offset=3,
            text="number",
            source=alarms,
            text_font=value(_FONT),  # a word alone would name a column
            text_font_size="11px",
            text_font_style="bold",
            **_coloured(text_color="alarm"),
        )
    )
    figure.add_tools(
        HoverTool(
            renderers=[span],
            tooltips=[(f"{phrase('alarm')} @number", "@text")],
            visible=False,
        )
    )


def _heat_map(chart: HeatMap, steps: Any) -> Figure:
    from bokeh.models import ColorBar, FixedTicker, HoverTool, LogColorMapper, Range1d

    low, high = scale_of(chart)
    mapper = LogColorMapper(palette=list(shades()), low=low, high=high, name=f"{chart.key}/scale")
    mapper.update(**_coloured(low_color="idle"))
    mapper.tags = [*mapper.tags, "palette=heat"]
    rows = len(chart.rows)
    figure = _figure(
        min(_TALLEST, _AROUND + _ROW * max(rows, 6)), x_range=steps, y_range=Range1d(rows, 0)
    )
    _format_axes(figure)
    figure.ygrid.grid_line_color = None
    every = math.ceil(rows / _MOST_NAMES)
    named = range(0, rows, every)
    figure.yaxis.ticker = FixedTicker(ticks=[row + 0.5 for row in named])
    # a dollar sign would ask for a formula, and a formula for a network
    names = {row + 0.5: chart.rows[row].replace("$", "") for row in named}
    figure.yaxis.major_label_overrides = names
    figure.yaxis.major_tick_line_color = None
    cells = figure.quad(
        source=_source(chart.key, cell_columns(chart)),
        fill_color={"field": "shade", "transform": mapper},
        line_color=None,
    )
    cells.nonselection_glyph = cells.muted_glyph = None
    figure.add_tools(
        HoverTool(
            renderers=[cells],
            tooltips=[
                ("@row", "@value{%.3g}"),
                (phrase("steps"), phrase("{left} to {right}", left="@left", right="@right")),
                ("", "@shown"),
            ],
            formatters={"@value": "printf"},
            visible=False,
        )
    )
    bar = ColorBar(
        color_mapper=mapper,
        height=8,
        padding=8,
        background_fill_color=None,
        major_label_text_font=_FONT,
        major_label_text_font_size="11px",
        **_coloured(major_label_text_color="soft", major_tick_line_color="rule"),
    )
    figure.add_layout(bar, "below")
    return figure


def _histogram(chart: Histogram) -> Figure:
    from bokeh.models import HoverTool

    figure = _figure(_HEIGHT)
    _format_axes(figure)
    figure.xaxis.axis_label = chart.unit
    figure.y_range.start = 0
    for bars in chart.bars:
        source = _source(bars.key, bar_columns(bars.edges, bars.counts))
        drawn = figure.quad(source=source, bottom=0, fill_alpha=0.28, name=bars.label)
        drawn.glyph.update(**_coloured(fill_color=bars.role, line_color=bars.role))
        drawn.tags = [f"line={bars.key}"]
        drawn.nonselection_glyph = drawn.muted_glyph = None
        figure.add_tools(
            HoverTool(
                renderers=[drawn],
                tooltips=[
                    (
                        "$name",
                        phrase(
                            "{count} of {left} to {right}",
                            count="@top{0,0}",
                            left="@left{0,0}",
                            right="@right{0,0}",
                        ),
                    )
                ],
                visible=False,
            )
        )
    return figure
