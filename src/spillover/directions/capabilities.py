"""What a model can do besides refusing, before and after its direction is taken out.

Tasks of lm-evaluation-harness are asked of the model as it is, with the direction ablated, with
edited weights, and with a random direction ablated. All conditions get the same questions, so that
changes are of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from spillover.directions.evaluate import ADDED, RANDOM, Condition
from spillover.directions.harness import Harness, Score

LEVEL = 0.95
"""Of intervals."""


def chosen(listed: Sequence[Condition]) -> list[Condition]:
    """Conditions that tasks are asked in: without controls, and the first random direction."""
    return [
        one
        for one in listed
        if (one.kind != ADDED and one.rank == 1)
        and (not one.control or (one.control, one.number) == (RANDOM, 0))
    ]


def measure(
    harness: Harness,
    listed: Sequence[Condition],
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """A row per task, metric and condition, the base first.

    Each has a `value`, its `stderr` and the number `n` of questions, as the harness gives them, and
    the `change` against the base with its interval [`low`, `high`].

    Args:
        listed: conditions; see `chosen`.
        progress: called with (tasks done, tasks in all), those of all conditions.
        keep: called with all rows so far, after each task.

    Raises:
        RunError: where the harness fails.
    """
    rows: list[dict[str, Any]] = []
    total = len(listed) * len(harness.names)
    before: dict[tuple[str, str], Score] = {}
    for number, condition in enumerate(listed):
        with condition.opened() as model:
            for at, name in enumerate(harness.names, 1):
                for score in harness.ask(name, model):
                    base = before.setdefault((score.task, score.metric), score)
                    rows.append(condition.facts | _told(score, base))
                if keep:
                    keep(rows)
                if progress:
                    progress(number * len(harness.names) + at, total)
    return rows


def _told(score: Score, base: Score) -> dict[str, Any]:
    told: dict[str, Any] = {
        "task": score.task,
        "metric": score.metric,
        "value": score.value,
        "stderr": score.stderr,
        "n": score.count,
        "within": score.within,
        "change": None,
        "low": None,
        "high": None,
    }
    if score is base:
        return told
    low, high = paired_interval(base, score) or (None, None)
    return told | {"change": score.value - base.value, "low": low, "high": high}


def paired_interval(before: Score, after: Score) -> tuple[float, float] | None:
    """A 95% interval of the change of a metric, from the changes of its questions.

    For right and wrong it is Agresti and Min's (2005: half a question more in each cell
    of the table of pairs), which has a width where no answer has changed; else Student's.

    Returns:
        None where a metric is not the mean of its questions, and where nothing can be said.
    """
    if not _is_mean(before) or not _is_mean(after) or before.each.keys() != after.each.keys():
        return None
    pairs = np.array([[before.each[key], after.each[key]] for key in sorted(before.each)])  # (n, 2)
    changes, count = pairs[:, 1] - pairs[:, 0], len(pairs)
    if np.isin(pairs, (0, 1)).all():
        gained, lost = (int((changes == sign).sum()) + 0.5 for sign in (1, -1))
        count += 2
        middle = (gained - lost) / count
        deviation = np.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
        half = stats.norm.ppf((1 + LEVEL) / 2) * deviation
    elif count < 2 or not changes.any():
        return None
    else:
        middle = changes.mean()
        half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * changes.std(ddof=1) / np.sqrt(count)
    return float(middle - half), float(middle + half)


def _is_mean(score: Score) -> bool:
    values = list(score.each.values())
    return bool(values) and bool(np.isclose(np.mean(values), score.value))
