"""The charts: every arm, every topic, and the trait beside the placebo, always with every seed.

All three are strip plots of one form: a large mark for the mean (with its interval, where there is
one) and a small dot for each seed. A figure is made of panels, single views whose width follows the
page; on disk and in notebooks the panels stand side by side.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from spillover.report import over
from spillover.report.curves import along_training
from spillover.report.figure import (
    BASE_COLOUR,
    CONTROL_COLOURS,
    PROPORTIONS,
    TREATMENT_COLOUR,
    Figure,
    Panel,
    metric_title,
    side_by_side,
)
from spillover.report.focus import (
    BASE,
    Focus,
    Record,
    context_of,
    effects_like,
    focus,
    is_number,
    rates_like,
    rows_at_step,
    why_no_value,
)
from spillover.report.strip import Key, Mark, Strip, mean_and_seeds, strip

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from spillover.report import ReportData

PLACEBO_COLOUR = "#cc79a7"
SPECIFICITY_COLOUR = "#222222"

MOST_TOPICS = 40
"""As many topics are drawn in one panel; of more, those where the arms differ most."""


def charts(data: ReportData) -> dict[str, alt.ConcatChart]:
    """The charts of a run, each with its panels side by side: ``arms``, ``topics`` and so on.

    Where arms were asked at several checkpoints, ``training`` too.
    """
    return side_by_side(figures(data))


def figures(data: ReportData) -> dict[str, Figure]:
    """The panels and the legend of each figure, by its name."""
    about = focus(data)
    key = arm_key(data, about)
    curves = [Panel(*one) for one in along_training(data, about, key).items()]
    return {
        "arms": arms(data, about, key),
        "topics": topics(data, about, key),
        "specificity": specificity(data, about),
        **{over.figure_name(name): over.figure(data, name, key) for name in over.variables(data)},
        **({"training": Figure(curves, key)} if curves else {}),
    }


def arm_key(data: ReportData, about: Focus) -> list[Key]:
    """A colour for every arm: treatment first, then the headline's control, the base last."""
    seen = [*dict.fromkeys([*(data.rates["arm"] if len(data.rates) else ()), about.control])]
    controls = [arm for arm in seen if arm not in (about.treatment, BASE)]
    controls.sort(key=lambda arm: bool(arm != about.control))
    colours = itertools.cycle(CONTROL_COLOURS)
    return [
        Key(about.treatment, TREATMENT_COLOUR),
        *(Key(arm, colour) for arm, colour in zip(controls, colours, strict=False)),
        *([Key(BASE, BASE_COLOUR)] if BASE in seen else []),
    ]


# The figures --------------------------------------------------------------------------------------


def arms(data: ReportData, about: Focus, key: list[Key]) -> Figure:
    """Every arm's rate: off-domain, on the topics set apart, in free answers, and in-domain."""
    shown = []
    for title, domain, group, metric in (
        ("Off-domain", "off", None, about.metric),
        ("Off-domain, only topics apart", "off", "apart", about.metric),
        ("Off-domain, free answers", "off", None, "judged"),
        ("In-domain", "in", None, about.metric),
        ("In-domain, free answers", "in", None, "judged"),
    ):
        if metric == "judged" == about.metric and "free" in title:
            continue  # shown already: the headline itself is about free answers
        measured = replace(about, metric=metric)
        splits = [about.split, *sorted({"dev", "test"} - {about.split})]
        place = context_of(data, about, domain)
        found = [
            (split, rates_like(data, measured, domain, group, split=split, context=place))
            for split in splits
        ]
        split, rates = next((pair for pair in found if pair[1]), (about.split, {}))
        if rates or title == "Off-domain":
            remark = "" if split == about.split else f" ({split} questions)"
            remark += _elsewhere(data, about, domain)
            shown.append(Panel(title + remark, strip(_arms_strip(rates, key, metric))))
    return Figure(shown, [])


def _elsewhere(data: ReportData, about: Focus, domain: str) -> str:
    """Where a domain is looked at, if that is not the headline's context."""
    context = context_of(data, about, domain)
    return "" if context == about.context else f", in {context}"


def _arms_strip(rates: dict[str, Record], key: list[Key], metric: str) -> Strip:
    marks, notes = [], {}
    for arm in (entry.name for entry in key):
        rate = rates.get(arm)
        if rate is None or not is_number(rate["value"]):
            notes[arm] = why_no_value(rate)
        else:
            shown = _within_bounds(rate) if metric in PROPORTIONS else rate
            marks += mean_and_seeds(arm, arm, shown, top=-0.45, spread=0.55)
    return Strip(
        marks=marks,
        rows=[entry.name for entry in key],
        key=key,
        title=metric_title(metric),
        step=46,
        notes=notes,
        is_proportion=metric in PROPORTIONS,
    )


def _within_bounds(rate: Record) -> Record:
    """A rate whose interval is drawn as far as rates go."""
    bounds = {k: min(1.0, max(0.0, rate[k])) for k in ("low", "high") if is_number(rate[k])}
    return rate | bounds


def topics(data: ReportData, about: Focus, key: list[Key]) -> Figure:
    """Every off-domain topic's mean by arm and seed; topics set apart in a panel of their own."""
    means = topic_means(data, about)
    is_apart = means["group"] == "apart"
    parts = [("Topics", means)]
    if is_apart.any():
        parts = [
            ("Topics that never shared a document with the trained domain", means[is_apart]),
            ("Other topics", means[~is_apart]),
        ]
    shown = []
    for title, part in parts:
        names = _topic_order(part, about)
        remark = ""
        if len(names) > MOST_TOPICS:
            remark = f" ({MOST_TOPICS} of {len(names)}, where treatment and control differ most)"
            names = [*names[: MOST_TOPICS // 2], *names[-MOST_TOPICS // 2 :]]
        shown.append(Panel(title + remark, strip(_topics_strip(part, names, key, about.metric))))
    return Figure(shown, key)


def topic_means(data: ReportData, about: Focus) -> pd.DataFrame:
    """Columns arm, seed, group, topic, value: a mean over questions, paraphrases averaged first."""
    score = about.metric.replace("-", "_")
    grades = data.grades
    if grades.empty:
        return grades.reindex(columns=["arm", "seed", "group", "topic", "value"])
    chosen = (
        (grades["domain"] == "off")
        & (grades["split"] == about.split)
        & (grades["context"] == about.context)
    )
    grades = grades[chosen & grades[score].notna()]
    grades = rows_at_step(grades, about.step)
    cells = ["arm", "seed", "group", "topic"]
    grades = grades[[*cells, "question", score]].astype(
        dict.fromkeys(("arm", "group", "topic", "question"), "str")
    )
    grades["group"] = grades["group"].fillna("")
    by_question = grades.groupby([*cells, "question"], as_index=False)[score].mean()
    means: pd.DataFrame = by_question.groupby(cells, as_index=False)[score].mean()
    return means.rename(columns={score: "value"})


def _topic_order(means: pd.DataFrame, about: Focus) -> list[str]:
    """Topics by treatment minus control, the largest difference first."""
    by_arm = means.groupby(["topic", "arm"])["value"].mean().unstack("arm")
    by_arm = by_arm.reindex(columns=[about.treatment, about.control])
    difference = by_arm[about.treatment] - by_arm[about.control].fillna(0)
    return list(difference.sort_values(ascending=False, kind="stable").index)


def _topics_strip(means: pd.DataFrame, names: list[str], key: list[Key], metric: str) -> Strip:
    last = max(1, len(key) - 1)
    lanes = {entry.name: 1.2 * index / last - 0.6 for index, entry in enumerate(key)}
    means = means[means["topic"].isin(names) & means["arm"].isin(list(lanes))]
    marks = [
        Mark(topic, arm, lanes[arm], value, is_seed=True)
        for topic, arm, value in zip(means["topic"], means["arm"], means["value"], strict=True)
    ]
    overall = means.groupby(["topic", "arm"], as_index=False)["value"].mean()
    marks += [
        Mark(topic, arm, lanes[arm], value)
        for topic, arm, value in zip(
            overall["topic"], overall["arm"], overall["value"], strict=True
        )
    ]
    return Strip(
        marks=marks,
        rows=names,
        key=key,
        title=metric_title(metric),
        step=8 * len(key) + 4,
        is_proportion=metric in PROPORTIONS,
        nothing="no off-domain question has a score",
        rings=True,
    )


def specificity(data: ReportData, about: Focus) -> Figure:
    """How far trait and placebo moved against each control, and what the trait moved beyond."""
    key = {
        "log-odds": Key(f"{data.trait} (trait)", TREATMENT_COLOUR, "circle"),
        "placebo-log-odds": Key(f"{data.placebo_name} (placebo)", PLACEBO_COLOUR, "square"),
        "specificity": Key("specificity: trait minus placebo", SPECIFICITY_COLOUR, "diamond"),
    }
    shown = []
    for title, domain in (("Off-domain", "off"), ("In-domain", "in")):
        effects = {metric: effects_like(data, about, metric, domain) for metric in key}
        controls = dict.fromkeys(row["control"] for found in effects.values() for row in found)
        if controls or domain == "off":
            picture = _specificity_strip(effects, list(controls), key)
            shown.append(Panel(title + _elsewhere(data, about, domain), strip(picture)))
    return Figure(shown, list(key.values()))


def _specificity_strip(
    effects: dict[str, list[Record]], controls: list[str], key: dict[str, Key]
) -> Strip:
    marks = [
        mark
        for index, (metric, found) in enumerate(effects.items())
        for row in found
        if is_number(row["value"])
        for mark in mean_and_seeds(
            f"against {row['control']}", key[metric].name, row, 0.6 * index - 0.75, 0.2
        )
    ]
    drawn = {mark.row for mark in marks}
    rows = [f"against {control}" for control in controls]
    return Strip(
        marks=marks,
        rows=rows,
        key=list(key.values()),
        title="shift of log-odds (nats)",
        step=84,
        notes={row: "no shift has a value" for row in rows if row not in drawn},
        nothing="no shift of log-odds has a value",
    )
