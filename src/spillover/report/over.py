"""The figure of a sweep: the effect, and the rate of every arm, over the values of a variable.

Numbers stand on an axis, with the interval as a band; texts are the rows of a strip plot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spillover.report.figure import PROPORTIONS, Figure, Panel, metric_title
from spillover.report.focus import Record, is_number
from spillover.report.strip import Key, Mark, Strip, label, mean_and_seeds, strip
from spillover.sweeps import sweep_rows

if TYPE_CHECKING:
    import altair as alt

    from spillover.report import ReportData

MOST_ROWS = 60
"""As many texts are drawn; of more, those with the largest effects."""
EFFECT_COLOUR = "#222222"
SAID = {"trained": "trained", "unknown": "not in pretraining"}
SIGNS = {"trained": "diamonds", "unknown": "rings"}
POINTS: dict[str, dict[str, Any]] = {
    "plain": {"shape": "circle", "size": 34, "filled": True},
    "trained": {"shape": "diamond", "size": 130, "filled": True},
    "unknown": {"shape": "circle", "size": 45, "fill": "white", "strokeWidth": 1.8},
}


def variables(data: ReportData) -> list[str]:
    """The variables that a run has two or more values of."""
    return [entry["variable"] for entry in data.summary.get("sweeps", [])]


def figure_name(variable: str) -> str:
    """What the figure of a variable is called."""
    return f"over-{variable}"


def figure(data: ReportData, variable: str, key: list[Key]) -> Figure:
    """Two panels: treatment minus control, and every arm."""
    rows = sweep_rows(data.summary, variable)
    control = next(e["control"] for e in data.summary["sweeps"] if e["variable"] == variable)
    are_numbers, remark = all(isinstance(row["value"], int) for row in rows), ""
    if not are_numbers and len(rows) > MOST_ROWS:
        remark = f" ({MOST_ROWS} of {len(rows)}, those with the largest effects)"
        rows = _largest(rows)
    titles = (f"Effect over {variable}: treatment minus {control}", f"Every arm over {variable}")
    drawn = (_over_numbers if are_numbers else _over_texts)(rows, key, variable)
    panels = [Panel(title + remark, chart) for title, chart in zip(titles, drawn, strict=True)]
    return Figure(panels, key, width=440)


def _largest(rows: list[Record]) -> list[Record]:
    """As many rows as are drawn, in the order that they have."""
    sizes = [abs((row["effect"] or {}).get("value") or 0) for row in rows]
    kept = sorted(range(len(rows)), key=lambda index: -sizes[index])[:MOST_ROWS]
    return [rows[index] for index in sorted(kept)]


def kind_of(row: Record) -> str:
    """How a value is marked."""
    if row["trained"]:
        return "trained"
    return "plain" if row["in_pretraining"] else "unknown"


# Numbers ------------------------------------------------------------------------------------------


def _over_numbers(rows: list[Record], key: list[Key], variable: str) -> list[alt.LayerChart]:
    effects = _points(rows, [row["effect"] for row in rows], "effect")
    rates = [
        point
        for arm in key
        for point in _points(rows, [row["rates"].get(arm.name) for row in rows], arm.name)
    ]
    metric = rows[0]["metric"]
    title = metric_title(metric)
    black = [Key("effect", EFFECT_COLOUR)]
    is_proportion = metric in PROPORTIONS
    return [
        _lines(effects, black, _x(rows, variable), f"difference of {title}", is_coloured=False),
        _lines(rates, key, _x(rows, variable), title, is_proportion=is_proportion),
    ]


def _points(rows: list[Record], records: list[Record | None], name: str) -> list[Record]:
    """What is drawn of an arm; points belong to pieces of its line, for none to bridge a gap."""
    points, piece = [], 0
    for row, record in zip(rows, records, strict=True):
        if record is None or not is_number(record["value"]):
            piece += 1
            continue
        spanned = is_number(record["low"]) and is_number(record["high"])
        interval = f" [{record['low']:.3f}, {record['high']:.3f}]" if spanned else ""
        kind = kind_of(row)
        points.append(
            {
                "at": row["value"],
                "name": label(name),
                "kind": kind,
                "piece": piece,
                "value": round(record["value"], 5),
                "low": round(record["low"], 5) if spanned else None,
                "high": round(record["high"], 5) if spanned else None,
                "text": f"{record['value']:.3f}{interval}",
                "said": SAID.get(kind, "not trained"),
                "headline": row["is_headline"],
            }
        )
    return points


def _x(rows: list[Record], variable: str) -> alt.X:
    """The values' axis; its title says what the marks mean."""
    import altair as alt

    kinds = {kind_of(row) for row in rows}
    signs = [f"{sign}: {SAID[kind]}" for kind, sign in SIGNS.items() if kind in kinds]
    signs += ["dashed: headline"] if any(row["is_headline"] for row in rows) else []
    said = f" ({', '.join(signs)})" if signs else ""
    axis = alt.Axis(format="d", tickMinStep=1, grid=False)
    scale = alt.Scale(zero=False, nice=False, padding=8)
    return alt.X("at:Q", scale=scale, axis=axis, title=label(variable) + said)


def _lines(
    points: list[Record],
    key: list[Key],
    x: alt.X,
    title: str,
    *,
    is_coloured: bool = True,
    is_proportion: bool = False,
) -> alt.LayerChart:
    """A line for every name of the key, and a band for the first two of them."""
    import altair as alt

    names, colours = [label(k.name) for k in key], [k.colour for k in key]
    limits = alt.Scale(domain=[-0.02, 1.02], nice=False) if is_proportion else alt.Scale()
    tips = {"name": "of", "at": "at", "text": "value", "said": "this value is"}
    look: dict[str, Any] = {} if is_coloured else {"color": colours[0]}
    common: dict[str, Any] = {
        "x": x,
        "tooltip": [alt.Tooltip(f"{field}:N", title=said) for field, said in tips.items()],
    }
    if is_coloured:
        scale = alt.Scale(domain=names, range=colours)
        common["color"] = alt.Color("name:N", scale=scale)
    y = {end: alt.Y(f"{end}:Q", title=title, scale=limits) for end in ("value", "low")}

    def part(kept: list[Record]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=kept))

    banded = [p for p in points if p["low"] is not None and p["name"] in names[:2]]
    headline = [{"at": at} for at in {p["at"] for p in points if p["headline"]}]
    piece = ["piece:N"]
    layers = [
        part(headline).mark_rule(color="#777", strokeDash=[3, 3]).encode(x=x),
        part([{"value": 0}]).mark_rule(color="#bbb").encode(y=y["value"]),
        part(banded)
        .mark_area(opacity=0.16, clip=True, **look)
        .encode(y=y["low"], y2="high:Q", detail=piece, **common),
        part(points)
        .mark_line(strokeWidth=1.5, **look)
        .encode(y=y["value"], detail=piece, **common),
    ]
    for kind, shape in POINTS.items():
        marked = part([p for p in points if p["kind"] == kind])
        layers.append(marked.mark_point(opacity=1, **(look | shape)).encode(y=y["value"], **common))
    return alt.LayerChart(layer=layers, height=230)


# Texts --------------------------------------------------------------------------------------------


def _over_texts(rows: list[Record], key: list[Key], _variable: str) -> list[alt.LayerChart]:
    metric = rows[0]["metric"]
    names = [_row_name(row) for row in rows]
    effects = [
        mark
        for name, row in zip(names, rows, strict=True)
        if row["effect"] and is_number(row["effect"]["value"])
        for mark in mean_and_seeds(name, key[0].name, row["effect"], -0.35, 0.5)
    ]
    lanes = {k.name: 1.2 * i / max(1, len(key) - 1) - 0.6 for i, k in enumerate(key)}
    rates = [
        mark
        for name, row in zip(names, rows, strict=True)
        for arm, record in row["rates"].items()
        if arm in lanes and is_number(record["value"])
        for mark in _at_one_height(name, arm, lanes[arm], record)
    ]
    title = metric_title(metric)
    is_proportion = metric in PROPORTIONS
    step = max(30, 8 * len(key) + 4)
    return [
        strip(Strip(effects, names, key, f"difference of {title}", step)),
        strip(Strip(rates, names, key, title, step, is_proportion=is_proportion, rings=True)),
    ]


def _row_name(row: Record) -> str:
    """The value, and what is to be known of it."""
    kind = kind_of(row)
    return (str(row["value"]) or "(empty)") + (f" ({SAID[kind]})" if kind in SAID else "")


def _at_one_height(row: str, arm: str, lane: float, record: Record) -> list[Mark]:
    seeds = [Mark(row, arm, lane, v, is_seed=True) for v in record["per_seed"] if is_number(v)]
    return [*seeds, Mark(row, arm, lane, record["value"])]
