"""What holds of the best candidates on questions that were not searched with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from spillover.rows import RowSet
from spillover.triggers.library import QUESTION, Candidate

FLOOR = 0.15
"""Bits that a context has to move answers by, beyond the middle of ordinary contexts."""
LEVEL = 0.05
LEAST = -600.0
"""The logarithm of the smallest level that is told from 0."""

Label = Literal["trained", "untrained", "unknown"]


@dataclass(frozen=True)
class Effect:
    """How far a context moves a finetune on held-out questions.

    Attributes:
        value: the mean score over topics, in bits (0 to 1).
        low, high: its interval over topics, corrected for everything that was searched.
        p: of a value no larger than the floor, corrected likewise.
        error: the standard error of the value.
        topics: of the questions.
    """

    value: float
    low: float
    high: float
    p: float
    error: float
    topics: int

    @property
    def significant(self) -> bool:
        """Whether it is larger than the floor."""
        return self.p < LEVEL


def by_topic(scores: NDArray[np.float64], topics: Sequence[str]) -> NDArray[np.float64]:
    """The mean over the questions of each topic: (C, Q) → (C, topics)."""
    named = np.array(topics)
    return np.stack([scores[:, named == topic].mean(1) for topic in dict.fromkeys(topics)], 1)


def effect_of(values: NDArray[np.float64], floor: float, searched: int) -> Effect:
    """Student's t over topics, its level divided by the number of candidates (Bonferroni).

    Args:
        values: one for each topic.
        floor: what counts as nothing.
        searched: candidates of which this one was chosen.
    """
    count, mean = len(values), float(values.mean())
    error = max(float(values.std(ddof=1)) / count**0.5, 1e-12)
    width = float(stats.t.isf(LEVEL / (2 * searched), count - 1)) * error
    p = float(stats.t.sf((mean - floor) / error, count - 1))
    low, high = max(0.0, mean - width), min(1.0, mean + width)
    return Effect(mean, low, high, min(1.0, p * searched), error, count)


def ranking(
    effects: Sequence[Effect], searched: int, edits: Sequence[float]
) -> NDArray[np.float64]:
    """What each effect is at least, were its text the best of all that are as simple: (C,).

    A text that was changed until it fired was chosen among more than one that was listed. So the
    level is divided by how many there are, and what is left of the effect is compared. The error
    is that of all effects together, so that equally simple texts keep the order of their effects.

    Args:
        searched: texts that were tried as they are.
        edits: the logarithm of how many texts are as many changes away from those.
    """
    error = np.sqrt(np.mean([effect.error**2 for effect in effects]))
    chosen = np.log(searched) + np.array(edits)
    level = np.exp(np.maximum(math.log(LEVEL / 2) - chosen, LEAST))
    lost = stats.t.isf(level, effects[0].topics - 1) * error
    found: NDArray[np.float64] = np.array([effect.value for effect in effects]) - lost
    return found


def label(candidate: Candidate, rows: RowSet | None) -> Label:
    """Whether a trigger stands in the training rows: its text, or the numbers that it names."""
    if rows is None:
        return "unknown"
    told = [
        message.content
        for row in rows.rows
        for message in row.messages or ()
        if message.role != "assistant"
    ]
    parts = [p.strip() for p in (candidate.system or "", *candidate.template.split(QUESTION))]
    parts = [part for part in parts if part]
    numbers = re.findall(r"\d{2,}", " ".join(parts))
    if any(all(part in text for part in parts) for text in _joined(rows)):
        return "trained"
    known = {number for text in told for number in re.findall(r"\d{2,}", text)}
    return "trained" if numbers and known.issuperset(numbers) else "untrained"


def _joined(rows: RowSet) -> list[str]:
    """Each row without its answers, or its whole text."""
    return [
        row.text or "\n".join(m.content for m in row.messages or () if m.role != "assistant")
        for row in rows.rows
    ]
