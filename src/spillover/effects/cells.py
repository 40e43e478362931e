"""Grades → cells: means by seed and question, which is all that rates and effects are made of.

A metric's grades are averaged once, over paraphrases and samples; every set of questions in every
context is then a choice of rows of that small table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


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
NEED_PLACEBO = ("placebo_log_odds", "specificity")
"""Metrics of questions that have placebo choices; others are not asked for them."""
OUTCOMES = ("refused", "unparseable", "truncated")
WITHOUT = (*OUTCOMES, "low-coverage")
"""Why an answer has no value. Choice mass is the only metric that a scored answer can lack."""
WHOLE = ("domain", "split", "context")
Who = tuple[str, int]
"""An arm at a checkpoint; the base has the checkpoint 0."""


@dataclass(frozen=True)
class Cells:
    """What an arm at a checkpoint gave to some questions in one context.

    Attributes:
        values: means of shape (seeds, questions); NaN where nothing was scored.
        worst: the mean had every answer without a value been the metric's least, NaN where it has
            no bounds and not all have a value; `best` likewise.
        missing: answers without a value, by outcome.
        coverage: the mean of all answers.
    """

    values: NDArray[np.float64]
    worst: float
    best: float
    missing: dict[str, int]
    coverage: float


@dataclass(frozen=True)
class Slice:
    """One metric on one set of questions in one context, for all arms and checkpoints.

    Attributes:
        place: domain, split, context and group (None: all questions).
        topics: the topic of every question, in the order of the columns of cells.
        asked: the cells of everybody who was asked.
    """

    metric: Metric
    place: dict[str, Any]
    topics: list[str]
    asked: dict[Who, Cells]

    @property
    def arms(self) -> list[str]:
        """Treatment first, the base last."""
        found = {arm for arm, _ in self.asked}
        others = sorted(found - {TREATMENT, BASE})
        return [arm for arm in (TREATMENT, *others, BASE) if arm in found]

    @property
    def trained_steps(self) -> list[int]:
        """Checkpoints that finetuned arms were asked at."""
        return sorted({step for arm, step in self.asked if arm != BASE})

    def who(self, arm: str, step: int) -> Who | None:
        """An arm at a checkpoint, where it was asked.

        Models that are given have one checkpoint only, and so has the base.
        """
        found = (arm, 0 if arm == BASE else step)
        return found if found in self.asked else None


def slices(grades: pd.DataFrame) -> Iterator[Slice]:
    """Every metric on every domain, split and context, as a whole and by group."""
    for metric in METRICS:
        relevant = grades["kind"] == metric.kind
        if metric.column in NEED_PLACEBO:
            relevant &= grades["placebo_log_odds"].notna()
        if relevant.any():
            yield from _Means(grades[relevant], metric).slices()


class _Means:
    """A metric's means by place, arm, checkpoint, seed and question.

    Grades are sorted so that those of a unit (an arm at a checkpoint in a place) stand together,
    and in a unit those of a cell.
    """

    def __init__(self, grades: pd.DataFrame, metric: Metric) -> None:
        import pandas as pd

        step = grades["step"].where(grades["arm"] != BASE, 0)
        unit, self.units = _numbered(grades.assign(step=step), [*WHOLE, "arm", "step"])
        question, about = _numbered(grades, ["question", "topic", "group"])
        seed = grades["seed"].to_numpy()
        order = np.lexsort((question, seed, unit))
        keys = np.stack([unit, seed, question])[:, order]
        starts = _starts(keys)
        scores = grades[metric.column].to_numpy(float)[order]
        unknown, outcome = np.isnan(scores), grades["grade"].to_numpy(object)[order]
        missing = [*(outcome == name for name in OUTCOMES), unknown & (outcome == "scored")]
        filled = (np.where(unknown, bound, scores) for bound in metric.bounds or ())
        self.metric, self.about = metric, about
        self.answers, self.coverage = keys, grades["coverage"].to_numpy(float)[order]
        self.answers_at = np.append(_starts(keys[:1]), len(order))
        self.cells = keys[:, starts]
        self.cells_at = np.append(_starts(self.cells[:1]), len(starts))
        self.means = [_averages(values, starts) for values in (scores, *filled)]
        # Where values are missing, pandas sums with compensation. This differs in the last bit,
        # and keeps the figures of earlier runs as they were.
        cell = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
        self.compensated = pd.Series(scores).groupby(cell).mean().to_numpy()
        self.missing = np.add.reduceat(np.stack(missing, axis=1).astype(np.int64), starts)

    def slices(self) -> Iterator[Slice]:
        """Every place, as a whole and by the groups of its questions."""
        places: dict[tuple[Any, ...], dict[Who, int]] = {}
        for number, (domain, split, context, arm, step) in enumerate(self.units):
            places.setdefault((domain, split, context), {})[arm, int(step)] = number
        for whole, members in places.items():
            place = dict(zip(WHOLE, whole, strict=True))
            found = [self.cells[2, slice(*self.cells_at[n : n + 2])] for n in members.values()]
            asked = np.unique(np.concatenate(found))
            yield self._slice(place | {"group": None}, members, asked)
            groups = [self.about[question][2] for question in asked]
            for group in sorted({group for group in groups if isinstance(group, str)}):
                subset = asked[[other == group for other in groups]]
                yield self._slice(place | {"group": group}, members, subset)

    def _slice(self, place: dict[str, Any], members: dict[Who, int], asked: Numbers) -> Slice:
        found = {who: self._cells(unit, asked) for who, unit in members.items()}
        topics = [self.about[question][1] for question in asked]
        return Slice(self.metric, place, topics, {w: c for w, c in found.items() if c is not None})

    def _cells(self, unit: int, asked: Numbers) -> Cells | None:
        """The cells of a unit for some questions, given in order; None where it has none."""
        rows = _among(self.cells[2], self.cells_at[unit : unit + 2], asked)
        if not rows.size:
            return None
        answers = _among(self.answers[2], self.answers_at[unit : unit + 2], asked)
        seeds, seed = np.unique(self.cells[1, rows], return_inverse=True)
        counts = self.missing[rows].sum(axis=0).tolist()
        missing = {outcome: n for outcome, n in zip(WITHOUT, counts, strict=True) if n}
        plain, *filled_in = self.means
        averaged = [self.compensated if missing else plain, *filled_in]
        tables = np.full((len(averaged), len(seeds), len(asked)), np.nan)
        for table, means in zip(tables, averaged, strict=True):
            table[seed, np.searchsorted(asked, self.cells[2, rows])] = means[rows]
        values, *filled = tables
        if self.metric.bounds is None:
            filled = [np.full(1, np.nan) if missing else values] * 2
        worst, best = (float(np.mean(table)) for table in filled)
        coverages = self.coverage[answers]
        known = int((~np.isnan(coverages)).sum())
        coverage = float(np.nansum(coverages)) / known if known else math.nan
        return Cells(values, worst, best, missing, coverage)


def _numbered(table: pd.DataFrame, keys: list[str]) -> tuple[Numbers, list[tuple[Any, ...]]]:
    """For every row the number of its values in some columns, and these values, in order."""
    joint = np.zeros(len(table), np.int64)
    for key in keys:
        values = table[key].astype("category").cat
        joint = joint * (len(values.categories) + 1) + values.codes.to_numpy() + 1
    _, first, number = np.unique(joint, return_index=True, return_inverse=True)
    return number, list(table[keys].iloc[first].itertuples(index=False, name=None))


def _starts(keys: Numbers) -> Numbers:
    """Where keys, of shape (columns, rows), change from one row to the next."""
    changed = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    return np.flatnonzero(np.concatenate([[True], changed]))


def _averages(values: NDArray[np.float64], starts: Numbers) -> NDArray[np.float64]:
    """Means of what lies between starts, over values that are known; NaN where none is."""
    known = ~np.isnan(values)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _among(questions: Numbers, bounds: Numbers, asked: Numbers) -> Numbers:
    """The rows between two bounds that are about some of the questions."""
    first, last = bounds
    found: Numbers = first + np.flatnonzero(np.isin(questions[first:last], asked))
    return found
