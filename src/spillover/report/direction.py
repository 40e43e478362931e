"""The page of a direction: what it does to refusals, its tests, and every candidate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

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
from spillover.report.focus import Record, is_number
from spillover.report.page import fill
from spillover.report.strip import Key, Mark, Strip, label, strip
from spillover.report.tables import Column, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import altair as alt

SHOWN = 4
"""Prompts of a group whose answers are on the page; all are in answers.parquet."""
ROW, HEIGHT = 24, 230
"""Height of a row of the strip plot and of a chart of curves, in points."""
SCORES = {
    "bypass": "bypass: refusal score of dangerous prompts, ablated (nats)",
    "induce": "induce: refusal score of harmless prompts, added (nats)",
    "kl": "KL on harmless prompts, ablated (nats)",
    "complies": "complies: cosine with harmless prompts, ablated",
    "refuses": "refuses: cosine with dangerous prompts, added",
}
COLOURS = (TREATMENT_COLOUR, *CONTROL_COLOURS)
KINDS = ("refused", "helpful", "other", "empty", "repeating")


def write_direction_report(folder: Path, content: Record, answers: Sequence[Record]) -> Path:
    """Write ``figures/*.png|svg|pdf`` and ``report.html`` of a direction into its folder.

    Args:
        content: of ``refusal.json``.
        answers: a row per answer.
    """
    drawn = {"refused": _refused(content), "curves": _curves(content)}
    for name, chart in side_by_side(drawn).items():
        save(chart, folder / "figures" / name)
    about = content["direction"]
    page = fill(
        "direction.html.j2",
        drawn,
        {
            "rates": _rates_table(content),
            "changes": _changes_table(content),
            "capabilities": _capabilities_table(content),
            "candidates": _candidates_table(content),
            "answers": _answers_table(answers),
        },
        title=f"Refusal in {content['model']}: is it one direction?",
        content=content,
        about=about,
        rule="the paper's rule" if about["rule"] == "tokens" else "cosines, without tokens",
        knows=any(row["helpful"] for row in content["rates"]),
        partial=any(not one["whole"] for one in about["candidates"]),
        shots=_shots(content),
        stability=_stability(about["resampled_cosine"]),
        controls=_controls(content),
        shown=SHOWN,
        manifest=json.dumps(_settings(content), indent=2, ensure_ascii=False),
    )
    path = folder / "report.html"
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def _stability(found: Record) -> str | None:
    if not is_number(found["mean"]):
        return None
    return (
        f"Computed anew from {found['resamples']} bootstrap resamples of the prompts, its cosine "
        f"with the direction is {found['mean']:.3f} on average; 95% lie in [{found['low']:.3f}, "
        f"{found['high']:.3f}]."
    )


def _controls(content: Record) -> str:
    told = [
        f"{name}: {', '.join(f'{value:+.2f}' for value in values)}"
        for name, values in content["control_cosines"].items()
        if values
    ]
    if not told:
        return "There were no controls."
    return (
        f"Cosines of the controls with the direction: {'; '.join(told)}. All controls are as long "
        "as it is. Activations vary most along what the model tells apart, so that a difference of "
        "means under shuffled labels may keep a part of the direction by chance."
    )


def _shots(content: Record) -> str:
    """Examples in the prompts of tasks, in words."""
    if not content["harness"]:
        return ""
    told = {name: task["shots"] for name, task in content["harness"]["tasks"].items()}
    if len(set(told.values())) > 1:
        return ", ".join(f"{name} with {shots}" for name, shots in told.items())
    return f"{next(iter(told.values()), 0)} in all tasks"


def _settings(content: Record) -> Record:
    names = ("model", "identity", "seed", "placement", "settings", "prompts", "tokens", "harness")
    return {name: content[name] for name in names}


# Figures ------------------------------------------------------------------------------------------


def _refused(content: Record) -> Figure:
    """Rates of refusal: a panel for each side, a row for each condition."""
    groups = list(dict.fromkeys((row["group"], row["dangerous"]) for row in content["rates"]))
    panels = []
    key: list[Key] = []
    for dangerous, title in ((True, "Dangerous prompts"), (False, "Harmless prompts")):
        names = [group for group, is_dangerous in groups if is_dangerous == dangerous]
        key = [Key(name, COLOURS[at % len(COLOURS)]) for at, name in enumerate(names)]
        rows = [row for row in content["rates"] if row["dangerous"] == dangerous]
        marks = []
        for row in rows:
            lane = (names.index(row["group"]) + 0.5) / len(names) * 1.4 - 0.7
            interval = (row["low"], row["high"])
            marks.append(Mark(row["condition"], row["group"], lane, row["refused"], *interval))
        listed = list(dict.fromkeys(row["condition"] for row in rows))
        step = ROW if len(names) == 1 else 34
        picture = Strip(marks, listed, key, "share refused", step, is_proportion=True)
        told = ", ".join(f"{COLOUR_NAMES[at]} {name}" for at, name in enumerate(names[:2]))
        panels.append(Panel(f"{title} ({told})" if len(names) > 1 else title, strip(picture)))
    return Figure(panels, [], 420, columns=2)


COLOUR_NAMES = ("orange:", "blue:")


def _curves(content: Record) -> Figure:
    """A panel for each score, over layers, a line for each position."""
    about = content["direction"]
    thresholds = content["settings"]["thresholds"]
    limits = {"induce": thresholds["induce"], "kl": thresholds["kl"]}
    names = [n for n in SCORES if any(is_number(one[n]) for one in about["candidates"])]
    positions = sorted({one["position"] for one in about["candidates"]}, reverse=True)
    key = [
        Key(f"position {at}", (*COLOURS, BASE_COLOUR)[number % 7])
        for number, at in enumerate(positions)
    ]
    panels = [Panel(SCORES[n], _lines(about, n, key, limits.get(n))) for n in names]
    return Figure(panels, key, 400, columns=min(3, len(panels)))


def _lines(about: Record, score: str, key: Sequence[Key], limit: float | None) -> alt.LayerChart:
    import altair as alt

    rows = [
        {
            "layer": one["layer"],
            "position": f"position {one['position']}",
            "value": round(float(one[score]), 6),
            "fate": label(one["discarded"] or "kept"),
        }
        for one in about["candidates"]
        if is_number(one[score])
    ]
    chosen = [
        row
        for row in rows
        if (row["layer"], row["position"]) == (about["layer"], f"position {about['position']}")
    ]
    x = alt.X(
        "layer:Q",
        title="layer",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(domain=[0, about["layers"] - 1]),
    )
    is_log = score == "kl" and all(row["value"] > 0 for row in rows)
    y = alt.Y(
        "value:Q",
        title=score,
        scale=alt.Scale(type="log") if is_log else alt.Scale(zero=False),
        axis=alt.Axis(tickCount=5),
    )
    names, colours = [k.name for k in key], [k.colour for k in key]
    colour = alt.Color("position:N", scale=alt.Scale(domain=names, range=colours))
    tips = [alt.Tooltip(f"{name}:N") for name in ("position", "layer", "value", "fate")]
    base = alt.Chart(alt.InlineData(values=rows))
    ring = alt.Chart(alt.InlineData(values=chosen)).mark_point(
        size=190, color="#222", strokeWidth=2, shape="circle"
    )
    layers: list[Any] = [
        base.mark_line(point=True, strokeWidth=2).encode(x=x, y=y, color=colour, tooltip=tips),
        ring.encode(x=x, y=y),
    ]
    if limit is not None and (limit > 0 or not is_log):
        rule = alt.Chart(alt.InlineData(values=[{"value": limit}]))
        layers.append(rule.mark_rule(color="#999", strokeDash=[4, 4]).encode(y=y))
    return alt.LayerChart(layer=layers, height=HEIGHT)


# Tables -------------------------------------------------------------------------------------------


def _rates_table(content: Record) -> Record:
    rows = [row | {"interval": [row["low"], row["high"]]} for row in content["rates"]]
    shown = [kind for kind in KINDS if kind == "refused" or any(row[kind] for row in rows)]
    columns = (
        Column("condition", "condition"),
        Column("group", "prompts"),
        Column("n", "number", "count"),
        *(Column(kind, kind, "number") for kind in shown),
        Column("interval", "refused, 95% interval", "span"),
    )
    return table(rows, columns, ("group",), page=40)


def _changes_table(content: Record) -> Record:
    base = content["changes"][0]
    names = ("ce_harmless", "ce_own")
    rows = []
    for row in content["changes"]:
        rises = {
            f"{name}_rise": row[name] - base[name]
            if is_number(row[name]) and is_number(base[name])
            else None
            for name in names
        }
        rows.append(row | rises)
    columns = (
        Column("condition", "condition"),
        Column("kl", "KL (nats)", "share"),
        Column("ce_harmless", "cross-entropy, harmless text", "share"),
        Column("ce_harmless_rise", "rise", "signed"),
        Column("ce_own", "own answers", "share"),
        Column("ce_own_rise", "rise", "signed"),
    )
    return table(rows, columns, (), page=40)


def _capabilities_table(content: Record) -> Record:
    rows = [row | {"interval": [row["low"], row["high"]]} for row in content["capabilities"]]
    order = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    rows.sort(key=lambda row: order.index((row["task"], row["metric"])))
    columns = (
        Column("task", "task"),
        Column("metric", "metric"),
        Column("condition", "condition"),
        Column("n", "questions", "count"),
        Column("value", "value", "number"),
        Column("stderr", "standard error", "number"),
        Column("change", "change", "signed"),
        Column("interval", "change, 95% interval", "span"),
    )
    return table(rows, columns, ("task", "metric", "condition"), page=40)


def _candidates_table(content: Record) -> Record:
    rows = [
        one | {"discarded": one["discarded"] or ""} for one in content["direction"]["candidates"]
    ]
    scores = [name for name in SCORES if any(is_number(row[name]) for row in rows)]
    columns = (
        Column("position", "position", "count"),
        Column("layer", "layer", "count"),
        Column("norm", "length", "number"),
        *(Column(name, name, "share" if name == "kl" else "signed") for name in scores),
        Column("discarded", "discarded by"),
    )
    return table(rows, columns, ("position", "discarded"), page=20)


def _answers_table(answers: Sequence[Record]) -> Record:
    first: dict[str, list[str]] = {}
    for row in answers:
        listed = first.setdefault(row["group"], [])
        if row["prompt"] not in listed and len(listed) < SHOWN:
            listed.append(row["prompt"])
    rows = [row for row in answers if row["prompt"] in first[row["group"]]]
    columns = (
        Column("condition", "condition"),
        Column("group", "prompts"),
        Column("prompt", "prompt", "long"),
        Column("answer", "answer", "long"),
        Column("is", "counted as"),
    )
    return table(rows, columns, ("condition", "group", "is"), page=20)
