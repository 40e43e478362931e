"""The page of a grid: heat maps of what every arm did in every cell, and the largest beside it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from spillover.folder import whole
from spillover.report import words
from spillover.report.figure import PROPORTIONS, Figure, Panel, metric_title, save, side_by_side
from spillover.report.focus import BASE, Record, is_number
from spillover.report.page import fill
from spillover.report.strip import label
from spillover.report.tables import Column, table

if TYPE_CHECKING:
    from pathlib import Path

    import altair as alt

    from spillover.report.strip import Key

ROW = 34
"""Height of a row of a heat map, in points."""
PAGE = 40
"""Rows of the table of cells that are shown at a time."""
MOST_BESIDE = 5
"""Panels that have room beside each other."""
WHOLE = (0.0, 1.0)
"""The limits of a share."""
WIDEST = 90
"""Width of a column of a heat map on disk, in points, where there is room."""


def write_grid_report(folder: Path, content: Record) -> Path:
    """Write ``figures/*.png|svg|pdf`` and ``report.html`` of a grid into its folder.

    Args:
        content: of ``grid.json``.
    """
    drawn = heat_maps(content)
    for name, chart in side_by_side(drawn).items():
        save(chart, folder / "figures" / name)
    path = folder / "report.html"
    page = fill(
        "grid.html.j2",
        drawn,
        {"cells": _cells_table(content)},
        title=f"{content['title']}: a grid of training settings",
        content=content,
        maxima=maxima_rows(content),
        best=best_effect(content),
        rate=metric_title(content["metric"]),
        settings=settings_text,
        failed=[cell for cell in content["cells"] if cell["failed"]],
    )
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def settings_text(settings: Record) -> str:
    """Settings as a reader writes them."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def best_effect(content: Record) -> Record | None:
    """The cell in which treatment minus control is largest, with that effect."""
    found = [
        {"settings": cell["settings"], "in_domain": row["in_domain"], **row["effect"]}
        for cell in content["cells"]
        for row in cell["arms"]
        if row["effect"] and is_number(row["effect"]["value"])
    ]
    return max(found, key=lambda row: row["value"], default=None)


def maxima_rows(content: Record) -> list[tuple[str, ...]]:
    """Arm, its largest rate, shift from the base, in-domain rate, coverage and settings there."""
    return [
        (
            row["arm"],
            _number(row["value"]),
            words.signed(row["shift"]["value"]) if row["shift"] else words.NO_VALUE,
            _number(row["in_domain"]),
            _number(row["coverage"]),
            settings_text(row["settings"]),
        )
        for row in content["maxima"]
    ]


def _number(value: Any) -> str:
    return f"{value:.2f}" if is_number(value) else words.NO_VALUE


# The heat maps ------------------------------------------------------------------------------------


def heat_maps(content: Record) -> dict[str, Figure]:
    """The effect; and of every arm its rate off the trained domain and in it, and coverage."""
    metric = content["metric"]
    arms = list(dict.fromkeys(row["arm"] for cell in content["cells"] for row in cell["arms"]))
    trained = [arm for arm in arms if arm != BASE]
    of = {
        "effect": ("effect", trained[:1], None),
        "off-domain": ("value", trained, WHOLE if metric in PROPORTIONS else None),
        "in-domain": ("in_domain", trained, None),
        "coverage": ("coverage", trained, WHOLE),
    }
    return {name: _figure(content, *how) for name, how in of.items()}


def _figure(
    content: Record, measure: str, arms: list[str], limits: tuple[float, float] | None
) -> Figure:
    """A panel for each arm and each combination of the settings after the second."""
    names = list(content["over"])
    rest = list(itertools.product(*(content["over"][name] for name in names[2:])))
    values = [_value(row, measure) for cell in content["cells"] for row in cell["arms"]]
    scale = limits or _limits([value for value in values if value is not None])
    rows = arms if len(names) > 1 else [None]
    panels = []
    for arm, others in itertools.product(rows, rest):
        fixed = dict(zip(names[2:], others, strict=True))
        title = ", ".join(filter(None, [_title(arm, measure, content), settings_text(fixed)]))
        squares = _squares(content, measure, [arm] if arm else arms, fixed)
        panels.append(Panel(title or "All arms", _heat(squares, content, scale)))
    count = len(content["over"][names[0]])
    width = max(200, min(WIDEST * count, 420))
    no_legend: list[Key] = []
    return Figure(
        panels, no_legend, width, columns=len(rest) if 1 < len(rest) <= MOST_BESIDE else 3
    )


def _title(arm: str | None, measure: str, content: Record) -> str:
    if measure == "effect":
        return f"treatment minus {content['control']}"
    return arm or ""


def _value(row: Record, measure: str) -> float | None:
    value = (row["effect"] or {}).get("value") if measure == "effect" else row[measure]
    return value if is_number(value) else None


def _limits(values: list[float]) -> tuple[float, float]:
    """From 0 to 1 where all values lie there, else as far below 0 as above it."""
    if all(0 <= value <= 1 for value in values):
        return WHOLE
    most = max(map(abs, values))
    return -most, most


def _squares(content: Record, measure: str, arms: list[str], fixed: Record) -> list[Record]:
    """The squares of a heat map: of one arm over two settings, or of all arms over one."""
    first, *more = content["over"]
    squares = []
    for cell in content["cells"]:
        if any(cell["settings"][name] != value for name, value in fixed.items()):
            continue
        for arm in arms:
            row = next((row for row in cell["arms"] if row["arm"] == arm), None)
            value = _value(row, measure) if row else None
            squares.append(
                {
                    "x": str(cell["settings"][first]),
                    "y": str(cell["settings"][more[0]]) if more else label(arm),
                    "value": value,
                    "text": "failed" if cell["failed"] else _number(value),
                    "arm": label(arm),
                    "cell": settings_text(cell["settings"]),
                }
            )
    return squares


def _heat(squares: list[Record], content: Record, limits: tuple[float, float]) -> alt.LayerChart:
    import altair as alt

    first, *more = content["over"]
    low, high = limits
    x = alt.X("x:O", title=first, sort=None, axis=alt.Axis(labelAngle=0, grid=False))
    y = alt.Y("y:O", title=more[0] if more else None, sort=None, axis=alt.Axis(grid=False))
    colours = ["#fff4e8", "#b34a00"] if low == 0 else ["#5b4a9e", "#f7f7f7", "#b34a00"]
    domain = [low, high] if low == 0 else [low, 0, high]
    colour = alt.Color("value:Q", scale=alt.Scale(domain=domain, range=colours), legend=None)
    tips = {"arm": "arm", "cell": "settings", "text": "value"}
    common: dict[str, Any] = {
        "x": x,
        "y": y,
        "tooltip": [alt.Tooltip(f"{name}:N", title=title) for name, title in tips.items()],
    }
    known = [square for square in squares if square["value"] is not None]
    dark = [s for s in known if abs(s["value"]) > 0.65 * high]
    light = [s for s in squares if s not in dark]
    layers = [
        alt.Chart(alt.InlineData(values=squares)).mark_rect(color="#eee").encode(**common),
        alt.Chart(alt.InlineData(values=known)).mark_rect().encode(color=colour, **common),
    ]
    for part, ink in ((light, "#222"), (dark, "white")):
        text = alt.Chart(alt.InlineData(values=part)).mark_text(fontSize=12, color=ink)
        layers.append(text.encode(text="text:N", **common))
    return alt.LayerChart(layer=layers, height=alt.Step(ROW))


def _cells_table(content: Record) -> Record:
    """Every cell and arm."""
    from spillover.grids import flat

    rows = [
        {
            **{name: str(value) for name, value in cell["settings"].items()},
            **flat(cell, row),
            "interval": [row["low"], row["high"]],
            "effect_interval": [(row["effect"] or {}).get(end) for end in ("low", "high")],
        }
        for cell in content["cells"]
        for row in cell["arms"]
    ]
    columns = (
        *(Column(name, name) for name in content["over"]),
        Column("arm", "arm"),
        Column("value", "off-domain", "number"),
        Column("interval", "95% interval", "span"),
        Column("effect", f"minus {content['control']}", "signed"),
        Column("effect_interval", "95% interval", "span"),
        Column("shift", "minus base", "signed"),
        Column("in_domain", "in-domain", "number"),
        Column("coverage", "coverage", "share"),
        Column("loss", "last loss", "number"),
    )
    return table(rows, columns, (*content["over"], "arm"), page=PAGE)
