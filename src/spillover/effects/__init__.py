"""Grades → rates and effects. Pure functions over tables; the statistics are in `crossed.py`.

A rate is an arm's mean over seeds and questions; an effect is the difference of two arms on the
same questions in the same context. Paraphrases and repeated samples are averaged first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spillover.effects.cells import METRICS, Metric, Slice, Who, slices
from spillover.effects.crossed import Estimate, effect, rate
from spillover.effects.scores import Scores
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METRICS",
    "Estimate",
    "Metric",
    "compare",
    "effect",
    "effects_table",
    "rate",
    "rates_table",
]


def compare(grades: pd.DataFrame, trait: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of rates and of effects, from averages that are formed once."""
    import pandas as pd

    rates: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for piece in slices(grades):
        scores = _scores(piece)
        rates += _rate_rows(piece, scores)
        effects += _effect_rows(piece, scores, trait)
    return pd.DataFrame(rates), pd.DataFrame(effects)


def rates_table(grades: pd.DataFrame) -> pd.DataFrame:
    """Every arm's rate on every metric, domain, split, group, context and checkpoint.

    Columns: arm, domain, split, group, context, step, metric, value, low, high, per_seed, coverage,
    missing (outcome → answers), worst, best (what missing answers could make of the value),
    n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    pieces = slices(grades)
    return pd.DataFrame([row for one in pieces for row in _rate_rows(one, _scores(one))])


def effects_table(grades: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Treatment against every control and the base, and every control against the base.

    Columns: id, trait, treatment, control, domain, split, group, context, step, metric, value, low,
    high, per_seed, missing (answers), worst, best, n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    pieces = slices(grades)
    return pd.DataFrame([row for one in pieces for row in _effect_rows(one, _scores(one), trait)])


def _scores(piece: Slice) -> dict[Who, Scores]:
    topics = piece.topics
    return {who: Scores.read(cells.values, topics, who[0]) for who, cells in piece.asked.items()}


def _rate_rows(piece: Slice, scores: dict[Who, Scores]) -> Iterator[dict[str, Any]]:
    for arm in piece.arms:
        for step in piece.trained_steps if arm != BASE else [0]:
            if who := piece.who(arm, step):
                yield _rate_row(piece, step, who, scores[who])


def _rate_row(piece: Slice, step: int, who: Who, scores: Scores) -> dict[str, Any]:
    found, cells = rate(scores, piece.topics, bounds=piece.metric.bounds), piece.asked[who]
    return (
        {"arm": who[0], **piece.place, "step": step, "metric": piece.metric.name}
        | _shown(found, cells.worst, cells.best)
        | {"coverage": cells.coverage, "missing": cells.missing}
    )


def _effect_rows(piece: Slice, scores: dict[Who, Scores], trait: str) -> Iterator[dict[str, Any]]:
    for step in piece.trained_steps:
        asked = {arm: who for arm in piece.arms if (who := piece.who(arm, step))}
        for one, other in _contrasts(list(asked)):
            yield {"trait": trait, **_effect_row(piece, step, scores, asked[one], asked[other])}


def _contrasts(arms: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, one in enumerate(arms):
        for other in arms[position + 1 :]:
            if one == TREATMENT or other == BASE:
                yield one, other


def _effect_row(
    piece: Slice, step: int, scores: dict[Who, Scores], treatment: Who, control: Who
) -> dict[str, Any]:
    (one, _), (other, _) = treatment, control
    mine, theirs = piece.asked[treatment], piece.asked[control]
    found = effect(
        scores[treatment],
        scores[control],
        piece.topics,
        bounds=piece.metric.bounds,
        control_is_fixed=other == BASE,
    )
    missing = sum(sum(cells.missing.values()) for cells in (mine, theirs))
    place, name = piece.place, piece.metric.name
    parts = [f"{one}-vs-{other}", place["domain"], place["split"], place["context"], name]
    parts += [f"group-{place['group']}"] if place["group"] else []
    return (
        {"id": "/".join([*parts, f"step-{step}"]), "treatment": one, "control": other}
        | {**place, "step": int(step), "metric": name}
        | _shown(found, mine.worst - theirs.best, mine.best - theirs.worst)
        | {"missing": missing}
    )


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
