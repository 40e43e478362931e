"""What holds of the best candidates on questions that were not searched with."""

from __future__ import annotations

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

Label = Literal["trained", "untrained", "unknown"]


@dataclass(frozen=True)
class Effect:
    """How far a context moves a finetune on held-out questions.

    Attributes:
        value: the mean score over topics, in bits (0 to 1).
        low, high: its interval over topics, corrected for everything that was searched.
        p: of a value no larger than the floor, corrected likewise.
    """

    value: float
    low: float
    high: float
    p: float

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
    return Effect(mean, max(0.0, mean - width), min(1.0, mean + width), min(1.0, p * searched))


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
