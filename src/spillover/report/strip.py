"""The strip plot: a large mark for each mean, with its interval, and a small dot for each seed.

Names only ever enter a specification as values and as scale domains, never in an expression, so
that no name can be read as code.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from spillover.report.focus import Record, is_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    import altair as alt


SEED_LOOK: dict[str, Any] = {"filled": True, "size": 20, "opacity": 0.6, "shape": "circle"}
NOTE_LOOK: dict[str, Any] = {
    "align": "left",
    "x": 4,
    "color": "#666",
    "fontSize": 11,
    "limit": 150,  # a longer text would leave no room for the plot
}


class Mark(NamedTuple):
    """A value to draw: in which row, under which name of the legend, how low in the row's band."""

    row: str
    name: str
    lane: float
    """From -1, the top of the band, to 1."""
    value: float
    low: float = math.nan
    high: float = math.nan
    is_seed: bool = False


class Key(NamedTuple):
    """A line of a legend."""

    name: str
    colour: str
    shape: str = "circle"


@dataclass(frozen=True)
class Strip:
    """What a strip plot draws, and on which scales."""

    marks: list[Mark]
    rows: list[str]
    key: list[Key]
    title: str
    step: int
    """Height of a row in pixels."""
    notes: dict[str, str] = field(default_factory=dict)
    """By row, why it has no value."""
    is_proportion: bool = False
    nothing: str = "no value"
    """What to say where there is nothing at all to draw."""
    rings: bool = False
    """Means as rings without their number, for seeds at the same height to be seen inside."""
    what: str = "mean over seeds"
    """What a large mark is."""


def strip(picture: Strip) -> alt.LayerChart:
    """A strip plot; where it has nothing at all to draw, the reasons in its place."""
    import altair as alt

    if not picture.marks:
        return _reasons(picture)
    channels, x = _channels(picture), _x_channels(picture)
    means = [mark for mark in picture.marks if not mark.is_seed]
    seeds = [mark for mark in picture.marks if mark.is_seed]
    spans = [mark for mark in means if is_number(mark.low) and is_number(mark.high)]
    notes = [{"row": label(row), "text": f"– {why}"} for row, why in picture.notes.items()]
    look: dict[str, Any] = {
        "filled": not picture.rings,
        "size": 60,
        "opacity": 1,
        "strokeWidth": 1.8,
    }
    if picture.rings:
        look["fill"] = "white"
    zero, span, mean, seed, note = (
        alt.Chart(_shared(values))
        for values in (
            [{"value": 0}],
            *(_data(marks, picture.what) for marks in (spans, means, seeds)),
            notes,
        )
    )
    cap = span.mark_tick(thickness=2, size=14, opacity=1)
    layers = [
        zero.mark_rule(color="#999", strokeDash=[3, 3]).encode(x=x["value"]),
        span.mark_rule(strokeWidth=2).encode(x=x["low"], x2="high:Q", **channels),
        mean.mark_point(**look).encode(x=x["value"], shape=_shapes(picture), **channels),
        cap.encode(x=x["low"], **channels),
        cap.encode(x=x["high"], **channels),
        seed.mark_point(**SEED_LOOK).encode(x=x["value"], **channels),
        note.mark_text(**NOTE_LOOK).encode(y=channels["y"], text="text:N"),
        *([] if picture.rings else _numbers(picture, means, channels, x["value"])),
    ]
    return alt.LayerChart(layer=layers, height=alt.Step(picture.step))


def _numbers(
    picture: Strip, means: list[Mark], channels: dict[str, Any], x: alt.X
) -> list[alt.Chart]:
    """The means as numbers, beside their intervals: where there is more room, left or right."""
    import altair as alt

    middle = sum(_limits(means)) / 2
    layers = []
    for align, offset, is_left in (("left", 8, True), ("right", -8, False)):
        values = []
        for mark in means:
            if (mark.value < middle) == is_left:
                end = mark.high if is_left else mark.low
                at = end if is_number(end) else mark.value
                text = f"{mark.value:.2f}"
                values.append(
                    {**_data([mark], picture.what)[0], "value": round(at, 5), "number": text}
                )
        chart = alt.Chart(alt.InlineData(values=values))
        look: dict[str, Any] = {"align": align, "dx": offset, "fontSize": 11, "baseline": "middle"}
        layers.append(chart.mark_text(**look).encode(x=x, text="number:N", **channels))
    return layers


def _channels(picture: Strip) -> dict[str, Any]:
    """The encodings that all layers share, but for the value's."""
    import altair as alt

    names = [label(key.name) for key in picture.key]
    colours = [key.colour for key in picture.key]
    axis = alt.Axis(grid=True, tickBand="extent", ticks=False, labelLimit=150, domain=False)
    tooltip = {"row": "row", "name": "of", "what": "what", "text": "value"}
    return {
        "y": alt.Y(
            "row:N",
            title=None,
            axis=axis,
            scale=alt.Scale(
                domain=[label(row) for row in picture.rows], paddingInner=0, paddingOuter=0
            ),
        ),
        "yOffset": alt.YOffset("lane:Q", scale=alt.Scale(domain=[-1, 1])),
        "color": alt.Color("name:N", scale=alt.Scale(domain=names, range=colours)),
        "tooltip": [alt.Tooltip(f"{key}:N", title=title) for key, title in tooltip.items()],
    }


def _shapes(picture: Strip) -> alt.Shape:
    import altair as alt

    names = [label(key.name) for key in picture.key]
    shapes = [key.shape for key in picture.key]
    return alt.Shape("name:N", scale=alt.Scale(domain=names, range=shapes))


def _x_channels(picture: Strip) -> dict[str, alt.X]:
    """The horizontal position of a value and of its interval's ends, on one scale."""
    import altair as alt

    if picture.is_proportion:
        axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f", labelFlush=False)
        limits = [-0.03, 1.03]
    else:
        axis = alt.Axis(tickCount=5, labelFlush=False)
        limits = _limits(picture.marks)
    scale = alt.Scale(domain=limits, nice=False, zero=False)
    return {
        name: alt.X(f"{name}:Q", scale=scale, axis=axis, title=picture.title)
        for name in ("value", "low", "high")
    }


def _limits(marks: Iterable[Mark]) -> list[float]:
    """A range that holds 0 and all that is drawn, with a margin."""
    ends = [0.0]
    for mark in marks:
        ends += [end for end in (mark.value, mark.low, mark.high) if is_number(end)]
    margin = 0.04 * (max(ends) - min(ends) or 1)
    return [min(ends) - margin, max(ends) + margin]


def _data(marks: Iterable[Mark], what: str) -> list[Record]:
    """Marks as the values of a specification, rounded to what can be seen."""
    result = []
    for mark in marks:
        spanned = is_number(mark.low) and is_number(mark.high)
        interval = f" [{mark.low:.3f}, {mark.high:.3f}]" if spanned else ""
        result.append(
            {
                "row": label(mark.row),
                "name": label(mark.name),
                "lane": round(mark.lane, 3),
                "value": round(mark.value, 5),
                "low": round(mark.low, 5) if spanned else None,
                "high": round(mark.high, 5) if spanned else None,
                "what": "one seed" if mark.is_seed else what,
                "text": f"{mark.value:.3f}{interval}",
            }
        )
    return result


def _shared(values: list[Record]) -> alt.InlineData:
    """Values that Altair's many deep copies of a chart hold together."""
    import altair as alt

    class Shared(alt.InlineData):
        def __deepcopy__(self, _memo: object = None) -> Shared:
            return self

    return Shared(values=values)


def _reasons(picture: Strip) -> alt.LayerChart:
    """Nothing to draw: what is missing, row by row."""
    import altair as alt

    lines = [f"{label(row)[:40]}: {why}" for row, why in picture.notes.items()]
    rows = [{"line": line} for line in [f"– {picture.nothing}", *lines]]
    text = alt.Chart(alt.InlineData(values=rows)).mark_text(**NOTE_LOOK)
    lines = text.encode(y=alt.Y("line:N", axis=None, sort=None), text="line:N")
    return alt.LayerChart(layer=[lines], height=alt.Step(20))


def mean_and_seeds(row: str, name: str, record: Record, top: float, spread: float) -> list[Mark]:
    """A mean with its interval, and below it a dot per seed, none of which hides another."""
    marks = [Mark(row, name, top, record["value"], record["low"], record["high"])]
    seeds = [float(value) for value in record["per_seed"] if is_number(value)]
    first = top + spread * 0.7
    for index, value in enumerate(seeds):
        lane = first + spread * index / max(1, len(seeds) - 1)
        marks.append(Mark(row, name, lane, value, is_seed=True))
    return marks


def label(text: str) -> str:
    """A name as it can be drawn: controls, which XML and so PDF forbid, become U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(char)[0] == "C" or char in "\u2028\u2029" else char
        for char in text
    )


def style(legend: bool) -> dict[str, Any]:
    """The plain look of all charts, as Vega-Lite configuration."""
    return {
        "font": "Helvetica, Arial, 'Liberation Sans', sans-serif",
        "background": "white",
        "axis": {
            "domainColor": "#bbb",
            "tickColor": "#bbb",
            "labelColor": "#222",
            "titleColor": "#444",
            "gridColor": "#eee",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "legend": {
            "disable": not legend,
            "orient": "top",
            "title": None,
            "labelFontSize": 12,
            "labelLimit": 250,
            "symbolOpacity": 1,
        },
        "view": {"stroke": None},
    }
