"""The tables of the page, as JSON that its script fills in.

A table is held by columns. A column of few different texts is held as its levels and a code per
row, so that thousands of answers stay small. What has no value is null, never 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spillover.judge import MOST_NATS, MOST_TOKENS
from spillover.report.focus import (
    BASE,
    Focus,
    Record,
    counts,
    focus,
    group_of,
    is_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from spillover.report import ReportData

FOLDED = ("treatment", "domain", "split", "group", "context", "step")
"""Columns that are left out, and named beside the caption, where they hold one value only."""

LABELS = ("trait", "baseline", "placebo")

MOST_TEXTS = 10_000
"""As many sampled answers are in the page, which a browser has to open; all are in a file."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        key: of the record.
        title: in the head of the table.
        kind: ``text``, ``long`` (keeps its line breaks), ``folded`` (long, closed at first),
            ``number``, ``share`` (may be tiny), ``signed``, ``count``, ``span`` (two numbers),
            ``seeds`` (a number per seed) or ``counts`` (by outcome).
    """

    key: str
    title: str
    kind: str = "text"


QUESTIONS = (
    Column("domain", "domain"),
    Column("split", "split"),
    Column("group", "topics"),
    Column("context", "context"),
    Column("step", "step", "count"),
    Column("metric", "metric"),
)
EFFECTS = (
    Column("treatment", "arm"),
    Column("control", "minus"),
    *QUESTIONS,
    Column("value", "effect", "signed"),
    Column("interval", "95% interval", "span"),
    Column("per_seed", "per seed", "seeds"),
    Column("missing", "missing", "count"),
    Column("bounds", "bounds", "span"),
    Column("n_seeds", "seeds", "count"),
    Column("n_questions", "questions", "count"),
    Column("n_topics", "topics", "count"),
)
RATES = (
    Column("arm", "arm"),
    *QUESTIONS,
    Column("value", "rate", "number"),
    Column("interval", "95% interval", "span"),
    Column("per_seed", "per seed", "seeds"),
    Column("coverage", "coverage", "share"),
    Column("missing", "missing", "counts"),
    Column("bounds", "bounds", "span"),
)
HEADROOM = (
    Column("context", "context"),
    Column("domain", "domain"),
    Column("value", "base model", "number"),
    Column("interval", "95% interval", "span"),
    Column("coverage", "coverage", "share"),
    Column("missing", "missing", "counts"),
)
BIMODALITY = (
    Column("domain", "domain"),
    Column("split", "split"),
    Column("context", "context"),
    Column("metric", "metric"),
    Column("step", "step", "count"),
    Column("n", "seeds", "count"),
    Column("dip", "dip", "number"),
    Column("p_value", "p-value", "number"),
)
TEXTS = (
    Column("arm", "arm"),
    Column("seed", "seed", "count"),
    Column("topic", "topic"),
    Column("question", "question"),
    Column("domain", "domain"),
    Column("context", "context"),
    Column("prompt", "asked", "long"),
    Column("text", "answer", "long"),
    Column("reasoning", "reasoning", "folded"),
    Column("grade", "grade"),
    Column("label", "label"),
)
CHOICES = (
    Column("question", "question"),
    Column("label", "label"),
    Column("text", "choice", "long"),
    Column("tokens", "tokens", "count"),
    Column("base_log_prob", "base log-prob. (nats)", "number"),
)


def effects_table(data: ReportData) -> Record:
    """All effects; to begin with, those on test questions."""
    filters = ("treatment", "control", "domain", "split", "group", "context", "step", "metric")
    rows = _sorted(_shown(data.effect_records), focus(data), ("treatment", "control"))
    return table(rows, EFFECTS, filters, page=25, start={"split": "test"})


def rates_table(data: ReportData) -> Record:
    """All rates; to begin with, those on test questions."""
    filters = ("arm", "domain", "split", "group", "context", "step", "metric")
    rows = _sorted(_shown(data.rate_records), focus(data), ("arm",))
    return table(rows, RATES, filters, page=25, start={"split": "test"})


def bimodality_table(data: ReportData) -> Record:
    """The dip test of the treatment's seeds at every checkpoint."""
    filters = ("domain", "split", "context", "metric", "step")
    return table(data.summary.get("bimodality", []), BIMODALITY, filters, page=25)


def _sorted(rows: list[Record], about: Focus, arms: Sequence[str]) -> list[Record]:
    """What the headline is about first; then by metric, and by arm within that."""
    metrics = [about.metric, *dict.fromkeys(row["metric"] for row in rows)]
    order = {about.treatment: 0, about.control: 1, BASE: 3}

    def place(row: Record) -> tuple[object, ...]:
        return (
            row["split"] != about.split,
            row["context"] != about.context,
            row["domain"] != about.domain,
            row["group"] != "all",
            metrics.index(row["metric"]),
            *(order.get(row[arm], 2) for arm in arms),
        )

    return sorted(rows, key=place)


def headroom_table(data: ReportData) -> Record:
    """The base model in every context, by the headline's metric and on its split."""
    about = focus(data)
    rows = [
        row
        for row in _shown(data.rate_records)
        if row["arm"] == BASE
        and row["metric"] == about.metric
        and row["split"] == about.split
        and row["group"] == "all"
    ]
    if len({row["context"] for row in rows}) < 2:
        rows = []
    rows.sort(key=lambda row: bool(row["context"] != about.context))
    return table(rows, HEADROOM, ("domain",), page=20, start={"domain": about.domain})


def texts_table(data: ReportData) -> Record:
    """The sampled answers, to be browsed; of very many, some drawn at random, in their order."""
    filters = ("arm", "seed", "topic", "question", "domain", "context", "grade", "label")
    texts = data.texts
    if len(texts) > MOST_TEXTS:
        drawn = np.random.default_rng(0).choice(len(texts), MOST_TEXTS, replace=False)
        texts = texts.iloc[np.sort(drawn)]
    columns = [c for c in TEXTS if c.kind != "folded" or _has_text(texts, c.key)]
    return table(texts, columns, filters, page=20, search=("text", "prompt"))


def _has_text(frame: pd.DataFrame, key: str) -> bool:
    return key in frame and any(isinstance(value, str) and value for value in frame[key])


def choices_table(data: ReportData) -> Record:
    """Every listed choice."""
    return table(data.choices, CHOICES, ("question", "label"), page=30, search=("text",))


def balance_table(data: ReportData) -> Record:
    """Per question and label the mean length and log-probability, and whether the labels differ."""
    if data.choices.empty:
        return table([], ())
    labels = [name for name in LABELS if name in set(data.choices["label"])]
    means = data.choices.groupby(["question", "label"])[["tokens", "base_log_prob"]].mean()
    rows: dict[str, Record] = {}
    for (question, label), tokens, nats in zip(
        means.index, means["tokens"], means["base_log_prob"], strict=True
    ):
        row = rows.setdefault(question, {"question": question})
        row |= {f"tokens-{label}": tokens, f"nats-{label}": nats}
    for row in rows.values():
        row["tokens"] = _range(row.get(f"tokens-{label}") for label in labels)
        row["nats"] = _range(row.get(f"nats-{label}") for label in labels)
        flags = ["length"] * (row["tokens"] > MOST_TOKENS)
        flags += ["log-probability"] * (row["nats"] > MOST_NATS)
        row["flag"] = " and ".join(flags) or "none"
    columns = (
        Column("question", "question"),
        Column("flag", "flagged for"),
        Column("tokens", "tokens apart", "number"),
        *(Column(f"tokens-{label}", f"tokens: {label}", "number") for label in labels),
        Column("nats", "nats apart", "number"),
        *(Column(f"nats-{label}", f"nats: {label}", "number") for label in labels),
    )
    return table(list(rows.values()), columns, ("flag",), page=15)


def _range(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None and is_number(value)]
    return max(known) - min(known) if known else 0.0


def _shown(rows: list[Record]) -> list[Record]:
    """Rates or effects with their interval as one value, and bounds only where some are missing."""
    return [
        {
            **row,
            "group": group_of(row) or "all",
            "interval": (row["low"], row["high"]),
            "bounds": (row.get("worst"), row.get("best")) if _is_incomplete(row) else (),
        }
        for row in rows
    ]


def _is_incomplete(row: Record) -> bool:
    missing = row["missing"]
    return (
        bool(counts(missing)) if isinstance(missing, dict) else is_number(missing) and missing > 0
    )


def table(
    rows: pd.DataFrame | list[Record],
    columns: Sequence[Column],
    filters: Sequence[str] = (),
    *,
    page: int = 25,
    start: dict[str, str] | None = None,
    search: Sequence[str] = (),
) -> Record:
    """A table as the page's script expects it.

    Args:
        rows: what it holds.
        columns: which of that is shown, and how.
        filters: columns of texts or counts for whose values there is a menu, where they differ.
        page: rows shown at a time.
        start: what the menus are set to at first, where that value occurs.
        search: columns that the text search looks into; none, no search.
    """
    size = len(rows)
    constants = {
        column.key: f"{column.title}: {_values(rows, column.key)[0]}"
        for column in columns
        if size > 1 and column.key in FOLDED and len(set(_values(rows, column.key))) == 1
    }
    columns = [column for column in columns if column.key not in constants]
    filters = [key for key in filters if key not in constants]
    return {
        "rows": size,
        "constants": ", ".join(constants.values()),
        "page": page,
        "filters": filters,
        "start": start or {},
        "search": list(search),
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "kind": column.kind,
                **_cells(_values(rows, column.key) if size else [], column.kind),
            }
            for column in columns
        ],
    }


def _values(rows: pd.DataFrame | list[Record], key: str) -> list[Any]:
    return [row.get(key) for row in rows] if isinstance(rows, list) else list(rows[key])


def _cells(values: list[Any], kind: str) -> Record:
    """The values of a column; of texts, the levels and a code per row (-1: none)."""
    if kind in ("text", "long", "folded"):
        texts = [None if _is_missing(value) else str(value) for value in values]
        known = dict.fromkeys(text for text in texts if text is not None)
        levels = {text: code for code, text in enumerate(known)}
        return {
            "levels": list(levels),
            "values": [-1 if text is None else levels[text] for text in texts],
        }
    convert = {"span": _span, "seeds": _span, "counts": counts, "share": _share}.get(kind, _number)
    return {"values": [convert(value) for value in values]}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: object) -> float | None:
    """A number with as many decimals as matter."""
    return round(float(value), 5) if is_number(value) else None  # type: ignore[arg-type]


def _share(value: object) -> float | None:
    """A number with as many digits as matter, however small it is."""
    return float(f"{value:.3g}") if is_number(value) else None


def _span(values: Iterable[object]) -> list[float | None]:
    return [_number(value) for value in values]
