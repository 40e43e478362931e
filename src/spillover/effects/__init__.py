"""Grades → rates and effects. Pure functions over tables; the statistics are in `crossed.py`.

A rate is an arm's mean over seeds and questions; an effect is the difference of two arms on the
same questions in the same context. Paraphrases and repeated samples are averaged first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spillover.effects.cells import METRICS, Cells, Metric, Slice, slices
from spillover.effects.crossed import Estimate, effect, rate
from spillover.specification import BASE, TREATMENT

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METRICS", "Estimate", "Metric", "effect", "effects_table", "rate", "rates_table"]


def rates_table(grades: pd.DataFrame) -> pd.DataFrame:
    """Every arm's rate on every metric, domain, split, group, context and checkpoint.

    Columns: arm, domain, split, group, context, step, metric, value, low, high, per_seed, coverage,
    missing (outcome → answers), worst, best (what missing answers could make of the value),
    n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    rows = []
    for piece in slices(grades):
        for arm in piece.arms:
            for step in piece.trained_steps if arm != BASE else [0]:
                if cells := piece.of(arm, step):
                    rows.append(_rate_row(piece, arm, step, cells))
    return pd.DataFrame(rows)


def _rate_row(piece: Slice, arm: str, step: int, cells: Cells) -> dict[str, Any]:
    found = rate(cells.values, piece.topics, bounds=piece.metric.bounds)
    return (
        {"arm": arm, **piece.place, "step": step, "metric": piece.metric.name}
        | _shown(found, cells.worst, cells.best)
        | {"coverage": cells.coverage, "missing": cells.missing}
    )


def effects_table(grades: pd.DataFrame, trait: str) -> pd.DataFrame:
    """Treatment against every control and the base, and every control against the base.

    Columns: id, trait, treatment, control, domain, split, group, context, step, metric, value, low,
    high, per_seed, missing (answers), worst, best, n_seeds, n_questions, n_topics.
    """
    import pandas as pd

    rows = []
    for piece in slices(grades):
        for step in piece.trained_steps:
            asked = {arm: cells for arm in piece.arms if (cells := piece.of(arm, step))}
            for one, other in _contrasts(list(asked)):
                row = _effect_row(piece, step, (one, asked[one]), (other, asked[other]))
                rows.append({"trait": trait, **row})
    return pd.DataFrame(rows)


def _contrasts(arms: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, one in enumerate(arms):
        for other in arms[position + 1 :]:
            if one == TREATMENT or other == BASE:
                yield one, other


def _effect_row(
    piece: Slice, step: int, treatment: tuple[str, Cells], control: tuple[str, Cells]
) -> dict[str, Any]:
    (one, mine), (other, theirs) = treatment, control
    found = effect(
        mine.values,
        theirs.values,
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
