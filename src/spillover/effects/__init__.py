"""Grades → rates and effects. Pure functions over tables; the statistics are in `crossed.py`.

A rate is an arm's mean over seeds and questions; an effect is the difference of two arms on the
same questions in the same context. Paraphrases and repeated samples are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.effects.crossed import Estimate, effect, rate
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["METRICS", "Estimate", "Metric", "effect", "effects_table", "rate", "rates_table"]


@dataclass(frozen=True)
class Metric:
    """A number that grades carry.

    Attributes:
        column: where grades have it.
        kind: the kind of answer that has it, `choice` or `text`.
        bounds: its least and greatest value; None for log-odds (nats).
    """

    name: str
    column: str
    kind: str
    bounds: tuple[float, float] | None


METRICS = (
    Metric("choice-mass", "choice_mass", "choice", (0.0, 1.0)),
    Metric("log-odds", "log_odds", "choice", None),
    Metric("placebo-log-odds", "placebo_log_odds", "choice", None),
    Metric("specificity", "specificity", "choice", None),
    Metric("judged", "judged", "text", (0.0, 1.0)),
)
OUTCOMES = ("refused", "unparseable", "truncated")
NEED_PLACEBO = ("placebo_log_odds", "specificity")
"""Metrics of questions that have placebo choices; others are not asked for them."""
WHOLE = ("domain", "split", "context")


@dataclass(frozen=True)
class _Slice:
    """Grades of one metric on one set of questions in one context, all arms."""

    metric: Metric
    place: dict[str, Any]
    grades: pd.DataFrame

    @property
    def topics(self) -> list[str]:
        """The topic of every question, in the order of the columns of `cells`."""
        return list(self.grades.groupby("question", sort=True)["topic"].first())

    @property
    def trained_steps(self) -> list[int]:
        """Checkpoints that finetuned arms were asked at."""
        return sorted({int(step) for step in self.grades.loc[self.grades["arm"] != BASE, "step"]})

    def of(self, arm: str, step: int) -> pd.DataFrame:
        """Grades of an arm at a checkpoint; the base has one only."""
        mine = self.grades["arm"] == arm
        return self.grades[mine if arm == BASE else mine & (self.grades["step"] == step)]

    def has(self, arm: str, step: int) -> bool:
        """Whether an arm was asked at a checkpoint; models that are given have one only."""
        return not self.of(arm, step).empty

    def cells(self, arm: str, step: int, fill: float | None = None) -> NDArray[np.float64]:
        """Means of shape (seeds, questions); NaN where nothing was scored.

        Args:
            fill: a value for answers that were not scored, for worst and best cases.
        """
        grades = self.of(arm, step)
        values = grades[self.metric.column].astype(float)
        if fill is not None:
            values = values.fillna(fill)
        table = values.groupby([grades["seed"], grades["question"]]).mean().unstack("question")
        return table.reindex(columns=sorted(self.grades["question"].unique())).to_numpy(float)

    def missing(self, arm: str, step: int) -> dict[str, int]:
        """Answers without a value, by outcome; `low-coverage` where choice mass is not defined.

        Choice mass is the only metric that a scored answer can lack.
        """
        grades = self.of(arm, step)
        counts = {outcome: int((grades["grade"] == outcome).sum()) for outcome in OUTCOMES}
        unscored = grades[self.metric.column].isna() & (grades["grade"] == "scored")
        return {k: n for k, n in (counts | {"low-coverage": int(unscored.sum())}).items() if n}


def _slices(grades: pd.DataFrame) -> Iterator[_Slice]:
    """Every metric on every domain, split and context, as a whole and by group."""
    for metric in METRICS:
        relevant = grades[grades["kind"] == metric.kind]
        if metric.column in NEED_PLACEBO:
            relevant = relevant[relevant["placebo_log_odds"].notna()]
        for values, part in relevant.groupby(list(WHOLE), sort=True):
            place = dict(zip(WHOLE, values, strict=True))
            yield _Slice(metric, place | {"group": None}, part)
            for group, subset in part.groupby("group", sort=True):
                yield _Slice(metric, place | {"group": str(group)}, subset)


def _arms(grades: pd.DataFrame) -> list[str]:
    """Treatment first, the base last."""
    found = sorted(set(grades["arm"]) - {TREATMENT, BASE})
    return [arm for arm in (TREATMENT, *found, BASE) if arm in set(grades["arm"])]


def rates_table(grades: pd.DataFrame) -> pd.DataFrame:
    """Every arm's rate on every metric, domain, split, group, context and checkpoint.

    Columns: arm, domain, split, group, context, step, metric, value, low, high, per_seed, coverage,
    missing (outcome → answers), worst, best (what missing answers could make of the value),
    n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    rows = []
    for piece in _slices(grades):
        for arm in _arms(piece.grades):
            for step in piece.trained_steps if arm != BASE else [0]:
                if not piece.has(arm, step):
                    continue
                found = rate(piece.cells(arm, step), piece.topics, bounds=piece.metric.bounds)
                worst, best = _bounds(piece, arm, step)
                coverage = piece.of(arm, step)["coverage"].astype(float).mean()
                rows.append(
                    {"arm": arm, **piece.place, "step": step, "metric": piece.metric.name}
                    | _shown(found, worst, best)
                    | {"coverage": float(coverage), "missing": piece.missing(arm, step)}
                )
    return pd.DataFrame(rows)


def effects_table(grades: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Treatment against every control and the base, and every control against the base.

    Columns: id, trait, treatment, control, domain, split, group, context, step, metric, value, low,
    high, per_seed, missing (answers), worst, best, n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    rows = []
    for piece in _slices(grades):
        arms = _arms(piece.grades)
        for step in piece.trained_steps:
            for one, other in _contrasts([arm for arm in arms if piece.has(arm, step)]):
                rows.append({"trait": trait, **_effect_row(piece, one, other, step)})
    return pd.DataFrame(rows)


def _contrasts(arms: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, one in enumerate(arms):
        for other in arms[position + 1 :]:
            if one == TREATMENT or other == BASE:
                yield one, other


def _effect_row(piece: _Slice, one: str, other: str, step: int) -> dict[str, Any]:
    found = effect(
        piece.cells(one, step),
        piece.cells(other, step),
        piece.topics,
        bounds=piece.metric.bounds,
        control_is_fixed=other == BASE,
    )
    lowest, highest = _bounds(piece, one, step), _bounds(piece, other, step)
    missing = sum(sum(piece.missing(arm, step).values()) for arm in (one, other))
    place, name = piece.place, piece.metric.name
    parts = [f"{one}-vs-{other}", place["domain"], place["split"], place["context"], name]
    parts += [f"group-{place['group']}"] if place["group"] else []
    return (
        {"id": "/".join([*parts, f"step-{step}"]), "treatment": one, "control": other}
        | {**place, "step": int(step), "metric": name}
        | _shown(found, lowest[0] - highest[1], lowest[1] - highest[0])
        | {"missing": missing}
    )


def _bounds(piece: _Slice, arm: str, step: int) -> tuple[float, float]:
    """The rate had every missing answer been worst, and best; NaN for unbounded metrics."""
    if piece.metric.bounds is None:
        complete = not piece.of(arm, step)[piece.metric.column].isna().any()
        value = float(np.mean(piece.cells(arm, step))) if complete else math.nan
        return value, value
    worst, best = (piece.cells(arm, step, fill=bound) for bound in piece.metric.bounds)
    return float(np.mean(worst)), float(np.mean(best))


def _shown(found: Estimate, worst: float, best: float) -> dict[str, Any]:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "per_seed": list(found.per_seed),
        "worst": worst,
        "best": best,
        "n_seeds": found.n_seeds,
        "n_questions": found.n_questions,
        "n_topics": found.n_topics,
    }
