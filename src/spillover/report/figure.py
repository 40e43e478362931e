"""A figure: panels side by side, the same on the page, in notebooks and as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from spillover.report.draw import convert
from spillover.report.strip import Key, style

if TYPE_CHECKING:
    from pathlib import Path

    import altair as alt

TREATMENT_COLOUR = "#d55e00"
CONTROL_COLOURS = ("#3b75af", "#4fa79a", "#a493c4", "#b39a3c", "#7d8f5d")
BASE_COLOUR = "#8a8a8a"

METRIC_TITLES = {
    "choice-mass": "choice mass",
    "log-odds": "log-odds (nats)",
    "placebo-log-odds": "placebo log-odds (nats)",
    "specificity": "specificity (nats)",
    "judged": "judged rate",
}
PROPORTIONS = ("choice-mass", "judged")


def metric_title(metric: str) -> str:
    """A metric as axes name it."""
    return METRIC_TITLES.get(metric, metric)


class Panel(NamedTuple):
    """A single view with its title, still without a width."""

    title: str
    chart: alt.LayerChart


class Figure(NamedTuple):
    """The panels of one figure, and its legend; no legend where the rows' names say it all.

    Attributes:
        width: of a panel on disk, in points.
        columns: panels side by side on disk.
    """

    panels: list[Panel]
    key: list[Key]
    width: int = 300
    columns: int = 3


def side_by_side(drawn: dict[str, Figure]) -> dict[str, alt.ConcatChart]:
    """Figures as they are on disk and in notebooks."""
    import altair as alt

    result = {}
    for name, figure in drawn.items():
        panels = [
            panel.chart.properties(
                width=figure.width, title=alt.TitleParams(panel.title, anchor="start", fontSize=13)
            )
            for panel in figure.panels
        ]
        result[name] = alt.concat(*panels, columns=figure.columns, spacing=30).configure(
            **style(legend=bool(figure.key))
        )
    return result


def save(chart: alt.ConcatChart, stem: Path) -> None:
    """Write a chart as SVG, PNG and PDF beside each other."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in convert(chart.to_dict(), vegalite_version()).items():
        stem.with_suffix(f".{ending}").write_bytes(content)


def vegalite_version() -> str | None:
    """The Vega-Lite version that Altair writes for, or None if vl-convert does not hold it."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return version if version in vl_convert.get_vegalite_versions() else None
