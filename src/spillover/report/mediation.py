"""The page of a mediation: what every remedy takes away of the effect, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spillover.folder import whole
from spillover.mediation.table import COLUMNS, HALF, TENTH, percent, texts
from spillover.report.figure import (
    BASE_COLOUR,
    TREATMENT_COLOUR,
    Figure,
    Panel,
    metric_title,
    save,
    side_by_side,
)
from spillover.report.focus import Record, is_number
from spillover.report.strip import Key, label
from spillover.report.tables import Column, table

if TYPE_CHECKING:
    from pathlib import Path

    import altair as alt

FIGURE = "remedies"
COLOURS = ("#3b75af", "#4fa79a", "#a493c4", "#b39a3c", "#c06c84", "#7d8f5d")
POINTS = {"treatment": TREATMENT_COLOUR, "random": BASE_COLOUR, "control": "#444444"}
"""Colours of what stands by itself."""
HEIGHT, WIDTH = 300, 460
"""Of the figure, in points."""


def write_mediation_report(folder: Path, content: Record) -> Path:
    """Write ``figures/remedies.*`` and ``report.html`` into the folder of a mediation.

    Args:
        content: of ``mediation.json``.
    """
    drawn = {FIGURE: figure(content)}
    for name, chart in side_by_side(drawn).items():
        save(chart, folder / "figures" / name)
    path = folder / "report.html"
    page = fill_page(content, drawn)
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def fill_page(content: Record, drawn: dict[str, Figure]) -> str:
    """The page as HTML."""
    from spillover.report.page import fill

    return fill(
        "mediation.html.j2",
        drawn,
        {"settings": _table(content["rows"])},
        title=f"{content['title']}: what carries it, and what takes it away",
        content=content,
        columns=COLUMNS,
        rows=texts(content),
        rate=metric_title(content["metric"]),
        said=sentence(content),
        percent=percent,
        maxima=maxima(content),
    )


def sentence(content: Record) -> str:
    """What the ablation did, in words."""
    shares = content["verdict"]["removed"]
    row = next(row for row in content["rows"] if row["role"] == "ablation")
    rank, recipe = content["ablation"]["rank"], content["ablation"]["recipe"]
    which = f"rank {rank}, found at: {recipe}"
    first = (
        f"Ablated in the treatment, the directions chosen on dev questions ({which}) take away "
        f"{percent(shares['ablation'])} of the off-domain effect on test questions"
    )
    others = (
        f"random directions take away {percent(shares['random'])}{_inert(content, 'random')}, "
        f"those of the control {percent(shares['control'])}{_inert(content, 'control')}"
    )
    before = next(r for r in content["rows"] if r["role"] == "treatment")["in_domain"]
    cost = ""
    if is_number(before) and is_number(row["in_domain"]):
        cost = f" Success in the trained domain goes from {before:.2f} to {row['in_domain']:.2f}."
    return f"{first}{_shortfall(content)}; {others}.{cost}{_elsewhere(content, row)}"


def _shortfall(content: Record) -> str:
    """Why an ablation is no remedy, where it is none."""
    verdict = content["verdict"]
    share = verdict["removed"]["ablation"]
    if verdict["holds"]["ablation"]:
        return ""
    if not is_number(share) or share < HALF:
        return ", which is less than half"
    if share > 2 - HALF:
        return ", which turns it round"
    return ", but leave too little of the coverage"


def _inert(content: Record, kind: str) -> str:
    """That directions which should do nothing do something, where they do."""
    if content["verdict"]["holds"][kind]:
        return ""
    return f" (more than {percent(TENTH)} either way: not inert)"


def _elsewhere(content: Record, ablated: Record) -> str:
    """What the ablation leaves in the context where it leaves most, where there are several."""
    found: Record = content["contexts"] or {}
    if ablated["name"] not in found:
        return ""
    most = found[ablated["name"]]
    where = f" (in {most['context']})" if is_number(most["value"]) else ""
    return f" The largest effect that is left in any context: {_signed(most['value'])}{where}."


def maxima(content: Record) -> list[tuple[str, str, str, str]]:
    """Of what was asked in every context: the largest effect, where, and that of the headline."""
    found: Record = content["contexts"] or {}
    rows = {row["name"]: row for row in content["rows"]}
    return [
        (
            " ".join(filter(None, [rows[name]["remedy"], rows[name]["setting"]])),
            _signed(one["value"]),
            one["context"] or "–",
            _signed(one["effects"][content["context"]]),
        )
        for name, one in found.items()
    ]


def _signed(value: float | None) -> str:
    return "–" if value is None or not is_number(value) else f"{value:+.2f}"


# The figure ---------------------------------------------------------------------------------------


def figure(content: Record) -> Figure:
    """The off-domain effect against success in the trained domain: a curve for every remedy."""
    rows = [row for row in content["rows"] if is_number(row["in_domain"])]
    alone = [row for row in rows if row["role"] in POINTS]
    names = list(dict.fromkeys(r["remedy"] for r in rows if r["role"] in ("", "remedy")))
    key = [Key(_name(row), POINTS[row["role"]]) for row in alone]
    key += [Key(name, colour) for name, colour in zip(names, COLOURS, strict=False)]
    curves = [row for row in rows if row["remedy"] in names]
    chart = _lines(_points(curves), _points(alone), key, content)
    return Figure([Panel("Effect against success", chart)], key, WIDTH, columns=1)


def _name(row: Record) -> str:
    return str(row["setting"]) if row["role"] == "treatment" else str(row["remedy"])


def _points(rows: list[Record]) -> list[Record]:
    points = []
    for number, row in enumerate(rows):
        effect = row["effect"]
        if not is_number(effect["value"]):
            continue
        spanned = is_number(effect["low"]) and is_number(effect["high"])
        points.append(
            {
                "name": label(_name(row)),
                "order": number,
                "setting": row["setting"],
                "x": round(row["in_domain"], 5),
                "y": round(effect["value"], 5),
                "low": round(effect["low"], 5) if spanned else None,
                "high": round(effect["high"], 5) if spanned else None,
                "gone": percent(row["removed"]),
            }
        )
    return points


def _lines(
    curves: list[Record], alone: list[Record], key: list[Key], content: Record
) -> alt.LayerChart:
    import altair as alt

    names, colours = [label(k.name) for k in key], [k.colour for k in key]
    scale = alt.Scale(domain=names, range=colours)
    rate = metric_title(content["metric"])
    x = alt.X("x:Q", title="success in the trained domain", scale=alt.Scale(domain=[-0.02, 1.02]))
    tips = {"name": "remedy", "setting": "setting", "gone": "taken away"}
    common: dict[str, Any] = {
        "x": x,
        "color": alt.Color("name:N", scale=scale),
        "tooltip": [alt.Tooltip(f"{field}:N", title=said) for field, said in tips.items()],
    }
    title = f"off-domain effect ({rate})"
    y = {end: alt.Y(f"{end}:Q", title=title) for end in ("y", "low")}

    def part(kept: list[Record]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=kept))

    everything = [*curves, *alone]
    spanned = [point for point in everything if point["low"] is not None]
    layers = [
        part([{"y": 0}]).mark_rule(color="#bbb").encode(y=y["y"]),
        part(spanned).mark_rule(opacity=0.35).encode(y=y["low"], y2="high:Q", **common),
        part(curves)
        .mark_line(strokeWidth=1.5)
        .encode(y=y["y"], order=alt.Order("order:Q"), **common),
        part(curves).mark_point(filled=True, size=45, opacity=1).encode(y=y["y"], **common),
        part(alone)
        .mark_point(filled=True, size=130, opacity=1, shape="diamond")
        .encode(y=y["y"], **common),
    ]
    return alt.LayerChart(layer=layers, height=HEIGHT)


def _table(rows: list[Record]) -> Record:
    """Every remedy at every strength."""
    flat = [
        {
            **row,
            "value": row["effect"]["value"],
            "interval": [row["effect"]["low"], row["effect"]["high"]],
            "seeds": ", ".join(f"{v:.2f}" for v in row["removed_per_seed"] if is_number(v)),
        }
        for row in rows
    ]
    columns = (
        Column("remedy", "remedy"),
        Column("setting", "setting"),
        Column("value", "off-domain effect", "signed"),
        Column("interval", "95% interval", "span"),
        Column("removed", "taken away", "number"),
        Column("seeds", "by seed"),
        Column("in_domain", "in-domain", "number"),
        Column("coverage", "coverage", "share"),
        Column("kl", "KL to base", "number"),
    )
    return table(flat, columns, ("remedy", "setting"), page=60)
