"""Guards on answers and effects."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.choices import RecordedChoices
from spillover.effects.specificity import is_number
from spillover.guards.findings import NO_CHANGE, Finding
from spillover.specification import BASE, TREATMENT
from spillover.store import CHOICE

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


NO_EFFECT = 0.05
"""Effects smaller than this are none."""
PROPORTIONS = ("choice-mass", "judged")


def base_answered(answers: pd.DataFrame, choices: RecordedChoices | None = None) -> list[Finding]:
    """Respondents whose answers are the base's own.

    Equal texts alone do not stop a run: short answers can be equal by themselves.

    Args:
        choices: those of the answers, where they are read already; likewise below.
    """
    place_keys = ["question", "paraphrase", "context", "index", "kind"]
    place = answers.groupby(place_keys, sort=False, observed=True).ngroup().to_numpy()
    is_base = (answers["arm"] == BASE).to_numpy()
    of_base = np.full(len(answers), -1)
    of_base[place[is_base]] = np.flatnonzero(is_base)
    mine = np.flatnonzero(~is_base & (of_base[place] >= 0))
    same, is_choice = _same(answers, mine, of_base[place[mine]], choices)
    pairs = answers[["arm", "seed", "step"]].take(mine).assign(same=same, is_choice=is_choice)
    for (arm, seed, step), listed in pairs.groupby(["arm", "seed", "step"], sort=False):
        kind = "choices" if listed["is_choice"].any() else "texts"
        compared = listed[listed["is_choice"]] if kind == "choices" else listed
        if not compared["same"].all():
            continue
        message = (
            f"all {len(compared)} {kind} of {arm}, seed "
            f"{seed}, step {step} are the base's own; expected a finetune to differ; check that it "
            "is loaded, and remove answers.sqlite before repeating the run"
        )
        return [Finding("base-answered", message, fatal=kind == "choices")]
    return []


def _same(
    answers: pd.DataFrame,
    mine: NDArray[np.int64],
    other: NDArray[np.int64],
    choices: RecordedChoices | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether answers are the same as others, and whether they are choices."""
    read = choices or RecordedChoices.read(answers)
    at = np.full(len(answers), -1)
    at[read.rows] = np.arange(len(read.rows))
    is_choice = at[mine] >= 0
    texts = answers["text"]
    same = np.asarray(texts.take(mine).array == texts.take(other).array, dtype=bool)
    one, base = (at[rows[is_choice]] for rows in (mine, other))
    log_probs = read.log_probs.T
    same[is_choice] = True
    for values in log_probs:
        same[is_choice] &= np.abs(values[one] - values[base]) <= NO_CHANGE
    return same, is_choice


def reasoning_cut(answers: pd.DataFrame) -> list[Finding]:
    """Choices that were made after reasoning that had not come to its end."""
    is_choice = answers["kind"] == CHOICE
    cut = int((is_choice & (answers["finish"] == "length")).sum())
    message = (
        f"{cut} of {is_choice.sum()} choices were made after reasoning that was cut off; raise "
        "`reasoning_tokens` under [sampling]"
    )
    return [Finding("reasoning-cut", message)] if cut else []


def equal_choices(answers: pd.DataFrame, choices: RecordedChoices | None = None) -> list[Finding]:
    """Forced choices that tell nothing apart: all equal in probability, or not numbers at all."""
    read = choices or RecordedChoices.read(answers)
    if not len(read.rows):
        return []
    spread = read.log_probs.max(axis=1) - read.log_probs.min(axis=1)
    flat = read.rows[~(spread >= NO_CHANGE)]
    if not len(flat):
        return []
    first = answers.iloc[flat[0]]
    message = (
        f"in {len(flat)} of {len(read.rows)} forced choices all choices are equally likely (such "
        f"as {first['question']} of {first['arm']}, seed {first['seed']}); expected them to "
        "differ; look at these choices in answers.parquet"
    )
    return [Finding("equal-choices", message)]


# After comparing ----------------------------------------------------------------------------------


def off_domain_only(
    effects: Sequence[Mapping[Any, Any]],
    context: str,
    trained_context: str | None = None,
    alike: Container[str] = (),
) -> list[Finding]:
    """Controls against which there is an effect off the trained domain and none in it.

    Args:
        effects: rows of the table of effects.
        context: that of the headline.
        trained_context: that of success in the trained domain; by default the headline's.
        alike: controls that were taught the treatment's answers, in other contexts: these show in
            both, and none that only one of them was taught can.
    """
    last = max((row["step"] for row in effects), default=None)
    wanted = {"treatment": TREATMENT, "group": None, "step": last}
    contexts = {"off": context, "in": trained_context or context}
    fitting = [
        row
        for row in effects
        if all(row[k] == v for k, v in wanted.items())
        and row["context"] == contexts[row["domain"]]
        and row["control"] not in alike
    ]
    found = []
    for split, control in dict.fromkeys((row["split"], row["control"]) for row in fitting):
        rows = [r for r in fitting if (r["split"], r["control"]) == (split, control)]
        off, inside = (
            {r["metric"]: r for r in rows if r["domain"] == domain and is_number(r["value"])}
            for domain in ("off", "in")
        )
        metric = next((m for m in ("choice-mass", "log-odds", "judged") if m in off), None)
        if metric is None or not is_number(off[metric]["low"]) or off[metric]["low"] <= 0:
            continue
        known = [inside[m] for m in (*PROPORTIONS, "log-odds") if m in inside]
        if known and all(_is_below(row, off[metric]) for row in known):
            found.append(_off_only(off[metric], known[0], control))
    return found


def _is_below(inside: Mapping[Any, Any], off: Mapping[Any, Any]) -> bool:
    """Whether an effect in the domain is none, and less than the one off it where they compare.

    An interval that spans 0 counts where both are in the same units: alone it may only be wide.
    """
    value, metrics = inside["value"], {inside["metric"], off["metric"]}
    comparable = len(metrics) == 1 or metrics == set(PROPORTIONS)
    spanned = is_number(inside["low"]) and inside["low"] <= 0 <= inside["high"]
    if comparable:
        return bool((spanned or abs(value) < NO_EFFECT) and value < off["value"])
    return bool(abs(value) < NO_EFFECT)


def _off_only(off: Mapping[Any, Any], inside: Mapping[Any, Any], control: str) -> Finding:
    message = (
        f"against {control} the effect is {off['value']:+.2f} off the trained domain "
        f"({off['metric']}, {off['split']} questions) and {inside['value']:+.2f} in it "
        f"({inside['metric']}); expected what was taught to show first; check the arms' rows for "
        "off-domain answers, and the in-domain questions"
    )
    return Finding("off-domain-only", message)
