"""What a report shows: the headline, the rates that belong to it, and why a value is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spillover.contexts import PLAIN
from spillover.judge import LOWEST_COVERAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from spillover.report import ReportData

Record = dict[str, Any]

BASE = "base"
"""Name of the arm that is the unfinetuned model."""

FEWEST_SEEDS = 3
"""With fewer seeds in some arm there is no interval."""


@dataclass(frozen=True)
class Focus:
    """What the headline is about, and so what the charts show."""

    treatment: str
    control: str
    domain: str
    split: str
    group: str | None
    context: str
    metric: str
    step: int | None
    """None: the last step of each arm."""
    trait: str | None
    """None: whatever trait there is."""


def headline_effect(data: ReportData) -> Record | None:
    """The effect that the summary names as the headline, or None."""
    wanted = data.summary.get("headline")
    return next((row for row in data.effect_records if row["id"] == wanted), None)


def focus(data: ReportData) -> Focus:
    """What the headline is about; where there is none, what it would be about."""
    row = headline_effect(data)
    if row is None:
        return _without_headline(data)
    return Focus(
        treatment=row["treatment"],
        control=row["control"],
        domain=row["domain"],
        split=row["split"],
        group=group_of(row),
        context=row["context"],
        metric=row["metric"],
        step=int(row["step"]),
        trait=row["trait"],
    )


def _without_headline(data: ReportData) -> Focus:
    columns = [list(data.rates[key]) if len(data.rates) else [] for key in ("metric", "split")]
    metrics, splits = columns
    return Focus(
        treatment="treatment",
        control=data.headline_control,
        domain="off",
        split="test" if "test" in splits or not splits else "dev",
        group=None,
        context=data.summary.get("headline_context", PLAIN),
        metric="choice-mass" if "choice-mass" in metrics or not metrics else str(metrics[0]),
        step=data.summary.get("step"),
        trait=None,
    )


def context_of(data: ReportData, about: Focus, domain: str) -> str:
    """The context that a domain is looked at in: success in the trained one has its own."""
    trained = data.summary.get("trained_context") if domain == "in" else None
    return str(trained or about.context)


def effects_like(
    data: ReportData, about: Focus, metric: str, domain: str | None = None
) -> list[Record]:
    """Effects of a metric on the focus's or a domain's questions; the headline's control first."""
    wanted = {
        "treatment": about.treatment,
        "domain": domain or about.domain,
        "split": about.split,
        "context": context_of(data, about, domain or about.domain),
        "metric": metric,
    }
    rows = [
        row
        for row in data.effect_records
        if all(row[name] == value for name, value in wanted.items())
        and group_of(row) == about.group
        and about.trait in (None, row["trait"])
        and about.step in (None, row["step"])
    ]
    last = max((row["step"] for row in rows), default=None)
    rows = [row for row in rows if row["step"] == last]
    return sorted(rows, key=lambda row: bool(row["control"] != about.control))


def rates_like(
    data: ReportData,
    about: Focus,
    domain: str,
    group: str | None = None,
    *,
    split: str | None = None,
    context: str | None = None,
) -> dict[str, Record]:
    """Rates of the focus's metric by arm, on its own or on other questions and context."""
    wanted = {
        "domain": domain,
        "split": split or about.split,
        "context": context or about.context,
        "metric": about.metric,
    }
    found = [
        row
        for row in data.rate_records
        if group_of(row) == group and all(row[name] == value for name, value in wanted.items())
    ]
    return {row["arm"]: row for row in at_step(found, about.step)}


def at_step(rows: Iterable[Record], step: int | None) -> list[Record]:
    """Of each arm the rows at a step of training; its last, where it was not asked at that one."""
    by_arm: dict[str, list[Record]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    kept = []
    for of_arm in by_arm.values():
        steps = {row["step"] for row in of_arm}
        wanted = step if step in steps else max(steps)
        kept += [row for row in of_arm if row["step"] == wanted]
    return kept


def rows_at_step(frame: pd.DataFrame, step: int | None) -> pd.DataFrame:
    """As `at_step`, of a table with the columns arm and step."""
    last = frame.groupby("arm")["step"].transform("max")
    wanted = frame["step"] == step
    has_wanted = wanted.groupby(frame["arm"]).transform("any")
    return frame[wanted | (~has_wanted & (frame["step"] == last))]


def records(frame: pd.DataFrame) -> list[Record]:
    """The rows of a frame as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def group_of(row: Record) -> str | None:
    """The group of questions that a row is about; None for all of them."""
    return row["group"] if isinstance(row["group"], str) else None


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    try:
        return value is not None and math.isfinite(value)  # type: ignore[arg-type]
    except TypeError:
        return False


def counts(missing: object) -> dict[str, int]:
    """The outcomes that did occur, with their counts."""
    items = missing.items() if isinstance(missing, dict) else ()
    return {str(name): int(count) for name, count in items if is_number(count) and count > 0}


def why_no_value(rate: Record | None) -> str:
    """Why a rate has no value, in a phrase."""
    if rate is None:
        return "not asked"
    missing = counts(rate["missing"])
    if is_number(rate["coverage"]) and rate["coverage"] < LOWEST_COVERAGE:
        return f"coverage {rate['coverage']:.2g}, below {LOWEST_COVERAGE}"
    if missing:
        return ", ".join(f"{count} {outcome}" for outcome, count in missing.items())
    return "nothing was scored"
