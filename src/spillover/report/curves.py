"""Rates along training: a line for every seed of the treatment, and the mean of every arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spillover.report.figure import PROPORTIONS, metric_title
from spillover.report.focus import BASE, Focus, Record, context_of, group_of, is_number
from spillover.report.strip import Key, label

if TYPE_CHECKING:
    import altair as alt

    from spillover.report import ReportData

HEIGHT = 220


def along_training(data: ReportData, about: Focus, key: Sequence[Key]) -> dict[str, alt.LayerChart]:
    """A chart per domain and split, by its title; none where arms have one checkpoint only."""
    places = [
        ("In-domain", "in", "test"),
        ("In-domain (dev questions)", "in", "dev"),
        ("Off-domain", "off", "test"),
        ("Off-domain (dev questions)", "off", "dev"),
    ]
    made = {}
    for title, domain, split in places:
        context = context_of(data, about, domain)
        rows = [
            row
            for row in data.rate_records
            if (row["domain"], row["split"], row["context"]) == (domain, split, context)
            and row["metric"] == about.metric
            and group_of(row) is None
            and row["arm"] != BASE
        ]
        if len({row["step"] for row in rows}) > 1:
            made[title] = _lines(rows, about, key)
    return made


def _lines(rows: Sequence[Record], about: Focus, key: Sequence[Key]) -> alt.LayerChart:
    import altair as alt

    names, colours = [label(k.name) for k in key], [k.colour for k in key]
    marks = {
        "x": alt.X("step:Q", title="steps of training", axis=alt.Axis(tickMinStep=1)),
        "y": alt.Y(
            "value:Q",
            title=metric_title(about.metric),
            scale=alt.Scale(domain=[0, 1]) if about.metric in PROPORTIONS else {},
        ),
        "color": alt.Color("arm:N", scale=alt.Scale(domain=names, range=colours)),
        "tooltip": [alt.Tooltip(f"{name}:N") for name in ("arm", "seed", "step", "value")],
    }
    seeds = alt.Chart(alt.InlineData(values=_per_seed(rows, about.treatment)))
    means = alt.Chart(alt.InlineData(values=_means(rows)))
    layers: list[Any] = [
        seeds.mark_line(strokeWidth=1, opacity=0.45).encode(detail="seed:N", **marks),
        means.mark_line(strokeWidth=2.5, point=True).encode(**marks),
    ]
    if about.step is not None:
        chosen = alt.Chart(alt.InlineData(values=[{"step": about.step}]))
        layers.insert(0, chosen.mark_rule(color="#999", strokeDash=[3, 3]).encode(x=marks["x"]))
    return alt.LayerChart(layer=layers, height=HEIGHT)


def _means(rows: Sequence[Record]) -> list[Record]:
    return [
        {
            "arm": label(row["arm"]),
            "seed": "mean",
            "step": row["step"],
            "value": _seen(row["value"]),
        }
        for row in rows
        if is_number(row["value"])
    ]


def _per_seed(rows: Sequence[Record], arm: str) -> list[Record]:
    return [
        {"arm": label(arm), "seed": str(seed), "step": row["step"], "value": _seen(value)}
        for row in rows
        if row["arm"] == arm
        for seed, value in enumerate(row["per_seed"])
        if is_number(value)
    ]


def _seen(value: float) -> float:
    """Rounded to what can be seen."""
    return round(float(value), 5)
