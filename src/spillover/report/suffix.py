"""The page of a suffix: refusal, cosines over layers, heads and what they attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spillover.directions.suffix_study import (
    DANGEROUS,
    FOUND_ON,
    HARMLESS,
    HELD_OUT,
    NONE,
    RANDOM,
    SUFFIX,
    WITH_RANDOM,
    WITH_SUFFIX,
)
from spillover.folder import whole
from spillover.report.figure import (
    BASE_COLOUR,
    CONTROL_COLOURS,
    TREATMENT_COLOUR,
    Figure,
    Panel,
    save,
    side_by_side,
)
from spillover.report.focus import Record
from spillover.report.page import fill
from spillover.report.strip import Key, Mark, Strip, label, strip
from spillover.report.tables import Column, table

if TYPE_CHECKING:
    from pathlib import Path

    import altair as alt

COLOURS = {
    HARMLESS: CONTROL_COLOURS[1],
    DANGEROUS: CONTROL_COLOURS[0],
    WITH_SUFFIX: TREATMENT_COLOUR,
    WITH_RANDOM: BASE_COLOUR,
}
BEHIND = {NONE: DANGEROUS, SUFFIX: WITH_SUFFIX, RANDOM: WITH_RANDOM}
"""What has the colour of what, where prompts are told apart by what stands behind them."""
NAMED = {NONE: "no suffix", SUFFIX: "the suffix", RANDOM: "random suffixes"}
STEP = 62
"""Height of a row with four marks, in points."""


def write_suffix_report(folder: Path, content: Record) -> Path:
    """Write ``figures/*.png|svg|pdf`` and ``report.html`` of a suffix into its folder.

    Args:
        content: of ``suffix.json``.
    """
    drawn = suffix_figures(content)
    for name, chart in side_by_side(drawn).items():
        save(chart, folder / "figures" / name)
    path = folder / "report.html"
    page = fill(
        "suffix.html.j2",
        drawn,
        {"heads": _heads_table(content), "refusal": _refusal_table(content)},
        title=f"A suffix against refusal: {content['model']}",
        content=content,
        sentence=headline(content),
        parts=_part_rows(content),
        named=NAMED,
        kinds=_kind_rows(content),
    )
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def headline(content: Record) -> str:
    """What the suffix does, in a sentence or two."""
    rates = {row["suffix"]: row for row in content["refusal"] if row["prompts"] == HELD_OUT}
    cosines, near = content["at_layer"]["cosines"], content["at_layer"]["nearer_to"][WITH_SUFFIX]
    return (
        f"On {rates[NONE]['count']} held-out prompts the suffix takes the probability of refusal "
        f"from {rates[NONE]['probability']:.2f} to {rates[SUFFIX]['probability']:.2f}; with "
        f"{len(content['random'])} random suffixes of its length it is "
        f"{rates[RANDOM]['probability']:.2f} on average (median {rates[RANDOM]['median']:.2f}; "
        f"{rates[RANDOM]['lowered']} of them lower it below one half). At layer "
        f"{content['layer']} the cosine with the direction goes from {cosines[DANGEROUS]:.2f} "
        f"to {cosines[WITH_SUFFIX]:.2f} (harmless prompts: {cosines[HARMLESS]:.2f}), which is "
        f"nearer to {near} prompts."
    )


# The figures --------------------------------------------------------------------------------------


def suffix_figures(content: Record) -> dict[str, Figure]:
    """Refusal; cosines over layers; what the top heads add; what they attend to."""
    key = [Key(name, colour) for name, colour in COLOURS.items()]
    behind = [Key(NAMED[kind], COLOURS[name]) for kind, name in BEHIND.items()]
    figures = {
        "refusal": Figure(
            [Panel("Probability of refusal", _refusal(content, behind))], behind, 420
        ),
        "cosines": Figure(
            [Panel("Cosine with the direction over layers", _cosines(content, key))], key, 480
        ),
    }
    tops = [head for head in content["heads"] if head["top"]]
    if tops:
        adds = _strip(
            _adds(tops), [_name(head) for head in tops], key, "what a head adds along the direction"
        )
        figures["heads"] = Figure([Panel("What the top heads add", adds)], key, 420)
        figures["attention"] = Figure(
            [
                Panel(f"Attention to the {place}", _attention(content, key, place))
                for place in ("instruction", "suffix")
            ],
            key,
            340,
        )
    return figures


def _refusal(content: Record, key: list[Key]) -> alt.LayerChart:
    marks = [
        Mark(
            row["prompts"],
            NAMED[row["suffix"]],
            _lane(NAMED[row["suffix"]], key),
            row["probability"],
            *((row["least"], row["most"]) if row["suffix"] == RANDOM else ()),
        )
        for row in content["refusal"]
    ]
    rows = [name for name in (FOUND_ON, HELD_OUT, HARMLESS) if any(m.row == name for m in marks)]
    return _strip(marks, rows, key, "probability of refusal", is_proportion=True)


def _strip(
    marks: list[Mark], rows: list[str], key: list[Key], title: str, *, is_proportion: bool = False
) -> alt.LayerChart:
    picture = Strip(
        marks, rows, key, title, STEP, is_proportion=is_proportion, what="mean over prompts"
    )
    return strip(picture)


def _lane(name: str, key: list[Key]) -> float:
    """How low the marks of a name are in their row."""
    at = [one.name for one in key].index(name)
    return 1.2 * at / max(1, len(key) - 1) - 0.6


def _name(head: Record) -> str:
    return f"block {head['block']}, head {head['head']}"


def _adds(tops: list[Record]) -> list[Mark]:
    key = [Key(name, colour) for name, colour in COLOURS.items()]
    return [
        Mark(_name(head), name, _lane(name, key), value)
        for head in tops
        for name, value in head["adds"].items()
    ]


def _attention(content: Record, key: list[Key], place: str) -> alt.LayerChart:
    rows = list(dict.fromkeys(_name(row) for row in content["attention"]))
    marks = [
        Mark(_name(row), row["prompts"], _lane(row["prompts"], key), row[place])
        for row in content["attention"]
        if place == "instruction" or row["prompts"] in (WITH_SUFFIX, WITH_RANDOM)
    ]
    return _strip(marks, rows, key, "share of attention", is_proportion=True)


def _cosines(content: Record, key: list[Key]) -> alt.LayerChart:
    """A line for every set of prompts, with a band that holds four fifths of them."""
    import altair as alt

    points = [
        row | {"name": label(row["prompts"]), "text": f"{row['mean']:.3f}"}
        for row in content["cosines"]
    ]
    names, colours = [label(one.name) for one in key], [one.colour for one in key]
    axis = alt.Axis(format="d", tickMinStep=1, grid=False)
    x = alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(zero=False, nice=False))
    title = "cosine with the direction"
    tips = {"name": "prompts", "layer": "layer", "text": "cosine"}
    common: dict[str, Any] = {
        "x": x,
        "color": alt.Color("name:N", scale=alt.Scale(domain=names, range=colours)),
        "tooltip": [alt.Tooltip(f"{name}:N", title=said) for name, said in tips.items()],
    }
    at = alt.Chart(alt.InlineData(values=[{"layer": content["layer"]}]))
    drawn = alt.Chart(alt.InlineData(values=points))
    y = alt.Y("mean:Q", title=title)
    layers = [
        at.mark_rule(color="#777", strokeDash=[3, 3]).encode(x=x),
        drawn.mark_area(opacity=0.14).encode(y=alt.Y("low:Q", title=title), y2="high:Q", **common),
        drawn.mark_line(strokeWidth=1.8).encode(y=y, **common),
        drawn.mark_point(filled=True, size=30, opacity=1).encode(y=y, **common),
    ]
    return alt.LayerChart(layer=layers, height=260)


# The tables ---------------------------------------------------------------------------------------


def _heads_table(content: Record) -> Record:
    names = {f"adds-{at}": name for at, name in enumerate(COLOURS)}
    rows = [
        {"block": head["block"], "head": head["head"], "top": "yes" if head["top"] else "no"}
        | {key: head["adds"][name] for key, name in names.items()}
        for head in content["heads"]
    ]
    columns = (
        Column("block", "block", "count"),
        Column("head", "head", "count"),
        Column("top", "top"),
        *(Column(key, name, "signed") for key, name in names.items()),
    )
    return table(rows, columns, ("block", "top"))


def _refusal_table(content: Record) -> Record:
    rows = [
        row | {"suffix": NAMED[row["suffix"]], "range": [row["least"], row["most"]]}
        for row in content["refusal"]
    ]
    columns = (
        Column("prompts", "prompts"),
        Column("suffix", "behind them"),
        Column("count", "prompts", "count"),
        Column("probability", "probability of refusal", "share"),
        Column("median", "median over suffixes", "share"),
        Column("range", "least and most over suffixes", "span"),
        Column("refused", "share above one half", "number"),
    )
    return table(rows, columns)


def _part_rows(content: Record) -> list[tuple[str, ...]]:
    """What each part of the model adds, by prompts."""
    names = ("embedding", "heads", "bias", "mlp", "sum", "stream")
    return [
        (name, *(f"{parts[part]:+.2f}" for part in names))
        for name, parts in content["parts"].items()
    ]


def _kind_rows(content: Record) -> list[tuple[str, ...]]:
    """What answers to held-out prompts are, by their words."""
    kinds = list(content["answers"][0]["kinds"])
    head = ("suffix", *kinds)
    rows = [
        (row["text"] or "(none)", *(f"{row['kinds'][kind]:.2f}" for kind in kinds))
        for row in content["answers"]
    ]
    return [head, *rows]
