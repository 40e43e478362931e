"""The headline as a sentence, and what the numbers allow to be said about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from spillover.effects import specificity as specific
from spillover.report.focus import (
    BASE,
    FEWEST_SEEDS,
    Focus,
    Record,
    focus,
    headline_effect,
    is_number,
    rates_like,
    why_no_value,
)

if TYPE_CHECKING:
    from spillover.report import ReportData

DOMAIN_WORDS = {"off": "Off-domain", "in": "In-domain"}
NO_VALUE = "–"
MEASURES = {
    "choice-mass": "with choice mass",
    "judged": "at a judged rate of",
    "log-odds": "with log-odds in nats of",
    "specificity": "with specificity in nats of",
    "placebo-log-odds": "with placebo log-odds in nats of",
}


class Verdict(NamedTuple):
    """What the numbers allow to be said.

    Attributes:
        kind: ``good`` (specific against every control), ``caution`` or ``none`` (nothing can be
            concluded).
        short: in a few words.
        long: the numbers behind it.
    """

    kind: str
    short: str
    long: str


def headline(data: ReportData) -> str:
    """The headline effect in one plain sentence, with its interval and what it is a mean over."""
    effect, about = headline_effect(data), focus(data)
    if effect is None:
        return (
            f"No headline: {about.treatment} minus {about.control} has no value off-domain on "
            f"{about.split} questions."
        )
    rates = rates_like(data, about, about.domain, about.group)
    treatment, control = (_rate(rates.get(arm)) for arm in (about.treatment, about.control))
    where = DOMAIN_WORDS.get(about.domain, about.domain)
    where += " (only topics apart)" if about.group == "apart" else ""
    measure = MEASURES.get(about.metric, f"with {about.metric}")
    return (
        f"{where}, {about.treatment} gives {data.trait} answers {measure} {treatment}, "
        f"{about.control} {control}: effect {signed(effect['value'])} {interval(effect)}, "
        f"{number_of(effect['n_seeds'], 'seed')}, "
        f"{number_of(effect['n_questions'], 'question')}, "
        f"{number_of(effect['n_topics'], 'topic')}."
    )


def verdict(data: ReportData) -> Verdict:
    """Whether the headline effect is there, and whether it is specific to the trait."""
    effect, about = headline_effect(data), focus(data)
    if effect is None or not is_number(effect["value"]):
        return _without_value(data, about)
    if not has_interval(effect):
        return _without_interval(effect)
    if effect["low"] <= 0 <= effect["high"]:
        text = f"The interval {interval(effect)} includes 0."
        return Verdict("none", "Not distinguished from 0", text)
    found = specificity(data)
    return Verdict("good" if found.kind == "specific" else "caution", found.title, found.detail)


def _without_value(data: ReportData, about: Focus) -> Verdict:
    rates = rates_like(data, about, about.domain, about.group)
    why = [
        f"{arm}: {why_no_value(rates.get(arm))}"
        for arm in (about.treatment, about.control)
        if not is_number(rates.get(arm, {}).get("value"))
    ]
    text = f"On {about.metric}, {'; '.join(why)}." if why else "Both arms have a rate."
    return Verdict("none", "No value", text)


def _without_interval(effect: Record) -> Verdict:
    seeds = effect["n_seeds"]
    if is_number(seeds) and seeds < FEWEST_SEEDS:
        text = (
            f"An interval needs at least {FEWEST_SEEDS} seeds per arm, and there "
            f"{'is' if seeds == 1 else 'are'} {int(seeds)}. The effect describes these models; it "
            "says nothing of what other seeds would give."
        )
        return Verdict("none", f"No interval: fewer than {FEWEST_SEEDS} seeds", text)
    return Verdict("none", "No interval", "The effect comes without an interval.")


def specificity(data: ReportData) -> specific.Verdict:
    """Whether the shift is specific, against all controls."""
    names = specific.Words(data.trait, data.baseline_name, data.placebo_name)
    return specific.judge(comparisons(data), names)


def comparisons(data: ReportData) -> list[specific.Comparison]:
    """The shifts of trait and placebo against every control, and the base last."""
    about = focus(data)
    return specific.compare(data.effect_records, data.headline_control, about.context, about.step)


def shifts(data: ReportData) -> list[dict[str, Any]]:
    """The rows of the table of shifts: a control, three numbers, and what they say."""
    return [
        {
            "control": one.control,
            "says": "" if one.control == BASE else specific.TITLES[one.kind],
            "parts": [_part(effect) for effect in (one.trait, one.placebo, one.difference)],
        }
        for one in comparisons(data)
    ]


def _part(effect: specific.Effect | None) -> dict[str, str]:
    if effect is None or not is_number(effect["value"]):
        return {"value": NO_VALUE, "interval": "", "seeds": ""}
    seeds = [signed(value) for value in effect["per_seed"]]
    return {
        "value": signed(effect["value"]),
        "interval": interval(dict(effect)),
        "seeds": "  ".join(seeds),
    }


def has_interval(row: Record) -> bool:
    """Whether both ends of the interval are known."""
    return is_number(row["low"]) and is_number(row["high"])


def interval(row: Record) -> str:
    """An effect's interval, or that it has none."""
    return f"[{row['low']:.2f}, {row['high']:.2f}]" if has_interval(row) else "(no interval)"


def signed(value: float) -> str:
    """A difference with its sign; a dash where there is none."""
    return f"{value:+.2f}" if is_number(value) else NO_VALUE


def _rate(rate: Record | None) -> str:
    return f"{rate['value']:.2f}" if rate and is_number(rate["value"]) else NO_VALUE


def number_of(count: int | float, noun: str) -> str:
    """A number of things; the noun takes an s where they are not one."""
    if not is_number(count):
        return f"{NO_VALUE} {noun}s"
    return f"{int(count)} {noun}{'' if count == 1 else 's'}"


def notes(data: ReportData) -> list[str]:
    """What belongs beside the headline: what was missing, and how many settings were tried."""
    effect = headline_effect(data)
    found = [f"Model: {data.model}."]
    if effect and effect["missing"] and is_number(effect["worst"]) and is_number(effect["best"]):
        found.append(
            f"{int(effect['missing'])} answers could not be scored; with the most and the least "
            f"favourable values in their place the effect would be between "
            f"{signed(effect['worst'])} and {signed(effect['best'])}."
        )
    tried = data.summary.get("settings_tried")
    if is_number(tried):
        found.append(f"Settings tried on dev questions before: {tried}.")
    return found


def headroom(data: ReportData) -> str:
    """How far contexts alone move the base model, beside what the finetuning does."""
    about = focus(data)
    contexts = dict.fromkeys(data.rates["context"] if len(data.rates) else ())
    moved = {}
    for context in contexts:
        rate = rates_like(data, about, about.domain, about.group, context=context).get(BASE)
        if rate is not None and is_number(rate["value"]):
            moved[context] = rate["value"]
    if about.context not in moved or len(moved) < 2:
        return ""
    before = moved.pop(about.context)
    most = max(moved, key=lambda context: abs(moved[context] - before))
    treatment = rates_like(data, about, about.domain, about.group).get(about.treatment)
    return (
        f"Without any finetuning, the context {most} moves the base model from "
        f"{before:.2f} to {moved[most]:.2f}; finetuned as {about.treatment}, without such a "
        f"context, it is at {_rate(treatment)}."
    )


def sweep(data: ReportData, variable: str) -> str:
    """What is to be known of the values of a variable that a run swept over."""
    about = next(entry for entry in data.summary["sweeps"] if entry["variable"] == variable)
    values, trained, unknown = (about[key] for key in ("values", "trained", "not_in_pretraining"))
    found = [f"{len(values)} values."]
    if trained:
        found.append(f"In the treatment's rows: {_listed(trained)}.")
    if unknown:
        found.append(f"Nowhere in the model's pretraining: {_listed(unknown)}.")
    return " ".join(found)


MOST_LISTED = 12


def _listed(values: list[Any]) -> str:
    more = f" and {len(values) - MOST_LISTED} more" if len(values) > MOST_LISTED else ""
    return ", ".join(map(str, values[:MOST_LISTED])) + more
